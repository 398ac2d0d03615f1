//! How the callback fares, as every master tells it: written by the term on the leader, by the relay elsewhere.

mod wire;

use crate::cluster::roster::{Notice, Roster};
use kontrol_core::model::Digest;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How the callback fares. Times are the leader's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallbackStatus {
    /// Whether a callback is configured on the leader.
    pub configured: bool,
    /// Since when a change waits for the damper.
    pub pending_since: Option<SystemTime>,
    /// When the damper lets a run start for it.
    pub due: Option<SystemTime>,
    /// The run that goes on.
    pub running: Option<Running>,
    /// The last run that ended under this leader.
    pub last_run: Option<Run>,
    /// How many runs failed since the last that succeeded.
    pub failures: u32,
    /// When a failed run is tried again.
    pub retry_at: Option<SystemTime>,
    /// Why no run starts, or why the result of the last is not stored yet; empty when all is well.
    pub error: String,
}

/// A run that goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Running {
    /// The digest that it is for.
    pub digest: Digest,
    /// When it started.
    pub since: SystemTime,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The digest that it was for.
    pub digest: Digest,
    /// When it started.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Its exit code; 128 + N when signal N ended it; -1 when it could not be started.
    pub exit_code: i32,
    /// Why it failed.
    pub error: Option<String>,
}

impl CallbackStatus {
    /// The leader is gone, or leads no longer: what it told of its plans says nothing any more.
    pub fn forget_plans(&mut self) {
        self.running = None;
        self.pending_since = None;
        self.due = None;
        self.retry_at = None;
    }
}

/// Where the callback's status is written and read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Status(watch::Sender<CallbackStatus>);

impl Default for Status {
    fn default() -> Self {
        Self(watch::Sender::new(CallbackStatus::default()))
    }
}

impl Status {
    /// The status now.
    pub fn now(&self) -> CallbackStatus {
        self.0.borrow().clone()
    }

    /// Follows it.
    pub fn follow(&self) -> watch::Receiver<CallbackStatus> {
        self.0.subscribe()
    }

    /// Replaces it.
    pub fn set(&self, status: CallbackStatus) {
        self.update(|now| *now = status);
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut CallbackStatus)) {
        self.0.send_if_modified(|now| {
            let before = now.clone();
            change(now);
            *now != before
        });
    }

    /// Tells the feed when the callback starts and ends, until the token is cancelled.
    pub async fn announce(self, roster: Roster, token: CancellationToken) {
        let mut follow = self.follow();
        let mut before = follow.borrow_and_update().clone();
        while let Some(Ok(())) = token.run_until_cancelled(follow.changed()).await {
            let after = follow.borrow_and_update().clone();
            roster.feed().announce(notices(&before, &after));
            before = after;
        }
    }
}

fn notices(before: &CallbackStatus, after: &CallbackStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let start = |status: &CallbackStatus| status.last_run.as_ref().map(|run| run.start);
    if let Some(run) = &after.last_run
        && start(before) != start(after)
    {
        if before.running.is_none() {
            // It started and ended since the last look.
            notices.push(Notice::CallbackStarted(run.digest));
        }
        notices.push(Notice::CallbackFinished(run.clone()));
    }
    let since = |status: &CallbackStatus| status.running.map(|running| running.since);
    if let Some(running) = after.running
        && since(before) != since(after)
    {
        notices.push(Notice::CallbackStarted(running.digest));
    }
    notices
}
