//! How the callback fares, as every master tells it: written by the term on the leader, by the relay elsewhere.

use crate::cluster::roster::{Notice, Roster};
use kontrol_proto::v1::CallbackStatus;
use prost_types::Timestamp;
use std::time::SystemTime;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

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
        self.0.send_if_modified(|now| {
            let changed = *now != status;
            *now = status;
            changed
        });
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
    let start = |status: &CallbackStatus| status.last_run.as_ref().and_then(|run| run.start);
    if let Some(run) = &after.last_run
        && start(before) != start(after)
    {
        if before.running_since.is_none() {
            // It started and ended since the last look.
            notices.push(Notice::CallbackStarted(run.digest.clone()));
        }
        notices.push(Notice::CallbackFinished(run.clone()));
    }
    if after.running_since.is_some() && after.running_since != before.running_since {
        notices.push(Notice::CallbackStarted(after.running_digest.clone()));
    }
    notices
}

/// A moment of the monotonic clock as wall-clock time, for display.
pub fn timestamp(at: Instant) -> Timestamp {
    let (now, wall) = (Instant::now(), SystemTime::now());
    Timestamp::from(if at > now {
        wall + (at - now)
    } else {
        wall - (now - at)
    })
}
