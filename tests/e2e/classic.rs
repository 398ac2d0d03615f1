//! What the Python Kontrol's slaves sent, its operators set and its callbacks read, and that it has the effect that it had:
//! real programs with nothing set but that one variable. `deploy/coming-from-python.md` tells what differs.

mod documents;
mod slave;
mod times;
mod variables;

use kontrol_tests::{
    node::{Master, command},
    process::Process,
};
use std::path::Path;
use tempfile::TempDir;

/// What names a pod, in the classic spelling.
const LABELS: (&str, &str) = ("KONTROL_LABELS", r#"{"app":"web","role":"worker"}"#);

/// A master with the store in memory and these variables.
struct Alone {
    master: Master,
    dir: TempDir,
}

impl Alone {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut master = master("master", variables, dir.path());
        master.start().await;
        master.ready().await;
        Self { master, dir }
    }

    /// A slave with these variables; where the master is comes from `KONTROL_MASTER`.
    fn slave(&self, variables: &[(&str, &str)]) -> Process {
        let address = self.master.address();
        let all = [&[("KONTROL_MASTER", address.as_str())], variables].concat();
        slave("slave", &all, self.dir.path())
    }
}

fn master(id: &str, variables: &[(&str, &str)], dir: &Path) -> Master {
    let variables = variables.iter();
    let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Master::new(id, Vec::new(), variables.collect(), dir)
}

fn slave(name: &str, variables: &[(&str, &str)], dir: &Path) -> Process {
    let mut command = command("kontrol-slave");
    command.envs(variables.iter().copied());
    Process::spawn(name, &mut command, &dir.join(format!("{name}.log")))
}
