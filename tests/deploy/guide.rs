//! What the READMEs of the examples tell to run, run as it stands.

use kontrol_tests::{house::project, node::program, process::Process};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long one command of a README may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How an example says that something is not installed.
const SKIPPED: i32 = 3;

/// The folder of an example.
pub(crate) fn example(name: &str) -> PathBuf {
    project().join("deploy/examples").join(name)
}

/// Where a program of Debian is. None, said aloud, where it is not installed.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where Debian keeps haproxy, which not everybody's PATH has.
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        kontrol_tests::skip(&format!("there is no {name}"));
    }
    found
}

/// Runs every line of the `sh` blocks in the README of an example, from the folder of the project, and tells what it wrote.
pub(crate) async fn run_as_written(name: &str) -> Option<String> {
    let text = fs::read_to_string(example(name).join("README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|rest| rest.split("```").next().unwrap().lines());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    assert!(!lines.is_empty(), "the README of {name} tells what to run");
    let dir = tempfile::tempdir().unwrap();
    let mut wrote = String::new();
    for line in lines {
        let log = dir.path().join(format!("log-{}", wrote.len()));
        let mut process = shell(line, &log);
        let status = process.ended(COMMAND).await;
        let log = process.log();
        if status.code() == Some(SKIPPED) {
            kontrol_tests::skip(log.trim().trim_start_matches("SKIPPED: "));
            return None;
        }
        assert!(status.success(), "{line}: {status}\n{log}");
        wrote.push_str(&log);
    }
    Some(wrote)
}

fn shell(line: &str, log: &Path) -> Process {
    let programs = program("kontrol-master").parent().unwrap().to_owned();
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .current_dir(project())
        .env("KONTROL_BIN_DIR", programs);
    Process::spawn(line, &mut command, log)
}
