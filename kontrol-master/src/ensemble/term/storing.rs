//! What a run left, on its way to the store: the new state and the handled digest, in one transaction that only the leader
//! can commit.
//!
//! The callback has done its work, so that it must not be done again because the store was away: the commit is tried for as
//! long as this leader may still lead, and again by the next term of the same epoch.

use super::{Context, handled::Handled, run::Finished};
use crate::cluster::{status::Run, store::StoreError};
use kontrol_core::{
    kv::{Compare, Fence, MAX_TXN_BYTES, Op, Outcome, Snapshot, Txn},
    model::Exact,
    view::{STATE, StateRecord, View},
};
use kontrol_runtime::backoff::Backoff;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// A run that succeeded.
#[derive(Debug)]
pub(super) struct Success {
    /// The roster that it handled.
    pub(super) view: Arc<View>,
    /// The new state; none leaves the state as it is.
    pub(super) output: Option<Exact>,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
}

/// The way to the store of one term.
#[derive(Debug, Clone)]
pub(super) struct Storing {
    pub(super) context: Context,
    pub(super) fence: Fence,
    pub(super) over: CancellationToken,
    /// Why nothing goes on; empty when all is well.
    pub(super) trouble: watch::Sender<String>,
}

/// Why the result of a run is not stored.
enum NotStored {
    /// The store said that another master leads.
    Deposed,
    /// It is not fit for the store.
    Failed(String),
    /// The term ended first.
    NotYet,
}

impl Storing {
    /// Stores what a run left.
    pub(super) async fn store(self, success: Success) -> Finished {
        let stored = self.commit(&success).await;
        self.trouble.send_replace(String::new());
        let mut finished = Finished::new(Run {
            digest: success.view.digest(),
            start: success.start,
            duration: success.duration,
            exit_code: 0,
            error: None,
        });
        match stored {
            Ok(()) => finished.handled = Some(Handled::view(&success.view)),
            Err(NotStored::Deposed) => {
                finished.deposed = true;
                finished.run.error =
                    Some("another master leads; the result was not stored".to_owned());
            }
            Err(NotStored::Failed(error)) => finished.run.error = Some(error),
            Err(NotStored::NotYet) => {
                finished.run.error =
                    Some("the term ended before the state could be stored".to_owned());
                finished.unstored = Some(success);
            }
        }
        finished
    }

    async fn commit(&self, success: &Success) -> Result<(), NotStored> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut refusals = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
        let mut found = None;
        loop {
            let (pause, trouble) = match self.attempt(success, found.take()).await {
                Ok(None) => return Ok(()),
                Ok(Some(conflict)) => {
                    found = Some(conflict);
                    continue;
                }
                Err(Trouble::Deposed) => return Err(NotStored::Deposed),
                Err(Trouble::Unfit(error)) => return Err(NotStored::Failed(error)),
                Err(Trouble::Store(error)) => {
                    let text = format!("the callback's state can't be stored yet: {error}");
                    match error {
                        StoreError::Refused(_) => {
                            tracing::error!(
                                %error,
                                "the store refuses the callback's state; a person must look"
                            );
                            if self.context.roster.view().digest() != success.view.digest() {
                                // A newer digest waits; it may leave what the store takes.
                                return Err(NotStored::Failed(text));
                            }
                            (refusals.failed(), text)
                        }
                        StoreError::Unavailable(_)
                        | StoreError::Indeterminate(_)
                        | StoreError::Compacted(_)
                        | StoreError::LeaseGone(_) => {
                            tracing::warn!(%error, "could not store the callback's state yet");
                            (backoff.failed(), text)
                        }
                    }
                }
                Err(Trouble::Unreadable(text)) => (refusals.failed(), text),
            };
            self.trouble.send_replace(trouble);
            if self.over.run_until_cancelled(sleep(pause)).await.is_none() {
                return Err(NotStored::NotYet);
            }
        }
    }

    /// One attempt, from what was found last, else from what the store has now. Tells what stood in the way.
    async fn attempt(
        &self,
        success: &Success,
        found: Option<Snapshot>,
    ) -> Result<Option<Snapshot>, Trouble> {
        let keys = [STATE.to_owned(), self.fence.key().to_owned()];
        let found = match found {
            Some(found) => found,
            None => self.context.store.read(&keys).await?,
        };
        let current = StateRecord::find(&found);
        let (digest, revision) = (success.view.digest().to_string(), success.view.revision());
        let epoch = self.fence.epoch();
        if let Ok((record, _)) = &current
            && (record.epoch, record.revision) == (epoch, revision)
            && record.digest == digest
        {
            // An earlier attempt was committed, though its answer was not clear.
            return Ok(None);
        }
        if self.fence.is_lost(&found) {
            return Err(Trouble::Deposed);
        }
        let (current, modified) =
            current.map_err(|unreadable| Trouble::Unreadable(unreadable.to_string()))?;
        let record = StateRecord {
            // What somebody put meanwhile stays, unless the callback says otherwise.
            state: success.output.clone().or(current.state),
            digest,
            revision,
            epoch,
        };
        let value = serde_json::to_vec(&record)
            .map_err(|error| Trouble::Unfit(format!("the state is no JSON: {error}")))?;
        if value.len() > MAX_TXN_BYTES {
            return Err(Trouble::Unfit(format!(
                "the record of the state has {} bytes, and {MAX_TXN_BYTES} are the limit",
                value.len()
            )));
        }
        let txn = Txn {
            compares: vec![Compare::unchanged(STATE, modified)],
            ops: vec![Op::put(STATE, value)],
            otherwise: keys.to_vec(),
        };
        match self.context.store.commit(self.fence.guard(txn)).await? {
            Outcome::Committed(_) => Ok(None),
            Outcome::Conflict(found) => Ok(Some(found)),
        }
    }
}

/// What stands in the way of a commit.
enum Trouble {
    Deposed,
    Unfit(String),
    Unreadable(String),
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
