//! The stores that live inside one master: `memory:`, and `file:DIR` with a file behind it.
//!
//! The state is behind a lock that is held for a few lines and never across an await: in memory every call is done at
//! once, without a task or a timer. With a file, the one writer plans a step, makes it durable on a blocking thread,
//! and only then applies it: readers never see what a crash could take back. A write that its caller gave up still
//! runs to its end.
//!
//! Leases never expire: they guard nothing here, because their only user is this process. The keys bound to one go away
//! when it is revoked, and when the file is opened again.

mod file;
mod state;
mod witness;

use self::{
    file::File,
    state::{Plan, State, Step},
};
use super::{Store, StoreError, Watch};
use async_trait::async_trait;
use kontrol_core::kv::{Events, LeaseId, MAX_TXN_OPS, Outcome, Revision, Snapshot, Txn};
use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedMutexGuard, watch};

/// A store inside this process.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// Serves one writer after the other, in the order in which they came.
    file: Option<Arc<tokio::sync::Mutex<File>>>,
}

/// What the store shares with its watches.
struct Shared {
    state: Mutex<State>,
    /// The last revision; it wakes the watches.
    news: watch::Sender<Revision>,
    /// A write failed, and the file could not be read since.
    in_doubt: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Planning does not change the state and applying can't fail half-way, so a panic leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, step: Step) {
        let revision = step.revision;
        self.lock().apply(step);
        self.news.send_replace(revision);
    }
}

/// A write, as the state that is then current understands it.
type Decide = Box<dyn FnOnce(&State) -> Result<Plan, StoreError> + Send>;

impl EmbeddedStore {
    /// An empty store in memory.
    pub fn memory() -> Self {
        Self::new(State::default(), None)
    }

    /// The store in the file of this directory, made when it is not there. The keys bound to leases are deleted: whoever
    /// kept them alive is gone.
    pub fn file(dir: &Path, ensemble: &str) -> Result<Self, StoreError> {
        let (file, state) = File::open(dir, ensemble)?;
        Self::with_file(file, state)
    }

    fn with_file(mut file: File, mut state: State) -> Result<Self, StoreError> {
        if let Some(step) = state.plan_release(None) {
            file.write(&step, state.floor())?;
            state.apply(step);
        }
        Ok(Self::new(state, Some(file)))
    }

    fn new(state: State, file: Option<File>) -> Self {
        Self {
            shared: Arc::new(Shared {
                news: watch::Sender::new(state.revision()),
                state: Mutex::new(state),
                in_doubt: AtomicBool::new(false),
            }),
            file: file.map(|file| Arc::new(tokio::sync::Mutex::new(file))),
        }
    }

    /// Decides about a write, makes it durable, applies it.
    async fn write(&self, decide: Decide) -> Result<Outcome, StoreError> {
        let shared = self.shared.clone();
        let Some(file) = &self.file else {
            let mut state = shared.lock();
            let step = match decide(&state)? {
                Plan::Done(outcome) => return Ok(outcome),
                Plan::Step(step) => step,
            };
            let revision = step.revision;
            state.apply(step);
            drop(state);
            shared.news.send_replace(revision);
            return Ok(Outcome::Committed(revision));
        };
        let file = file.clone().lock_owned().await;
        let writer = Arc::clone(&shared);
        let work = tokio::task::spawn_blocking(move || write_through(file, &writer, decide));
        work.await.unwrap_or_else(|error| {
            // The file is closed: it is taken out while it is written.
            shared.in_doubt.store(true, Ordering::Release);
            let reason = format!("the writer of the file broke off: {error}");
            Err(StoreError::Indeterminate(reason))
        })
    }

