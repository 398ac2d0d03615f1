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

use super::state::{Change, Record, State, Step};
use crate::store::{LeaseId, Revision, StoreError};
use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    path::{Path, PathBuf},
};

type Row<'a> = (Revision, Revision, i64, &'a [u8]);

const KEYS: TableDefinition<'_, &str, Row<'static>> = TableDefinition::new("keys");
const HISTORY: TableDefinition<'_, (Revision, u32), (&str, Option<Row<'static>>)> =
    TableDefinition::new("history");
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");

/// The state is in memory anyway, so the database needs little of it.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

type OpenDatabase = fn(&Path) -> Result<Database, DatabaseError>;

/// The file of one ensemble.
pub(super) struct File {
    path: PathBuf,
    ensemble: String,
    open: OpenDatabase,
    /// Closed after a failed write.
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
        let mut file = Self {
            path: dir.join("kontrol.redb"),
            ensemble: ensemble.to_owned(),
            open,
            database: None,
        };
        let state = file.load()?;
        // The file is safe from a power cut only when its name is.
        fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| refused("can't sync the directory", &error))?;
        Ok((file, state))
    }

    /// Opens the database and reads all of it.
    fn load(&mut self) -> Result<State, StoreError> {
        let database = (self.open)(&self.path).map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                return self.refused(
                    &"is in use by another process; give each master a directory of its own, or use etcd",
                );
            }
            self.refused(&error)
        })?;
        self.prepare(&database)?;
        let state = read_state(&database).map_err(|error| self.refused(&error))?;
        self.database = Some(database);
        Ok(state)
    }

    fn refused(&self, error: &dyn fmt::Display) -> StoreError {
        StoreError::Refused(format!("{}: {error}", self.path.display()))
    }

    /// Makes the tables of a new file; checks whose file an old one is.
    fn prepare(&self, database: &Database) -> Result<(), StoreError> {
        let owner = owner(database, &self.ensemble).map_err(|error| self.refused(&error))?;
        if owner == self.ensemble {
            return Ok(());
        }
        Err(self.refused(&format!(
            "holds the ensemble {owner}, not {}; use another directory",
            self.ensemble
        )))
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
        let result = match &self.database {
            Some(database) => write_step(database, step, floor),
            None => Err(WriteError::Before("the file is not open".into())),
        };
        result.map_err(|error| {
            // redb refuses everything after a failed write; opening anew is its way back.
            self.database = None;
            let place = |text| format!("can't write {}: {text}", self.path.display());
            match error {
                WriteError::Before(text) => WriteError::Before(place(text)),
                WriteError::Unclear(text) => WriteError::Unclear(place(text)),
            }
        })
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
    Database::builder().set_cache_size(CACHE_BYTES).create(path)
}

/// The ensemble that the file belongs to: a new file, from now on, to this one.
fn owner(database: &Database, ensemble: &str) -> Result<String, redb::Error> {
    let txn = database.begin_write()?;
    let mut names = txn.open_table(NAMES)?;
    let owner = names.get("ensemble")?.map(|name| name.value().to_owned());
    if let Some(owner) = owner {
        return Ok(owner);
    }
    names.insert("ensemble", ensemble)?;
    drop(names);
    txn.open_table(KEYS)?;
    txn.open_table(HISTORY)?;
    txn.open_table(NUMBERS)?.insert("revision", 0)?;
    txn.commit()?;
    Ok(ensemble.to_owned())
}

fn read_state(database: &Database) -> Result<State, redb::Error> {
    let txn = database.begin_read()?;
    let mut keys = BTreeMap::new();
    for row in txn.open_table(KEYS)?.iter()? {
        let (key, record) = row?;
        keys.insert(key.value().to_owned(), from_row(record.value()));
    }
    let revision = txn
        .open_table(NUMBERS)?
        .get("revision")?
        .map_or(0, |number| number.value());
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
    Ok(State::restore(keys, revision, history))
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
