//! A small machine for commands as the README writes them: with ports, `/run` and `/opt` of its own, so that what says
//! `localhost:8000` or `/opt/app` can be run as it stands, whatever else there is on this machine.
//!
//! It is a network and a mount namespace, held by a process that is killed with the test. A user who may not make them is
//! told so, and the test is skipped.

use crate::{SOON, node::program, process::Process, wait::eventually};
use anyhow::ensure;
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};
use tempfile::TempDir;

/// Makes the house ready, says so, and holds it.
const HOLD: &str = "mount -t tmpfs none /run && mount -t tmpfs none /opt && ip link set lo up && echo ready && exec sleep infinity";

/// Namespaces, and what runs in them.
#[derive(Debug)]
pub struct House {
    holder: Process,
    root: bool,
    dir: TempDir,
}

/// What became of a text that a shell ran.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output and error.
    pub output: String,
}

impl House {
    /// Makes a house. None, said aloud, where this user may not.
    pub async fn start() -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]);
        if !root {
            command.arg("--map-root-user");
        }
        command.args(["sh", "-c", HOLD]);
        let log = dir.path().join("holder.log");
        let mut holder = Process::spawn("house", &mut command, &log);
        let ready = eventually(SOON, "house", async || {
            let ended = holder.status().is_some();
            let ready = holder.log().contains("ready");
            ensure!(ended || ready, "{}", holder.log());
            Ok(ready)
        })
        .await;
        if !ready {
            crate::skip(&format!(
                "no network and mount namespace can be made here: {}",
                holder.log().trim()
            ));
            return None;
        }
        Some(Self { holder, root, dir })
    }

    /// For the files of the test; every file of this machine but those in `/run` and `/opt` is in the house as well.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a text as a shell runs it, in the folder of the project, with the built programs in its `PATH`. What it
    /// leaves in the background ends with the process that this gives.
    pub fn start_shell(&self, name: &str, text: &str) -> Process {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target"]);
        command.arg(self.holder.pid().to_string());
        if !self.root {
            command.args(["--user", "--preserve-credentials"]);
        }
        command
            .args([
                "sh",
                "-c",
                "cd \"$1\" && eval \"$2\"; code=$?; wait; exit $code",
                "sh",
            ])
            .arg(project())
            .arg(text)
            .env_clear()
            .env("PATH", path())
            .env("RUST_BACKTRACE", "1");
        Process::spawn(name, &mut command, &self.dir.path().join(name))
    }

    /// Runs a text as a shell runs it, to its end.
    pub async fn shell(&self, text: &str) -> Ran {
        let log = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        let name = log.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut process = self.start_shell(&name, text);
        let status = process.ended(SOON).await;
        let output = process.log();
        Ran { status, output }
    }

    /// Runs a text until it succeeds, as a person would; tells what it wrote then.
    pub async fn succeeds(&self, text: &str) -> String {
        eventually(SOON, &format!("success of `{text}`"), async || {
            let ran = self.shell(text).await;
            ensure!(ran.status.success(), "{ran:?}");
            Ok(ran.output)
        })
        .await
    }
}

/// The folder of the project.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The `PATH` of this process behind the folder of the built programs.
fn path() -> OsString {
    let programs = program("kontrol-master").parent().unwrap().to_owned();
    let rest = env::var_os("PATH").unwrap_or_default();
    env::join_paths([programs].into_iter().chain(env::split_paths(&rest))).unwrap()
}
