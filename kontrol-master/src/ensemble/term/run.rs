//! One run of the callback, from its input to its state in the store.

use super::{
    handled::{Baseline, Handled},
    pass_on,
    storing::{Storing, Success},
    token::NotIssued,
    validity,
};
use crate::{
    cluster::{
        status::{Run, Running},
        store::SharedStore,
    },
    ensemble::callback::{self, Runner, changes},
};
use kontrol_core::{
    kv::Revision,
    model::{Digest, digest::pods_document},
    view::{STATE, StateRecord, View},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// A run to be made.
pub(super) struct RunTask {
    pub(super) storing: Storing,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) view: Arc<View>,
    pub(super) digest: Digest,
    pub(super) handled: Handled,
}

/// What became of a run.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) run: Run,
    /// The callback was not started, and why: what it is to be handed can't be read from the store.
    pub(super) not_started: Option<String>,
    /// What is handled now; absent when the run failed.
    pub(super) handled: Option<Handled>,
    /// It succeeded, and the term ended before that was stored.
    pub(super) unstored: Option<Success>,
    /// The store said that another master leads.
    pub(super) deposed: bool,
}

impl Finished {
    pub(super) fn new(run: Run) -> Self {
        Self {
            run,
            not_started: None,
            handled: None,
            unstored: None,
            deposed: false,
        }
    }

    /// A run that ended in a way no run should.
    pub(super) fn broken(digest: Digest, error: String) -> Self {
        Self::new(Run {
            digest,
            start: SystemTime::now(),
            duration: Duration::ZERO,
            exit_code: -1,
            error: Some(error),
        })
    }

    fn not_started(digest: Digest, reason: String) -> Self {
        Self {
            not_started: Some(reason.clone()),
            ..Self::broken(digest, reason)
        }
    }
}

impl RunTask {
    pub(super) async fn run(self) -> Finished {
        let mut input = match self.input().await {
            Ok(input) => input,
            Err(reason) => return Finished::not_started(self.digest, reason),
        };
        input.token = match self.storing.issue().await {
            Ok(token) => token,
            Err(error) => {
                return Finished {
                    deposed: matches!(error, NotIssued::Deposed),
                    ..Finished::not_started(self.digest, error.to_string())
                };
            }
        };
        let issued = input.token.is_some();
        let context = &self.storing.context;
        let start = SystemTime::now();
        tracing::info!(digest = %self.digest, pods = self.view.len(), "starting the callback");
        self.storing.trouble.send_replace(String::new());
        context.status.update(|status| {
            status.forget_plans();
            status.running = Some(Running {
                digest: self.digest,
                since: start,
            });
        });
        let confirmed = context.election.confirmed();
        let (sender, lease) = watch::channel(validity(*confirmed.borrow()));
        let run = self.runner.run(input, lease, self.storing.over.clone());
        // Both arms are cancel safe; the lease's confirmations stop with the run that they are for.
        let run = tokio::select! {
            run = run => Some(run),
            () = pass_on(confirmed, sender) => None,
        };
        let storing = self.storing.clone();
        let token_ends = async {
            if issued {
                storing.take_back().await;
            }
        };
        // A store that is slow about the token must not hold up the state.
        let (finished, ()) = tokio::join!(self.finish(run, start), token_ends);
        finished
    }

    async fn finish(self, run: Option<callback::Run>, start: SystemTime) -> Finished {
        let Some(run) = run else {
            return Finished::broken(self.digest, "the election ended".to_owned());
        };
        match run.outcome {
            Err(failure) => Finished::new(Run {
                digest: self.digest,
                start,
                duration: run.duration,
                exit_code: run.exit_code,
                error: Some(failure.to_string()),
            }),
            Ok(output) => {
                let success = Success {
                    view: self.view,
                    output,
                    start,
                    duration: run.duration,
                };
                self.storing.store(success).await
            }
        }
    }

    async fn input(&self) -> Result<callback::Input, String> {
        let store = &self.storing.context.store;
        let baseline = baseline(store, &self.handled).await?;
        if matches!(baseline, Baseline::Forgotten) {
            tracing::warn!(
                "the store has forgotten what was handled last; all pods count as joined"
            );
        }
        input(store, &self.view, &baseline, self.storing.fence.epoch()).await
    }
}

/// What a run would be handed that starts at this view. What the store has forgotten, no master knows but the one that
/// `leads`: it runs the callback with what it remembers, or tells it that all pods have joined.
pub async fn next_input(
    store: &SharedStore,
    view: &View,
    handled: &Handled,
    leads: bool,
) -> Result<callback::Input, String> {
    let baseline = baseline(store, handled).await?;
    let leader = view.leader();
    if matches!(baseline, Baseline::Forgotten) && !leads {
        let whom = leader.map_or_else(
            || "nobody leads now who may remember it; try again".to_owned(),
            |leader| format!("ask the leader, {}", leader.master.address),
        );
        return Err(format!(
            "the store has forgotten what was handled last: {whom}"
        ));
    }
    let epoch = leader.map_or(0, |leader| leader.epoch);
    input(store, view, &baseline, epoch).await
}

/// What changes are told against, with words for when that can't be read.
async fn baseline(store: &SharedStore, handled: &Handled) -> Result<Baseline, String> {
    let baseline = handled.baseline(store).await;
    baseline.map_err(|error| format!("what was handled last can't be read: {error}"))
}

/// What the callback is handed. From a state that is out of date it would make one that undoes what was stored since, so that
/// without the store nothing starts.
async fn input(
    store: &SharedStore,
    view: &View,
    baseline: &Baseline,
    epoch: Revision,
) -> Result<callback::Input, String> {
    let before = match baseline {
        Baseline::Roster(digest, order) => Some((*digest, order.values())),
        Baseline::Nothing | Baseline::Forgotten => None,
    };
    let snapshot = store.read(&[STATE.to_owned()]).await;
    let snapshot = snapshot.map_err(|error| format!("the state can't be read: {error}"))?;
    let (record, _) = StateRecord::find(&snapshot).map_err(|error| error.to_string())?;
    Ok(callback::Input {
        digest: view.digest(),
        pods: pods_document(view.pods()),
        state: record.state,
        changes: changes::document(before, view.pods(), |pod| view.reason(pod)),
        epoch,
        token: None,
    })
}
