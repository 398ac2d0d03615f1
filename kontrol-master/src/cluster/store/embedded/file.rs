//! The file behind an embedded store: one redb database that holds what `State` holds, but for its leases.
//!
//! ```text
//! keys      key            -> create-revision, mod-revision, lease (0: none), value
//! history   revision, n    -> key, and what it held before
//! numbers   "revision"     -> the last revision
//! names     "ensemble"     -> the prefix of the ensemble that the file belongs to
//! ```
//!
//! A step is one database transaction, on the disk before `write` returns. When a write fails, nobody knows what reached
//! the disk: the database is closed, and the next write begins by reading the file again.
//!
//! A file is taken as a whole or not at all: every page of it is checked when it is opened, and its revision against the
//! `witness`. A new file gets its name only when it is complete, so an empty or half-made one is never taken for new.

use super::{
    state::{Change, Record, State, Step},
    witness::{Witness, WitnessError},
};
use crate::cluster::store::StoreError;
use bytes::Bytes;
use kontrol_core::kv::{LeaseId, Revision};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
};

type Row<'a> = (Revision, Revision, i64, &'a [u8]);

const KEYS: TableDefinition<'_, &str, Row<'static>> = TableDefinition::new("keys");
const HISTORY: TableDefinition<'_, (Revision, u32), (&str, Option<Row<'static>>)> =
    TableDefinition::new("history");
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");

const NAME: &str = "kontrol.redb";
/// What every database begins with. One without it would be refused by redb too, but for an empty one.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// What to do with a file that is not whole.
const ADVICE: &str = "put a backup of the whole directory in its place, or move it away to begin anew (then seqs begin at 0 again, and the callback's state is gone)";

/// The state is in memory anyway, so the database needs little of it.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

type OpenDatabase = fn(&Path) -> Result<Database, DatabaseError>;

/// The file of one ensemble.
pub(super) struct File {
    path: PathBuf,
    ensemble: String,
    open: OpenDatabase,
    witness: Witness,
    /// Closed while a write is under way, and after one that failed.
    database: Option<Database>,
}

/// Why a step was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// It certainly was not.
    #[error("{0}")]
    Before(String),
    /// It may have been.
    #[error("{0}")]
    Unclear(String),
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Before(text) => Self::Unavailable(text),
            WriteError::Unclear(text) => Self::Indeterminate(text),
        }
    }
}

impl File {
    /// Opens the file in this directory, or makes both.
    pub(super) fn open(dir: &Path, ensemble: &str) -> Result<(Self, State), StoreError> {
        Self::open_with(dir, ensemble, open_database)
    }

    pub(super) fn open_with(
        dir: &Path,
        ensemble: &str,
        open: OpenDatabase,
    ) -> Result<(Self, State), StoreError> {
        let refused = |what: &str, error: &dyn fmt::Display| {
            StoreError::Refused(format!("{what} {}: {error}", dir.display()))
        };
        fs::create_dir_all(dir).map_err(|error| refused("can't make the directory", &error))?;
        let path = dir.join(NAME);
        let witness = Witness::lock(dir).map_err(|error| {
            let text = match error {
                WitnessError::InUse => format!("{}: {error}", path.display()),
                WitnessError::Io(error) => format!("can't use {}: {error}", dir.display()),
            };
            StoreError::Refused(text)
        })?;
        let mut file = Self {
            path,
            ensemble: ensemble.to_owned(),
            open,
            witness,
            database: None,
        };
        if !file
            .path
            .try_exists()
            .map_err(|error| file.refused(&error))?
        {
            file.make()?;
            // The file is safe from a power cut only when its name is.
            fs::File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(|error| refused("can't sync the directory", &error))?;
        }
        let state = file.load()?;
        file.witness.note(state.revision());
        Ok((file, state))
    }