    /// The state to read from, once it is sure to be what is on the disk.
    async fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        if let Some(file) = &self.file
            && self.shared.in_doubt.load(Ordering::Acquire)
        {
            let mut file = file.clone().lock_owned().await;
            let shared = self.shared.clone();
            let work = tokio::task::spawn_blocking(move || settle(&mut file, &shared));
            work.await.unwrap_or_else(|error| {
                let reason = format!("the reader of the file broke off: {error}");
                Err(StoreError::Unavailable(reason))
            })?;
        }
        Ok(self.shared.lock())
    }

    /// Forgets the history but for the last so many revisions.
    #[cfg(test)]
    pub(super) fn forget_all_but(&self, revisions: usize) {
        self.shared.lock().forget_all_but(revisions);
    }
}

/// Plans a step, makes it durable, applies it. Nobody else writes meanwhile, so the plan stays right without the lock.
fn write_through(
    mut file: OwnedMutexGuard<File>,
    shared: &Shared,
    decide: Decide,
) -> Result<Outcome, StoreError> {
    settle(&mut file, shared)?;
    let (plan, floor) = {
        let state = shared.lock();
        (decide(&state)?, state.floor())
    };
    let step = match plan {
        Plan::Done(outcome) => return Ok(outcome),
        Plan::Step(step) => step,
    };
    let revision = step.revision;
    match file.write(&step, floor) {
        Ok(()) => shared.apply(step),
        Err(error) => {
            shared.in_doubt.store(true, Ordering::Release);
            tracing::warn!(%error, "a write of the store's file failed, reading the file again");
            if settle(&mut file, shared).is_err() {
                return Err(error.into());
            }
            if shared.lock().revision() != revision {
                return Err(StoreError::Unavailable(error.to_string()));
            }
        }
    }
    Ok(Outcome::Committed(revision))
}

/// After a failed write, finds out what is on the disk.
fn settle(file: &mut File, shared: &Shared) -> Result<(), StoreError> {
    if file.is_in_doubt() {
        let truth = file.reload()?;
        let revision = truth.revision();
        shared.lock().succeed(truth);
        shared.in_doubt.store(false, Ordering::Release);
        shared.news.send_replace(revision);
    }
    Ok(())
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(self.state().await?.snapshot())
    }

    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.state().await?.snapshot_at(prefix, revision)
    }

    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        if keys.len() > MAX_TXN_OPS {
            let reason = format!("a read of {} keys; {MAX_TXN_OPS} is the most", keys.len());
            return Err(StoreError::Refused(reason));
        }
        Ok(self.state().await?.read(keys))
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check().map_err(StoreError::Refused)?;
        self.write(Box::new(move |state| state.plan(txn))).await
    }

    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(EmbeddedWatch {
            news: self.shared.news.subscribe(),
            shared: self.shared.clone(),
            behind,
        }))
    }

    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        // Drawn, not counted: the number of a lease must not come again after a restart.
        let lease = LeaseId(rand::random_range(1..i64::MAX));
        self.shared.lock().grant(lease, ttl);
        Ok((lease, ttl))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.shared.lock().lease(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        // The lease ends first, so that no key can be bound to it any more.
        self.shared.lock().end(lease);
        let release = move |state: &State| {
            Ok(match state.plan_release(Some(lease)) {
                Some(step) => Plan::Step(step),
                None => Plan::Done(Outcome::Committed(state.revision())),
            })
        };
        self.write(Box::new(release)).await.map(|_| ())
    }

    fn leases_expire(&self) -> bool {
        false
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A watch holds no events, only how far it has come: a slow one costs nothing until the history forgets its place.
struct EmbeddedWatch {
    shared: Arc<Shared>,
    news: watch::Receiver<Revision>,
    behind: Revision,
}

#[async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            // Marked as seen before the look, so that a change right after it wakes the wait below.
            self.news.borrow_and_update();
            let events = self.shared.lock().since(self.behind)?;
            if let Some(events) = events {
                self.behind = events.revision;
                return Ok(events);
            }
            if self.news.changed().await.is_err() {
                return Err(StoreError::Unavailable("the store is closed".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
