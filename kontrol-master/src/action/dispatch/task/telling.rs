//! What the dispatcher of an action is told, and what follows from how it reads that.

use super::Task;
use crate::{
    action::{
        dispatch::client::{Client, Piece, Progress},
        wire,
    },
    cluster::error::Error,
};
use kontrol_core::{model::action::Outcome, rollout::Event};
use kontrol_proto::v1::dispatch_response::{Accepted, Event as Told, Output, Started, Target};
use std::time::Duration;
use tokio::time::Instant;

/// How long the dispatcher waits for a master that is not sure that it carries the action, before it is told to look
/// elsewhere: from the first end that is held back, or from when the command must have ended on a slave that says
/// nothing.
const UNSURE_LIMIT: Duration = Duration::from_secs(15);
/// How long the end of one of few targets waits to be recorded before it is told.
const RECORD_LIMIT: Duration = Duration::from_secs(1);

impl Task {
    pub(super) fn accept(&mut self) {
        let targets = self.rollout.targets();
        let accepted = Accepted {
            action_id: self.id.to_string(),
            targets: targets
                .map(|target| Target {
                    key: target.key.clone(),
                    id: target.id.clone(),
                })
                .collect(),
            dispatcher: self.head.dispatcher.clone(),
        };
        tracing::info!(
            targets = accepted.targets.len(),
            dispatcher = self.head.dispatcher,
            detach = self.head.detach,
            "action accepted"
        );
        if let Some(client) = &mut self.client {
            client.tell(Told::Accepted(accepted), None);
        }
    }

    pub(super) fn on_client(&mut self, progress: Progress) {
        match progress {
            Progress::Took(piece) => self.taken(piece),
            Progress::Gone => {
                self.dismiss();
                if !self.head.detach {
                    tracing::info!("the dispatcher went away; cancelling");
                    self.rollout.cancel(Instant::now());
                }
            }
        }
    }

    /// Lets the dispatcher go. What it did not read counts as taken, so that slaves get credit for more.
    fn dismiss(&mut self) -> Option<Client> {
        let mut client = self.client.take()?;
        let unread = client.left_over();
        unread.into_iter().for_each(|piece| self.taken(Some(piece)));
        Some(client)
    }

    fn taken(&mut self, piece: Option<Piece>) {
        if let Some((target, stream, bytes)) = piece {
            self.rollout.taken(target, stream, bytes);
        }
    }

    /// Until when the dispatcher waits while this master is not sure that it carries the action: the slaves may talk to
    /// another master that took it over.
    pub(super) fn unsure_until(&self) -> Instant {
        let silence = self.heard + Duration::from_millis(self.head.timeout_ms) + UNSURE_LIMIT;
        let held = self.standing.holds_since();
        held.map_or(silence, |since| silence.min(since + UNSURE_LIMIT))
    }

    /// Tells the dispatcher to look elsewhere. What runs is ended, unless it is detached: a master that took the action
    /// over does the same.
    pub(super) fn lose_sight(&mut self, now: Instant) {
        let Some(client) = self.dismiss() else {
            return;
        };
        let why = if self.standing.is_sure(self.dispatches.history.seat()) {
            "this master can't write down how the action ended"
        } else {
            "this master is out of touch with the store, and can't tell whether another one took the action over"
        };
        tracing::warn!("{why}: its dispatcher is told to look into the history");
        client.end(
            Error::Unavailable(format!(
                "{why}: what became of {0} is in the history; to look: kontrol-master actions show {0}",
                self.id
            ))
            .into(),
        );
        if !self.head.detach {
            self.rollout.cancel(now);
        }
    }

    pub(super) fn tell_end(&mut self, index: usize) {
        let Some(ended) = self.rollout.ended(index) else {
            return;
        };
        self.dispatches.metrics.action_ended(ended);
        let result = wire::result(self.rollout.target(index), ended);
        if let Some(client) = &mut self.client {
            client.tell(Told::Finished(result), None);
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        let (told, piece) = match event {
            Event::Started(index) => {
                let target = self.rollout.target(index);
                let started = Started {
                    key: target.key.clone(),
                    id: target.id.clone(),
                };
                (Told::Started(started), None)
            }
            Event::Output {
                target,
                stream,
                data,
                truncated,
            } => {
                let piece = (target, stream, data.len());
                let output = Output {
                    key: self.rollout.target(target).key.clone(),
                    stream: wire::stream(stream).into(),
                    data,
                    truncated,
                };
                (Told::Output(output), Some(piece))
            }
            Event::Finished(index) => {
                // The slave keeps such an end, so a master that takes the action over hears the same, if it knows which
                // slave to ask.
                let lasts = self.rollout.ended(index).is_some_and(|ended| {
                    matches!(ended.outcome, Outcome::Exited | Outcome::TimedOut)
                }) && self.rollout.is_as_accepted(index);
                let now = Instant::now();
                let wait = if self.has_few_targets() {
                    RECORD_LIMIT
                } else {
                    Duration::ZERO
                };
                return self.standing.hold(index, lasts.then_some(now + wait), now);
            }
        };
        match &mut self.client {
            Some(client) => client.tell(told, piece),
            None => self.taken(piece),
        }
    }
}
