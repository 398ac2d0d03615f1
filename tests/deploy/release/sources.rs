//! The sources that a release of a test is made of, and the recipe in them.

use crate::containers::Ran;
use kontrol_tests::{house::project, node::program, skip};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

pub(super) fn succeeds(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// The project as it is now, committed: a release is made of a commit alone.
pub(super) struct Sources(TempDir);

impl Sources {
    /// None, said aloud, where this is not a repository.
    pub(super) fn copied() -> Option<Self> {
        let files = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
                "--deduplicate",
            ])
            .current_dir(project())
            .output();
        let Some(files) = files.ok().filter(|files| files.status.success()) else {
            skip("this is no repository of git's, or there is no git");
            return None;
        };
        let sources = Self(tempfile::tempdir().unwrap());
        for name in String::from_utf8(files.stdout).unwrap().split('\0') {
            let (from, to) = (project().join(name), sources.0.path().join(name));
            // What was deleted is listed until that is committed.
            if !name.is_empty() && from.is_file() {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(from, to).unwrap();
            }
        }
        sources.git(&["init", "--quiet"]);
        sources.commit();
        Some(sources)
    }

    pub(super) fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command
            .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.com"])
            .args(args)
            .env("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z")
            .current_dir(self.0.path());
        succeeds(&mut command)
    }

    pub(super) fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "As it is"]);
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The recipe, for the programs of this test.
    pub(super) fn release(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("deploy/release"));
        command
            .args(["--fast", "--binaries"])
            .arg(program("kontrol-master").parent().unwrap())
            .args(args)
            .arg(folder)
            // What cargo says to this test is not for what it is to be asked there.
            .env_remove("CARGO_TARGET_DIR")
            .current_dir("/");
        command
    }
}

/// Runs it to its end, with this `PATH`.
pub(super) fn ended(mut command: Command, path: Option<PathBuf>) -> Ran {
    if let Some(first) = path {
        let rest = env::var_os("PATH").unwrap();
        let all = env::split_paths(&rest);
        command.env(
            "PATH",
            env::join_paths([first].into_iter().chain(all)).unwrap(),
        );
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
