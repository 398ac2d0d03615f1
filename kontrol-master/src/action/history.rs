//! The history: `actions/<id>` in the store, for as long as the retention says.
//!
//! In etcd a record is bound to a lease and expires with it. Leases cost etcd more than keys do, so one lease serves
//! all records of some time. In the stores inside a master no lease expires: there the leader deletes old records. In
//! every store it deletes the oldest ones when the history grows too large. The master that carries an action writes
//! its record, and compares the revision that it wrote before: so it notices when another master took the action over.
//! A master that takes an action over compares more: that it leads, and that the presence and the candidacy of the
//! former carrier are gone.

mod orphan;
#[cfg(test)]
mod tests;

pub use orphan::{Orphan, Taking};

use crate::cluster::{
    election::Election,
    roster::Roster,
    store::{SharedStore, StoreError},
};
use kontrol_core::{
    kv::{Compare, Entry, Fence, LeaseId, MAX_TXN_OPS, Op, Outcome, Revision, Txn},
    model::action::{ActionId, Record, State},
    view::{KnownAction, View, action_key},
};
use kontrol_runtime::clock::now_ms;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Most actions that are kept, and most bytes of them: the oldest make room.
const MAX_ACTIONS: usize = 10_000;
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How often the leader looks for what is to be deleted.
const SWEEP: Duration = Duration::from_secs(5);
/// One lease serves the records of this part of the retention, and lasts that much longer.
const LEASES: u32 = 12;
/// How often a record is written again over what this master itself wrote.
const TRIES: u32 = 3;
/// How many may wait for a lease at a time.
const QUEUE: usize = 1024;

/// Handle on the history. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    store: SharedStore,
    election: Election,
    leases: Option<mpsc::Sender<Ask>>,
    retention: Duration,
}

/// Asks for a lease: another one than this, which is gone.
#[derive(Debug)]
struct Ask {
    gone: Option<LeaseId>,
    reply: oneshot::Sender<Result<LeaseId, StoreError>>,
}

/// The task behind [`History`].
#[derive(Debug)]
pub struct HistoryTask {
    store: SharedStore,
    roster: Roster,
    election: Election,
    retention: Duration,
    asked: mpsc::Receiver<Ask>,
    lease: Option<(LeaseId, Instant)>,
}

/// Why a record was not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotSaved {
    /// Another master writes it now.
    #[error("another master took the action over")]
    Overtaken,
    /// It is not there any more: it was deleted by hand, or went away with its lease.
    #[error("the record is gone")]
    Gone,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NotSaved {
    /// Whether nothing was written, for certain.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Store(StoreError::Indeterminate(_)))
    }
}

impl History {
    /// A history that keeps actions for this long after they were last written, and its task.
    pub fn new(
        store: SharedStore,
        roster: Roster,
        election: Election,
        retention: Duration,
    ) -> (Self, HistoryTask) {
        let (sender, asked) = mpsc::channel(QUEUE);
        let history = Self {
            leases: store.leases_expire().then_some(sender),
            store: Arc::clone(&store),
            election: election.clone(),
            retention,
        };
        let task = HistoryTask {
            store,
            roster,
            election,
            retention,
            asked,
            lease: None,
        };
        (history, task)
    }

    /// Writes the record of an action whose last revision is `known` (0: there is none yet). Tells its revision.
    pub async fn save(&self, record: Record, known: Revision) -> Result<Revision, NotSaved> {
        self.write(record, known, None, Vec::new()).await
    }

    /// Writes the record of an action that this master takes over. Tells its revision.
    pub async fn take(&self, record: Record, taking: Taking) -> Result<Revision, NotSaved> {
        let Taking {
            revision,
            fence,
            absence,
        } = taking;
        self.write(record, revision, fence, absence).await
    }

    /// The candidacy of this master, as it is to be named by the records that it writes, while that surely stands.
    pub fn seat(&self) -> Option<LeaseId> {
        self.election.seat()
    }

    async fn write(
        &self,
        record: Record,
        mut known: Revision,
        fence: Option<Fence>,
        more: Vec<Compare>,
    ) -> Result<Revision, NotSaved> {
        let key = action_key(&record.head.id);
        let instance = record.head.instance.clone();
        let value: bytes::Bytes = record.encode().into();
        let (mut gone, mut tries) = (None, 0);
        // Once a write may have happened, no later failure says that none did.
        let mut unclear = false;
        let failed = |error: StoreError, unclear: bool| {
            if unclear {
                StoreError::Indeterminate(error.to_string())
            } else {
                error
            }
        };
        loop {
            let lease = self.lease(gone).await;
            let lease = lease.map_err(|error| failed(error, unclear))?;
            let own = Compare::unchanged(&key, known);
            let txn = Txn {
                compares: more.iter().cloned().chain([own]).collect(),
                ops: vec![Op::Put {
                    key: key.clone(),
                    value: value.clone(),
                    lease,
                }],
                otherwise: vec![key.clone()],
            };
            let txn = match &fence {
                Some(fence) => fence.guard(txn),
                None => txn,
            };
            let outcome = match self.store.commit(txn).await {
                Err(StoreError::Indeterminate(_)) => {
                    unclear = true;
                    let read = self.store.read(std::slice::from_ref(&key)).await;
                    Outcome::Conflict(read.map_err(|error| failed(error, unclear))?)
                }
                // It ended early, by somebody's hand: another is granted, once.
                Err(StoreError::LeaseGone(lease)) if gone.is_none() => {
                    gone = Some(lease);
                    continue;
                }
                outcome => outcome.map_err(|error| failed(error, unclear))?,
            };
            let not_written = || {
                let cause = "the record was not written".to_owned();
                failed(StoreError::Unavailable(cause), unclear).into()
            };
            return match outcome {
                Outcome::Committed(revision) => Ok(revision),
                Outcome::Conflict(found) => match found.entries.first() {
                    Some(entry) if entry.value == value => Ok(entry.mod_revision),
                    Some(entry) if entry.mod_revision == known => Err(not_written()),
                    // An earlier write of this master, of which it was not known whether it was done.
                    Some(entry)
                        if tries < TRIES && writer(&entry.value).as_ref() == Some(&instance) =>
                    {
                        tries += 1;
                        unclear = true;
                        known = entry.mod_revision;
                        continue;
                    }
                    None if known > 0 => Err(NotSaved::Gone),
                    None => Err(not_written()),
                    Some(_) => Err(NotSaved::Overtaken),
                },
            };
        }
    }

