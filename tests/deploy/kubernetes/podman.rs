//! Podman with a storage of its own, and in it the images that manifests name: our programs as they are built, etcd, and
//! something that waits, each over a small root of Debian's packages.
//!
//! ```text
//! target/deploy/play.tar   the root: kept, for it takes a while and the network
//! target/deploy/play/      images, containers, networks: gone when the test ends
//! ```

use kontrol_tests::{house::project, node::program};
use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What is in the images beside our programs: what a callback in shell needs, and what a container does that only waits.
const PACKAGES: &str = "base-files,ca-certificates,coreutils,dash,grep,libc6,libgcc-s1";
/// In the root, for no script of a package is run.
const FINISH: &str = r#"cd "$1"
ln -sf dash usr/bin/sh
echo 'kontrol:x:10001:10001::/:/usr/sbin/nologin' > etc/passwd
echo 'kontrol:x:10001:' > etc/group
rm -rf usr/share/doc usr/share/i18n usr/share/locale usr/share/man usr/lib/*/gconv var/cache/* var/lib/apt etc/apt tmp/*"#;
/// The images, each by the name that manifests call it, without registry and tag.
const IMAGES: &str = r#"FROM scratch AS base
ADD root.tar /
USER 10001:10001
FROM base AS pause
ENTRYPOINT ["/usr/bin/sleep", "1000000"]
FROM base AS kontrol-master
COPY kontrol-master /usr/local/bin/
ENV KONTROL_BIND=0.0.0.0
ENTRYPOINT ["/usr/local/bin/kontrol-master"]
FROM base AS kontrol-slave
COPY kontrol-slave /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/kontrol-slave"]
FROM base AS etcd
COPY etcd /usr/local/bin/
"#;
/// What holds the network of a pod.
const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// The engine. It goes with what it runs when it is dropped.
pub(super) struct Podman {
    dir: PathBuf,
    /// One test after the other, of one run or of several.
    _lock: File,
    subnet: String,
}

/// Runs a command to its end.
pub(super) fn output(command: &mut Command) -> Output {
    let ran = command.output();
    ran.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn succeeds(command: &mut Command) {
    let ran = output(command);
    assert!(ran.status.success(), "{command:?}: {ran:?}");
}

/// Where a program is, of those in `PATH`.
fn found(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

impl Podman {
    /// One with these images, and a network called `cluster`; or why there can be none.
    pub(super) fn make(images: &BTreeSet<&str>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("containers are run as root here".into());
        }
        for name in ["podman", "runc", "mmdebstrap", "strip"] {
            found(name).ok_or(format!("there is no {name}"))?;
        }
        let cache = project().join("target/deploy");
        fs::create_dir_all(&cache).unwrap();
        let lock = File::create(cache.join("play.lock")).unwrap();
        lock.lock().unwrap();
        let pid = std::process::id();
        let podman = Self {
            dir: cache.join("play"),
            _lock: lock,
            // One that no other engine of this machine has, most likely.
            subnet: format!("10.{}.{}", 100 + pid % 100, pid / 100 % 250),
        };
        // What a run left that was killed.
        podman.configure();
        podman.clear();
        podman.configure();
        podman.build(&root(&cache)?, images);
        let subnet = format!("{}.0/24", podman.subnet);
        let network = ["network", "create", "--disable-dns", "--subnet", &subnet];
        podman.does(&[&network[..], &["cluster"]].concat());
        Ok(podman)
    }

    /// A folder that goes with it.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// An address of the network.
    pub(super) fn address(&self, index: usize) -> String {
        format!("{}.{}", self.subnet, 10 + index)
    }

    /// Podman, by this storage.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .args(arguments);
        command
    }

    /// Has it do something, which must succeed.
    pub(super) fn does(&self, arguments: &[&str]) {
        succeeds(&mut self.command(arguments));
    }

    fn configure(&self) {
        fs::create_dir_all(&self.dir).unwrap();
        let dir = self.dir.display();
        // vfs works on every file system, and the limits are those that a machine without a service manager can grant.
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/images\"\nrunroot = \"{dir}/run\"\n"
        );
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             infra_image = \"{PAUSE}\"\ninfra_command = \"/usr/bin/sleep 1000000\"\n\
             tmp_dir = \"{dir}/tmp\"\nstatic_dir = \"{dir}/libpod\"\nvolume_path = \"{dir}/volumes\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{dir}/networks\"\n"
        );
        fs::write(self.dir.join("storage.conf"), storage).unwrap();
        fs::write(self.dir.join("containers.conf"), containers).unwrap();
    }

    fn build(&self, root: &Path, images: &BTreeSet<&str>) {
        let context = self.dir.join("context");
        fs::create_dir_all(&context).unwrap();
        fs::hard_link(root, context.join("root.tar")).unwrap();
        fs::write(context.join("Containerfile"), IMAGES).unwrap();
        for name in ["kontrol-master", "kontrol-slave"] {
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(context.join(name)).arg(program(name));
            succeeds(&mut strip);
        }
        if let Some(etcd) = found("etcd") {
            fs::copy(etcd, context.join("etcd")).unwrap();
        }
        for image in images.iter().copied().chain([PAUSE]) {
            let name = image.rsplit('/').next().unwrap();
            let target = name.split(':').next().unwrap();
            // As podman calls what is built here.
            let here = if image == name { "localhost/" } else { "" };
            let image = format!("{here}{image}");
            let build = ["build", "--quiet", "--target", target, "--tag", &image];
            self.does(&[&build[..], &[context.to_str().unwrap()]].concat());
        }
        fs::remove_dir_all(context).unwrap();
    }

    fn clear(&self) {
        for arguments in [
            &["pod", "rm", "--all", "--force", "--time=0"][..],
            &["rm", "--all", "--force", "--time=0"],
            &["network", "rm", "--force", "cluster"],
        ] {
            output(&mut self.command(arguments));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The root of Debian's packages as a tar, made where it is not there yet; or why it can't be.
fn root(cache: &Path) -> Result<PathBuf, String> {
    let file = cache.join("play.tar");
    if file.is_file() {
        return Ok(file);
    }
    let making = cache.join("play.new.tar");
    let ran = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=extract", "--skip=output/dev,cleanup"])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg(format!("--include={PACKAGES}"))
        .arg(format!("--extract-hook={FINISH}"))
        .arg("bookworm")
        .arg(&making)
        .output();
    let ran = ran.map_err(|error| error.to_string())?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("Debian's packages can't be had: {}", said.trim()));
    }
    fs::rename(&making, &file).map_err(|error| error.to_string())?;
    Ok(file)
}
