//! A callback that keeps a folder of data for each pod and deletes what belongs to pods that left, and the reading of what
//! it has done: what a list that is too short costs is gone for good.

use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A keeper of data, in a folder of its own.
#[derive(Debug)]
pub struct Keeper {
    dir: TempDir,
    program: PathBuf,
}

/// One run that came to its end.
#[derive(Debug, Clone, Deserialize)]
pub struct Kept {
    /// The digest that it ran for.
    pub hash: String,
    /// The names of the pods that it was given, in their order.
    pub ids: Vec<String>,
    /// The names of the pods whose data it deleted.
    pub deleted: Vec<String>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self::new()
    }
}

impl Keeper {
    /// A keeper that has no data yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("keeper.py");
        fs::write(&program, include_str!("script/keeper.py")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir, program }
    }

    /// The program, for `--callback`.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The names of the pods that there are data of.
    pub fn data(&self) -> BTreeSet<String> {
        let folders = fs::read_dir(self.dir.path().join("data")).unwrap();
        folders
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Every run that came to its end, in their order.
    pub fn runs(&self) -> Vec<Kept> {
        let text = fs::read_to_string(self.dir.path().join("runs.jsonl")).unwrap_or_default();
        // A line that is being written has no end yet.
        let lines = text.split_inclusive('\n');
        lines
            .filter_map(|line| Some(serde_json::from_str(line.strip_suffix('\n')?).unwrap()))
            .collect()
    }

    /// The names of the pods whose data were ever deleted.
    pub fn deleted(&self) -> BTreeSet<String> {
        let runs = self.runs().into_iter();
        runs.flat_map(|run| run.deleted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn data_of_a_pod_that_left_are_deleted() {
        let keeper = Keeper::new();
        let input = keeper.dir.path().join("input");
        for text in [
            r#"{"hash": "1", "pods": [{"id": "a"}, {"id": "b"}]}"#,
            r#"{"hash": "2", "pods": [{"id": "b"}, {"id": "c"}]}"#,
        ] {
            fs::write(&input, text).unwrap();
            let status = Command::new(keeper.program())
                .stdin(Stdio::from(fs::File::open(&input).unwrap()))
                .status();
            assert!(status.unwrap().success());
        }
        assert_eq!(keeper.data(), BTreeSet::from(["b".into(), "c".into()]));
        assert_eq!(keeper.deleted(), BTreeSet::from(["a".into()]));
        assert_eq!(keeper.runs()[1].ids, ["b", "c"]);
    }
}
