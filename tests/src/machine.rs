//! A small machine with systemd as its first process, made from Debian's packages alone: in namespaces of its own, on a
//! root that is made once and never written to. What is changed there goes with the machine.

use crate::{SOON, house::project, process::Process, wait::eventually};
use anyhow::ensure;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
};
use tempfile::TempDir;

/// What the root has beside Debian's smallest.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,ca-certificates,curl,jq";

/// Mounts the root ($1) under a layer that is thrown away ($2), and what systemd wants to find, and becomes systemd.
const BOOT: &str = r#"set -e
mount --make-rprivate /
mount -t tmpfs none "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
echo '127.0.0.1 localhost' > etc/hosts
mount -t proc proc proc
mount -t sysfs sysfs sys -o ro
mount -t tmpfs none run
mount -t tmpfs none tmp
mount --rbind /dev dev
mount -t tmpfs none sys/fs/cgroup
mkdir sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
# Credentials of units are mounts, which what systemd starts must see.
mount --make-rshared /
exec env -i container=kontrol PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --unit=multi-user.target"#;

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    dir: TempDir,
}

impl Machine {
    /// Boots one. None, said aloud, where that can't be done.
    pub async fn boot() -> Option<Self> {
        let root = match root() {
            Ok(root) => root,
            Err(why) => {
                crate::skip(&why);
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir(&layer).unwrap();
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--cgroup",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT, "sh"])
            .args([&root, &layer]);
        let process = Process::spawn("machine", &mut command, &dir.path().join("log"));
        let mut machine = Self { process, dir };
        let booted = eventually(SOON, "a machine that has booted", async || {
            if machine.process.status().is_some() {
                return Ok(false);
            }
            let state = machine.run("systemctl is-system-running");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            // A part of Debian that can't do its work in namespaces is none of ours.
            ensure!(
                ["running", "degraded"].contains(&state.as_str()),
                "it is {state:?}"
            );
            Ok(true)
        })
        .await;
        if !booted {
            let log = machine.process.log();
            crate::skip(&format!(
                "systemd can't be started in namespaces here: {}",
                log.trim()
            ));
            return None;
        }
        Some(machine)
    }

    /// Runs a text there as root, in a shell.
    pub fn run(&self, text: &str) -> Output {
        self.enter().args(["sh", "-c", text]).output().unwrap()
    }

    /// Runs one that must succeed; tells what it wrote to its standard output.
    pub fn succeeds(&self, text: &str) -> String {
        let ran = self.run(text);
        if !ran.status.success() {
            let log = self.run("journalctl --no-pager --lines 60").stdout;
            panic!("{text}: {ran:?}\n{}", String::from_utf8_lossy(&log));
        }
        String::from_utf8(ran.stdout).unwrap()
    }

    /// Runs one until it succeeds.
    pub async fn until(&self, text: &str) -> String {
        eventually(SOON, text, async || {
            let ran = self.run(text);
            ensure!(ran.status.success(), "{ran:?}");
            Ok(String::from_utf8(ran.stdout)?)
        })
        .await
    }

    /// Writes a file there, with its owner (`root:kontrol`) and mode.
    pub fn write(&self, path: &str, text: &str, owner: &str, mode: &str) {
        let file = self.dir.path().join("given");
        fs::write(&file, text).unwrap();
        self.copy(&file, path);
        self.succeeds(&format!("chown {owner} {path} && chmod {mode} {path}"));
    }

    /// Copies a file there.
    pub fn copy(&self, from: &Path, to: &str) {
        let into = r#"umask 077; mkdir -p "$(dirname "$1")"; cat > "$1""#;
        let copied = self
            .enter()
            .args(["sh", "-c", into, "sh", to])
            .stdin(fs::File::open(from).unwrap())
            .status();
        assert!(copied.unwrap().success(), "copy {to}");
    }

    /// Whatever is added is run there.
    fn enter(&self) -> Command {
        let children = format!("/proc/{0}/task/{0}/children", self.process.pid());
        let systemd = fs::read_to_string(children).unwrap_or_default();
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--root", "--wd", "--target", systemd.trim()])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command
    }
}

/// The root of Debian, made where it is not there yet; or why it can't be.
fn root() -> Result<PathBuf, String> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !rustix::process::geteuid().is_root() {
        return Err("a machine takes root".into());
    }
    let folder = project().join("target/deploy");
    let root = folder.join("machine");
    if root.join("etc").is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let making = folder.join(format!("machine.{}", std::process::id()));
    let ran = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={PACKAGES}"))
        .arg("bookworm")
        .arg(&making)
        .output()
        .map_err(|error| format!("there is no mmdebstrap: {error}"))?;
    if !ran.status.success() {
        let _ = fs::remove_dir_all(&making);
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("Debian's packages can't be had: {}", said.trim()));
    }
    fs::rename(&making, &root).map_err(|error| error.to_string())?;
    Ok(root)
}