    /// Makes a new file under another name first, so that what bears its name is complete.
    fn make(&mut self) -> Result<(), StoreError> {
        if let Some(revision) = self.witness.acknowledged() {
            tracing::warn!(
                path = %self.path.display(), revision,
                "the store's file is gone, beginning a new one: seqs begin at 0 again, and the callback's state is gone"
            );
        } else {
            tracing::info!(path = %self.path.display(), "making a new store");
        }
        // Of a start that was cut short; nobody else is at it, because of the witness's lock.
        let path = self.path.with_extension("new");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(self.refused(&error));
            }
            _ => {}
        }
        let database = (self.open)(&path).map_err(|error| self.refused(&error))?;
        make_tables(&database, &self.ensemble).map_err(|error| self.refused(&error))?;
        drop(database);
        fs::rename(&path, &self.path).map_err(|error| self.refused(&error))?;
        self.witness.note(0);
        Ok(())
    }

    /// Opens the database, checks and reads all of it.
    fn load(&mut self) -> Result<State, StoreError> {
        let mut magic = Vec::new();
        fs::File::open(&self.path)
            .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut magic))
            .map_err(|error| self.refused(&error))?;
        if magic.is_empty() {
            return Err(self.damaged(&"is empty"));
        }
        if magic != MAGIC {
            return Err(self.damaged(&"is no store, or its beginning is damaged"));
        }
        let database = (self.open)(&self.path).map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                return self.refused(&WitnessError::InUse);
            }
            // A disk that can't be read or written just now is not a damaged file; one that ends too early is.
            if let DatabaseError::Storage(StorageError::Io(io)) = &error
                && io.kind() != std::io::ErrorKind::UnexpectedEof
            {
                return self.refused(&error);
            }
            self.damaged(&error)
        })?;
        let (owner, state) = read_state(&database).map_err(|error| self.damaged(&error))?;
        if owner != self.ensemble {
            return Err(self.refused(&format!(
                "holds the ensemble {owner}, not {}; use another directory",
                self.ensemble
            )));
        }
        if let Some(acknowledged) = self.witness.acknowledged()
            && state.revision() < acknowledged
        {
            return Err(self.refused(&format!(
                "ends at revision {}, but revision {acknowledged} was acknowledged: its last pages are damaged, or it is an older copy; {ADVICE}; to go on from this revision all the same, remove {}",
                state.revision(),
                self.witness.path().display()
            )));
        }
        self.database = Some(database);
        Ok(state)
    }

    fn refused(&self, error: &dyn fmt::Display) -> StoreError {
        StoreError::Refused(format!("{}: {error}", self.path.display()))
    }

    fn damaged(&self, error: &dyn fmt::Display) -> StoreError {
        self.refused(&format!("{error}; {ADVICE}"))
    }

    /// Whether the last write failed, so that only `reload` can tell what is on the disk.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.database.is_none()
    }

    /// Reads the file again after a failed write.
    pub(super) fn reload(&mut self) -> Result<State, StoreError> {
        self.load()
            .map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Makes a step durable. The history before `floor` is dropped from the file.
    pub(super) fn write(&mut self, step: &Step, floor: Revision) -> Result<(), WriteError> {
        // redb refuses everything after a failed write, and a panic would leave it who knows how: it is put back only when
        // all went well. Opening anew is the way back.
        let Some(database) = self.database.take() else {
            return Err(WriteError::Before("the file is not open".into()));
        };
        write_step(&database, step, floor).map_err(|error| {
            let place = |text| format!("can't write {}: {text}", self.path.display());
            match error {
                WriteError::Before(text) => WriteError::Before(place(text)),
                WriteError::Unclear(text) => WriteError::Unclear(place(text)),
            }
        })?;
        self.database = Some(database);
        self.witness.note(step.revision);
        Ok(())
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(path)
}

/// The tables of a new file, which belongs to this ensemble from now on.
fn make_tables(database: &Database, ensemble: &str) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(NAMES)?.insert("ensemble", ensemble)?;
    txn.open_table(KEYS)?;
    txn.open_table(HISTORY)?;
    txn.open_table(NUMBERS)?.insert("revision", 0)?;
    txn.commit()?;
    Ok(())
}

/// Whose file it is, and what it holds.
fn read_state(database: &Database) -> Result<(String, State), redb::Error> {
    let txn = database.begin_read()?;
    let owner = txn.open_table(NAMES)?.get("ensemble")?;
    let owner = owner.map(|name| name.value().to_owned());
    let revision = txn.open_table(NUMBERS)?.get("revision")?;
    let (Some(owner), Some(revision)) = (owner, revision.map(|number| number.value())) else {
        let text = "it does not say whose it is, or at which revision".to_owned();
        return Err(redb::Error::Corrupted(text));
    };
    let mut keys = BTreeMap::new();
    for row in txn.open_table(KEYS)?.iter()? {
        let (key, record) = row?;
        keys.insert(key.value().to_owned(), from_row(record.value()));
    }
    // A row of history tells what was before; what came after is what the next step found, or what is there now.
    let mut after = keys.clone();
    let mut history: VecDeque<Step> = VecDeque::new();
    for row in txn.open_table(HISTORY)?.iter()?.rev() {
        let (at, change) = row?;
        let ((at, _), (key, before)) = (at.value(), change.value());
        let before = before.map(from_row);
        let change = Change {
            key: key.to_owned(),
            after: match before.clone() {
                Some(record) => after.insert(key.to_owned(), record),
                None => after.remove(key),
            },
            before,
        };
        match history.front_mut() {
            Some(step) if step.revision == at => step.changes.insert(0, change),
            Some(_) | None => history.push_front(Step {
                revision: at,
                changes: vec![change],
            }),
        }
    }
    Ok((owner, State::restore(keys, revision, history)))
}

fn write_step(database: &Database, step: &Step, floor: Revision) -> Result<(), WriteError> {
    let stage = || -> Result<redb::WriteTransaction, redb::Error> {
        let txn = database.begin_write()?;
        let mut keys = txn.open_table(KEYS)?;
        let mut history = txn.open_table(HISTORY)?;
        for (n, change) in (0..).zip(&step.changes) {
            match &change.after {
                Some(record) => keys.insert(change.key.as_str(), to_row(record))?,
                None => keys.remove(change.key.as_str())?,
            };
            let before = change.before.as_ref().map(to_row);
            history.insert((step.revision, n), (change.key.as_str(), before))?;
        }
        history.retain_in(..(floor + 1, 0), |_, _| false)?;
        drop((keys, history));
        txn.open_table(NUMBERS)?.insert("revision", step.revision)?;
        Ok(txn)
    };
    let txn = stage().map_err(|error| WriteError::Before(error.to_string()))?;
    txn.commit()
        .map_err(|error| WriteError::Unclear(error.to_string()))
}

fn to_row(record: &Record) -> Row<'_> {
    (
        record.create_revision,
        record.mod_revision,
        record.lease.map_or(0, |lease| lease.0),
        &record.value,
    )
}

fn from_row((create_revision, mod_revision, lease, value): Row<'_>) -> Record {
    Record {
        value: Bytes::copy_from_slice(value),
        create_revision,
        mod_revision,
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}
