//! The end of an action on this master: it is written down, and the dispatcher is told.

use super::{End, STOP, Task};
use crate::{
    action::{dispatch::client::Client, history::NotSaved, rollout::Order, wire},
    error::Error,
    model::action::State,
};
use kontrol_proto::v1::dispatch_response::Event as Told;
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Status;

/// How often the end of an action is tried to be written: for as long as the history would keep it.
const SAVE_PAUSE: Duration = Duration::from_secs(1);
/// How long a dispatcher may take to read one message of an action that is over.
const READ_LIMIT: Duration = Duration::from_secs(60);

impl Task {
    pub(super) async fn finish(mut self, end: End) {
        match end {
            End::Over => self.conclude().await,
            End::Overtaken => {
                tracing::warn!(action = %self.id, "another master took the action over");
                self.hand_over().await;
                let message = format!(
                    "another master took over the action {}; ask for it there",
                    self.id
                );
                self.fail(message).await;
            }
            End::Stopping => {
                let _ = self.save(State::Running).await;
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

    /// The other master takes the ends that its record lacks, and asks for no others: those may be forgotten.
    async fn hand_over(&mut self) {
        self.recorded.append(&mut self.forget);
        if self.recorded.is_empty() {
            return;
        }
        let Ok(Some((record, _))) = self.dispatches.history.read(&self.id).await else {
            return;
        };
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

    /// Writes the end down and tells the summary, and does not give up soon where the store can't be reached.
    async fn conclude(mut self) {
        let counts = self.rollout.counts();
        tracing::info!(
            action = %self.id, ok = counts.succeeded, failed = counts.failures(), took = ?self.began.elapsed(),
            "action ended"
        );
        let mut written = self.save(State::Finished).await;
        if let Some(client) = &mut self.client {
            let summary = wire::summary(&counts, self.began.elapsed());
            client.tell(Told::Summary(summary), None);
        }
        let give_up = Instant::now() + self.dispatches.history.refresh() * 2;
        let mut patience = Instant::now() + READ_LIMIT;
        let stop = self.dispatches.token.clone();
        let mut stopping = false;
        loop {
            let told = self.client.as_ref().is_none_or(Client::is_idle);
            if told {
                // Its stream ends here, whatever is still to be written.
                self.client = None;
            }
            let settled = matches!(written, Ok(()) | Err(NotSaved::Overtaken));
            let given_up = Instant::now() >= give_up || (told && !settled && !self.may_wait());
            if told && (settled || given_up || stop.is_cancelled()) {
                if given_up {
                    self.recorded.append(&mut self.forget);
                    let slaves = std::mem::take(&mut self.recorded);
                    self.order(Order::Forget, slaves).await;
                }
                return;
            }
            // All arms are cancel safe: the record is written in the body of its arm.
            tokio::select! {
                progress = Client::progress(self.client.as_mut()), if !told => {
                    if !stopping {
                        patience = Instant::now() + READ_LIMIT;
                    }
                    self.on_client(progress);
                }
                () = sleep(SAVE_PAUSE), if !settled && !given_up => written = self.save(State::Finished).await,
                () = sleep_until(patience), if !told => self.cut_off(stopping),
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
        let unwritten = &self.dispatches.unwritten;
        let waits = self.permits.wait(unwritten);
        if !waits {
            tracing::warn!(action = %self.id, "the end of an action is not recorded: too many wait for the store");
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
        tracing::info!(action = %self.id, why, "the dispatcher did not read to the end; it is cut off");
        if let Some(client) = self.client.take() {
            client.end(Status::aborted(format!(
                "the action {} is over, but {why}; ask for what became of it",
                self.id
            )));
        }
    }
}
