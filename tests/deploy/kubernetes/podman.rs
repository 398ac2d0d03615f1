//! The engine of the tests of images, for pods: in it are our images as they are built, and beside them what manifests name
//! else, made of Debian's packages.

use crate::containers::{Engine, engine, turn};
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
};
use tempfile::TempDir;
use tokio::sync::SemaphorePermit;

/// What the network is called.
const NETWORK: &str = "cluster";

/// The engine, with a network of its own for pods. They go when it is dropped.
pub(super) struct Podman {
    engine: &'static Engine,
    dir: TempDir,
    subnet: String,
    /// Given back when all else is gone: until then no other test has pods or networks.
    _turn: SemaphorePermit<'static>,
}

/// Runs a command to its end.
pub(super) fn output(command: &mut Command) -> Output {
    let ran = command.output();
    ran.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

impl Podman {
    /// One that has these images. None, said aloud, where there can be none.
    pub(super) async fn make(images: &BTreeSet<&str>) -> Option<Self> {
        let engine = engine().await?;
        for image in images {
            let name = image.rsplit('/').next().unwrap_or_default();
            match name.split(':').next().unwrap_or_default() {
                "etcd" => engine.debian(image, &["etcd-server"], "").await,
                // These are there, ours under the tag of this version.
                "kontrol-master" | "kontrol-slave" | "pause" => {}
                other => panic!("what is {other}?"),
            }
        }
        let pid = std::process::id();
        let podman = Self {
            engine,
            dir: tempfile::tempdir().unwrap(),
            // One that no other engine of this machine has, most likely.
            subnet: format!("10.{}.{}", 200 + pid % 50, pid / 50 % 250),
            _turn: turn().await,
        };
        let subnet = format!("{}.0/24", podman.subnet);
        podman.does(&[
            "network",
            "create",
            "--disable-dns",
            "--subnet",
            &subnet,
            NETWORK,
        ]);
        Some(podman)
    }

    /// A folder that goes with it.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An address of the network.
    pub(super) fn address(&self, index: usize) -> String {
        format!("{}.{}", self.subnet, 10 + index)
    }

    /// Podman, by this storage.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine.command("podman");
        command.args(arguments);
        command
    }

    /// Has it do something, which must succeed.
    pub(super) fn does(&self, arguments: &[&str]) {
        let mut command = self.command(arguments);
        let ran = output(&mut command);
        assert!(ran.status.success(), "{command:?}: {ran:?}");
    }

    /// Runs these objects in a pod of this address.
    pub(super) fn play(&self, ip: &str, file: &Path) {
        let network = format!("--network={NETWORK}");
        let file = file.to_str().unwrap();
        self.does(&["kube", "play", &network, "--ip", ip, file]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        output(&mut self.command(&["pod", "rm", "--all", "--force", "--time=0"]));
        output(&mut self.command(&["network", "rm", "--force", NETWORK]));
    }
}