    /// How often a record that does not change is to be written again, lest it goes away with its lease.
    pub fn refresh(&self) -> Duration {
        self.retention / 2
    }

    async fn lease(&self, gone: Option<LeaseId>) -> Result<Option<LeaseId>, StoreError> {
        let Some(leases) = &self.leases else {
            return Ok(None);
        };
        let stopping = || StoreError::Unavailable("this master is shutting down".to_owned());
        let (reply, answer) = oneshot::channel();
        let ask = leases.send(Ask { gone, reply });
        ask.await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?.map(Some)
    }

    /// Reads the record of an action.
    pub async fn read(&self, id: &ActionId) -> Result<Option<(Record, Revision)>, StoreError> {
        let snapshot = self.store.read(&[action_key(id)]).await?;
        let Some(entry) = snapshot.entries.first() else {
            return Ok(None);
        };
        Ok(parse(id, entry).map(|record| (record, entry.mod_revision)))
    }
}

fn parse(id: &ActionId, entry: &Entry) -> Option<Record> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::warn!(%id, %error, "the record of an action can't be read"))
        .ok()
}

/// The instance of the master that wrote a record.
fn writer(value: &[u8]) -> Option<String> {
    let record: Record = serde_json::from_slice(value).ok()?;
    Some(record.head.instance)
}

impl HistoryTask {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All arms are cancel safe; each call of the store has a deadline of its own.
            tokio::select! {
                () = token.cancelled() => return,
                Some(ask) = self.asked.recv() => self.answer(ask).await,
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    /// Answers one request and all that wait behind it with one call, so that a store that does not answer delays them
    /// once.
    async fn answer(&mut self, ask: Ask) {
        let lease = self.lease(ask.gone).await;
        let mut waiting = vec![ask];
        if lease.is_err() {
            waiting.extend(std::iter::from_fn(|| self.asked.try_recv().ok()).take(QUEUE));
        }
        for ask in waiting {
            // The caller may have stopped waiting.
            let _ = ask.reply.send(lease.clone());
        }
    }

    async fn lease(&mut self, gone: Option<LeaseId>) -> Result<LeaseId, StoreError> {
        let now = Instant::now();
        let bucket = self.retention / LEASES;
        if let Some((lease, granted)) = self.lease
            && Some(lease) != gone
            && now - granted < bucket
        {
            return Ok(lease);
        }
        let (lease, _) = self.store.grant(self.retention + bucket).await?;
        self.lease = Some((lease, now));
        Ok(lease)
    }

    /// Deletes what is too old or too much. Only the leader does.
    async fn sweep(&self) {
        let Some(fence) = self.election.leads() else {
            return;
        };
        let expires = !self.store.leases_expire();
        let view = self.roster.view();
        let doomed = doomed(&view, now_ms(), expires.then_some(self.retention));
        for some in doomed.chunks(MAX_TXN_OPS) {
            let keys = some.iter().map(|action| action_key(&action.head.id));
            let txn = Txn {
                compares: keys
                    .clone()
                    .zip(some)
                    .map(|(key, action)| Compare::ModRevision(key, action.mod_revision))
                    .collect(),
                ops: keys.map(Op::Delete).collect(),
                otherwise: Vec::new(),
            };
            if let Err(error) = self.store.commit(fence.guard(txn)).await {
                tracing::debug!(%error, "could not delete old actions yet");
                return;
            }
        }
    }
}

/// The actions to delete: those that are over for longer than the retention, and the oldest of too many. One that still
/// runs stays.
fn doomed(view: &View, now_ms: u64, retention: Option<Duration>) -> Vec<Arc<KnownAction>> {
    let actions = view.actions();
    let mut count = actions.len();
    let mut bytes: usize = actions.values().map(|action| action.bytes).sum();
    let mut doomed = Vec::new();
    for action in actions.values() {
        if action.head.state != State::Finished {
            continue;
        }
        let finished = action.head.finished_ms.unwrap_or(action.head.created_ms);
        let age = Duration::from_millis(now_ms.saturating_sub(finished));
        if retention.is_some_and(|retention| age > retention)
            || count > MAX_ACTIONS
            || bytes > MAX_BYTES
        {
            count -= 1;
            bytes -= action.bytes;
            doomed.push(Arc::clone(action));
        }
    }
    doomed
}
