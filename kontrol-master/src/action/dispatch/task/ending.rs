//! The end of an action on this master: it is written down, and the dispatcher is told.

use super::{End, STOP, Task, recording::written};
use crate::{
    action::{dispatch::client::Client, history::NotSaved, wire},
    cluster::error::Error,
};
use kontrol_core::{
    model::action::{Record, State},
    rollout::Order,
};
use kontrol_proto::v1::dispatch_response::Event as Told;
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

/// The pause between two tries to write the end of an action.
const SAVE_PAUSE: Duration = Duration::from_secs(1);
/// How often an end that is held back is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a dispatcher may take to read one message of an action that is over.
const READ_LIMIT: Duration = Duration::from_secs(60);

impl Task {
    pub(super) async fn finish(mut self, end: End) {
        match end {
            End::Over => self.conclude().await,
            End::Overtaken => self.let_go().await,
            End::Stopping => {
                // The write goes on after this; only the dispatcher can't wait longer for what it lets be told.
                let _ = timeout(STOP / 2, self.save(State::Running)).await;
                let what = if self.head.detach {
                    "goes on where it runs"
                } else {
                    "is being cancelled"
                };
                let message = format!(
                    "this master stops; the action {} {what}; ask another master for it",
                    self.id
                );
                self.fail(message).await;
            }
        }
    }

    /// Another master carries the action now. It tells the ends that were held back here.
    async fn let_go(&mut self) {
        let read = self.dispatches.history.read(&self.id).await;
        let record = read.ok().flatten().map(|(record, _)| record);
        let by = record.as_ref().map_or_else(String::new, |record| {
            format!(", {}, carries it now", record.head.master)
        });
        tracing::warn!("another master took the action over{by}");
        if let Some(record) = record {
            self.hand_over(&record).await;
        }
        let message = format!(
            "another master took over the action {0} while this one was out of touch{by}; to look: kontrol-master actions show {0}",
            self.id
        );
        self.fail(message).await;
    }

    /// Lets slaves forget the ends that the other master's record has. It asks the slaves only for the others.
    async fn hand_over(&mut self, record: &Record) {
        self.recorded.append(&mut self.forget);
        if self.recorded.is_empty() {
            return;
        }
        let ended: HashSet<&str> = record
            .results
            .iter()
            .filter(|result| result.outcome.is_some())
            .map(|result| result.key.as_str())
            .collect();
        let mut slaves = std::mem::take(&mut self.recorded);
        slaves.retain(|slave| ended.contains(slave.key.to_string().as_str()));
        self.order(Order::Forget, slaves).await;
    }

    async fn fail(&mut self, message: String) {
        if let Some(mut client) = self.client.take() {
            let _ = timeout(STOP / 2, client.flush()).await;
            client.end(Error::Unavailable(message).into());
        }
    }

    /// Writes the end down and tells the summary. While the store can't be reached, it tries again for a long time.
    async fn conclude(mut self) {
        let counts = self.rollout.counts();
        tracing::info!(
            ok = counts.succeeded, failed = counts.failures(), took = ?self.began.elapsed(),
            "action ended"
        );
        let mut summary = Some(wire::summary(&counts, self.began.elapsed()));
        let give_up = Instant::now() + self.dispatches.history.refresh() * 2;
        let mut patience = Instant::now() + READ_LIMIT;
        let stop = self.dispatches.token.clone();
        let mut stopping = false;
        // Whether the end is being written; whether that was tried; whether there is nothing left to be written.
        let (mut writing, mut tried, mut settled) = (false, false, false);
        let mut save_at = Instant::now();
        loop {
            let now = Instant::now();
            let seat = self.dispatches.history.seat();
            for index in self.standing.release(seat, now) {
                self.tell_end(index);
            }
            if !settled && self.saving.is_none() && now >= save_at && now < give_up {
                save_at = now + SAVE_PAUSE;
                writing = self.begin(State::Finished).is_ok();
                tried |= !writing;
            }
            let held = self.standing.holds_since().is_some();
            if let Some(client) = &mut self.client
                && !held
                && tried
                && let Some(summary) = summary.take()
            {
                client.tell(Told::Summary(summary), None);
                patience = now + READ_LIMIT;
            }
            if held && now >= self.unsure_until() {
                self.lose_sight(now);
            }
            let idle = self.client.as_ref().is_none_or(Client::is_idle);
            let told = self.client.is_none() || (idle && summary.is_none());
            if told {
                // Its stream ends here, whatever is still to be written.
                self.client = None;
            }
            let given_up = now >= give_up || (told && tried && !settled && !self.may_wait());
            let ends = settled || given_up || stop.is_cancelled();
            if told && ends && (self.saving.is_none() || given_up) {
                // If the store may have a record, a master takes the ends from the slaves later (see `custody`).
                if given_up && !self.standing.is_recorded() {
                    self.recorded.append(&mut self.forget);
                    let slaves = std::mem::take(&mut self.recorded);
                    self.order(Order::Forget, slaves).await;
                }
                return;
            }
            // All arms are cancel safe: the write is a task of its own.
            tokio::select! {
                progress = Client::progress(self.client.as_mut()), if !told => {
                    if !stopping {
                        patience = Instant::now() + READ_LIMIT;
                    }
                    self.on_client(progress);
                }
                saved = written(self.saving.as_mut()) => {
                    // If this was an earlier write, of an action that still went on, the end is written next.
                    tried |= writing;
                    match self.wrote(saved).await {
                        Ok(()) => settled = writing,
                        Err(NotSaved::Overtaken) if summary.is_none() => settled = true,
                        Err(NotSaved::Overtaken) => return self.let_go().await,
                        Err(NotSaved::Gone | NotSaved::Store(_)) => {}
                    }
                }
                () = sleep_until(save_at), if !settled && self.saving.is_none() && now < give_up => {}
                () = sleep_until(now + LOOK), if held => {}
                () = sleep_until(patience), if !told && (stopping || !idle) => self.cut_off(stopping),
                () = stop.cancelled(), if !told && !stopping => {
                    stopping = true;
                    patience = patience.min(Instant::now() + STOP / 2);
                }
            }
        }
    }

    /// An end that the store does not take may wait, so that it is written once the store is back, but not in the place of an
    /// action that runs. False when too many wait.
    fn may_wait(&mut self) -> bool {
        let waits = self.share.wait(&self.dispatches.budget);
        if !waits {
            tracing::warn!("the end of an action is not recorded: too many wait for the store");
        }
        waits
    }

    /// The action is over, and its dispatcher did not read that in time.
    fn cut_off(&mut self, stopping: bool) {
        let why = if stopping {
            "this master stops"
        } else {
            "you read nothing for a minute"
        };
        tracing::info!(why, "the dispatcher did not read to the end; it is cut off");
        if let Some(client) = self.client.take() {
            client.end(Status::aborted(format!(
                "the action {} is over, but {why}; ask for what became of it",
                self.id
            )));
        }
    }
}
