//! The witness beside a store's file: a small file that says up to which revision writes were acknowledged, and whose
//! lock says that a master has the store.
//!
//! The database alone can't tell a damaged last commit from one that a crash cut short: it falls back to the commit
//! before, and what was acknowledged would be gone without a word, seqs given twice. The witness is written in place
//! after each commit, and not synced: after a power cut it may lag behind the database, it is never ahead of it.

use kontrol_core::kv::Revision;
use std::{
    fs, io,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const NAME: &str = "kontrol.revision";
/// More than the line has.
const MOST_BYTES: u64 = 64;

/// The witness of one store, locked.
#[derive(Debug)]
pub(super) struct Witness {
    path: PathBuf,
    file: fs::File,
    acknowledged: Option<Revision>,
}

/// Why there is no witness.
#[derive(Debug, thiserror::Error)]
pub(super) enum WitnessError {
    #[error("is in use by another process; give each master a directory of its own, or use etcd")]
    InUse,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Witness {
    /// Opens the witness in this directory, made when it is not there, and keeps others out.
    pub(super) fn lock(dir: &Path) -> Result<Self, WitnessError> {
        let path = dir.join(NAME);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(WitnessError::InUse),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut text = Vec::new();
        (&file).take(MOST_BYTES).read_to_end(&mut text)?;
        let acknowledged = parse(&text);
        if acknowledged.is_none() && !text.is_empty() {
            tracing::warn!(
                path = %path.display(),
                "can't read the witness of the store; whether its last writes are there is not checked this time"
            );
        }
        Ok(Self {
            path,
            file,
            acknowledged,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Up to which revision writes were acknowledged, as far as is known.
    pub(super) fn acknowledged(&self) -> Option<Revision> {
        self.acknowledged
    }

    /// Notes that a revision is durable.
    pub(super) fn note(&mut self, revision: Revision) {
        if self.acknowledged == Some(revision) {
            return;
        }
        self.acknowledged = Some(revision);
        // Always as long, so that it is one write of one sector, which needs no room on a full disk.
        if let Err(error) = self.file.write_all_at(line(revision).as_bytes(), 0) {
            tracing::warn!(
                path = %self.path.display(), %error,
                "can't write the witness of the store; the write itself is safe, damage to it would not be noticed"
            );
        }
    }
}

fn line(revision: Revision) -> String {
    format!("revision {revision:020}\n")
}

fn parse(text: &[u8]) -> Option<Revision> {
    let text = str::from_utf8(text).ok()?;
    let digits = text.strip_prefix("revision ")?.strip_suffix('\n')?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut witness = Witness::lock(dir.path()).unwrap();
        assert_eq!(witness.acknowledged(), None);
        for revision in [41, 1_000_000, 7, Revision::MAX] {
            witness.note(revision);
            assert!(matches!(
                Witness::lock(dir.path()),
                Err(WitnessError::InUse)
            ));
            drop(witness);
            witness = Witness::lock(dir.path()).unwrap();
            assert_eq!(witness.acknowledged(), Some(revision));
        }
    }

    #[test]
    fn what_is_no_line_of_ours_says_nothing() {
        for text in [
            "",
            "revision",
            "revision x\n",
            "revision 000000000000000",
            "\0\0\0\0",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(line(12).as_bytes()), Some(12));
    }
}
