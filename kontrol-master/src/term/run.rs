//! One run of the callback, from its input to its state in the store.

use super::{Context, expiry::deposed, handled::Handled, pass_on, validity};
use crate::{
    backoff::Backoff,
    callback::{self, Runner, changes},
    model::{Digest, Exact, digest::pods_document},
    roster::{StateRecord, View, view::STATE},
    store::{Compare, Fence, Op, Outcome, Revision, StoreError, Txn},
};
use kontrol_proto::v1::CallbackRun;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// A run to be made.
pub(super) struct RunTask {
    pub(super) context: Context,
    pub(super) fence: Fence,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) view: Arc<View>,
    pub(super) digest: Digest,
    pub(super) handled: Handled,
    pub(super) over: CancellationToken,
}

/// What became of a run.
#[derive(Debug)]
pub(super) struct Finished {
    digest: String,
    start: SystemTime,
    pub(super) duration: Duration,
    exit_code: i32,
    pub(super) error: Option<String>,
    /// What is handled now; absent when the run failed.
    pub(super) handled: Option<Handled>,
    /// The store said that another master leads.
    pub(super) deposed: bool,
}

impl Finished {
    /// A run that ended in a way no run should.
    pub(super) fn broken(digest: Option<Digest>, error: String) -> Self {
        Self {
            digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
            start: SystemTime::now(),
            duration: Duration::ZERO,
            exit_code: -1,
            error: Some(error),
            handled: None,
            deposed: false,
        }
    }

    /// The run as users are told of it.
    pub(super) fn report(&self) -> CallbackRun {
        CallbackRun {
            digest: self.digest.clone(),
            start: Some(self.start.into()),
            duration: self.duration.try_into().ok(),
            exit_code: self.exit_code,
            error: self.error.clone().unwrap_or_default(),
        }
    }
}

/// Why the result of a run was not stored.
enum NotStored {
    Deposed,
    Failed(String),
}

impl RunTask {
    pub(super) async fn run(self) -> Finished {
        let start = SystemTime::now();
        let baseline = self.handled.baseline(&self.context.store).await;
        let before = baseline
            .as_ref()
            .map(|(digest, order)| (*digest, order.values()));
        let state = self.state().await;
        let input = callback::Input {
            digest: self.digest,
            pods: pods_document(self.view.pods()),
            state,
            changes: changes::document(before, self.view.pods()),
            epoch: self.fence.epoch(),
        };
        let confirmed = self.context.election.confirmed();
        let (sender, lease) = watch::channel(validity(*confirmed.borrow()));
        let run = self.runner.run(input, lease, self.over.clone());
        // Both arms are cancel safe; the lease's confirmations stop with the run that they are for.
        let run = tokio::select! {
            run = run => run,
            () = pass_on(confirmed, sender) => {
                return Finished::broken(Some(self.digest), "the election ended".to_owned());
            }
        };
        let mut finished = Finished {
            digest: self.digest.to_string(),
            start,
            duration: run.duration,
            exit_code: run.exit_code,
            error: None,
            handled: None,
            deposed: false,
        };
        match run.outcome {
            Err(failure) => finished.error = Some(failure.to_string()),
            Ok(output) => match self.store(output).await {
                Ok(()) => finished.handled = Some(Handled::view(&self.view)),
                Err(NotStored::Deposed) => {
                    finished.deposed = true;
                    finished.error =
                        Some("another master leads; the result was not stored".to_owned());
                }
                Err(NotStored::Failed(error)) => finished.error = Some(error),
            },
        }
        finished
    }

    /// The state as the store has it: the roster may not show yet what the last run stored.
    async fn state(&self) -> Option<Exact> {
        match self.context.store.read(&[STATE.to_owned()]).await {
            Ok(snapshot) => {
                let entry = snapshot.entries.first()?;
                serde_json::from_slice::<StateRecord>(&entry.value)
                    .ok()?
                    .state
            }
            Err(error) => {
                tracing::warn!(%error, "can't read the state from the store; using the last one known");
                self.context.roster.view().state().0.state.clone()
            }
        }
    }

    /// Stores the new state and the handled digest, in one transaction that only the leader can commit.
    async fn store(&self, output: Option<Exact>) -> Result<(), NotStored> {
        let view = self.context.roster.view();
        let (state, revision) = view.state();
        let mut current = (StateRecord::clone(state), revision);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let record = StateRecord {
                // What somebody put meanwhile stays, unless the callback says otherwise.
                state: output.clone().or(current.0.state.take()),
                digest: self.digest.to_string(),
                revision: self.view.revision(),
                epoch: self.fence.epoch(),
            };
            let keys = [STATE.to_owned(), self.fence.key().to_owned()];
            let txn = Txn {
                compares: vec![compare(current.1)],
                // A record of strings, numbers and JSON has no way to fail to become JSON.
                ops: vec![Op::put(
                    STATE,
                    serde_json::to_vec(&record).unwrap_or_default(),
                )],
                otherwise: keys.to_vec(),
            };
            let outcome = match self.context.store.commit(self.fence.guard(txn)).await {
                Err(StoreError::Indeterminate(_)) => {
                    let read = self.context.store.read(&keys).await;
                    read.map(Outcome::Conflict)
                }
                outcome => outcome,
            };
            match outcome {
                Ok(Outcome::Committed(_)) => return Ok(()),
                Ok(Outcome::Conflict(snapshot)) => {
                    let found = snapshot.entries.iter().find(|entry| entry.key == STATE);
                    let found = found.map(|entry| {
                        let record =
                            serde_json::from_slice::<StateRecord>(&entry.value).unwrap_or_default();
                        (record, entry.mod_revision)
                    });
                    current = found.unwrap_or_default();
                    let ours =
                        current.0.epoch == record.epoch && current.0.revision == record.revision;
                    if ours && current.0.digest == record.digest {
                        return Ok(());
                    }
                    if deposed(&self.fence, &snapshot) {
                        return Err(NotStored::Deposed);
                    }
                }
                Err(StoreError::Refused(cause)) => {
                    tracing::error!(
                        cause,
                        "the store refuses the callback's state; a person must look"
                    );
                    return Err(NotStored::Failed(format!(
                        "the store refuses the state: {cause}"
                    )));
                }
                Err(error) => {
                    // The callback did its work: its result is kept as long as this master may still lead.
                    tracing::warn!(%error, "could not store the callback's state yet");
                    current.0.state = record.state.filter(|_| output.is_none());
                    let pause = sleep(backoff.failed());
                    if self.over.run_until_cancelled(pause).await.is_none() {
                        return Err(NotStored::Failed(
                            "the term ended before the state could be stored".to_owned(),
                        ));
                    }
                }
            }
        }
    }
}

fn compare(revision: Revision) -> Compare {
    match revision {
        0 => Compare::Absent(STATE.to_owned()),
        revision => Compare::ModRevision(STATE.to_owned(), revision),
    }
}
