//! The end of a run of the callback, and what is told about it.

use super::{Deposed, QUARANTINE, Term, run::Finished, storing::Success};
use kontrol_core::model::Digest;
use kontrol_runtime::clock::wall;
use std::time::SystemTime;
use tokio::time::{Instant, sleep};

/// The times that were told last.
#[derive(Default)]
pub(super) struct Told {
    pending: OnWall,
    due: OnWall,
}

/// A time with what it is by the wall clock, which comes out a little different each time that it is asked.
#[derive(Default)]
struct OnWall(Option<(Instant, SystemTime)>);

impl OnWall {
    /// The same for the same time.
    fn of(&mut self, at: Option<Instant>) -> Option<SystemTime> {
        if self.0.map(|(known, _)| known) != at {
            self.0 = at.map(|at| (at, wall(at)));
        }
        self.0.map(|(_, wall)| wall)
    }
}

impl Term {
    pub(super) fn on_finished(
        &mut self,
        finished: Result<Finished, tokio::task::JoinError>,
    ) -> Result<(), Deposed> {
        let Some(digest) = self.running.take().map(|running| running.digest) else {
            return Ok(());
        };
        let now = Instant::now();
        let finished = finished.unwrap_or_else(|error| {
            tracing::error!(%error, "the task of a run panicked; this is a bug, please report it with the lines above");
            // Nobody waits any more for the end of what it started.
            self.schedule.bar(now + QUARANTINE);
            Finished::broken(digest, format!("the run broke off, which is a bug: {error}"))
        });
        if let Some(reason) = &finished.not_started {
            self.put_off(digest, reason, now);
            return Ok(());
        }
        self.context
            .metrics
            .callback_run(finished.run.error.is_none(), finished.run.duration);
        match &finished.run.error {
            None => self.schedule.on_success(),
            Some(error) => {
                let failed = self.schedule.on_failure(digest, now);
                tracing::warn!(%digest, error, count = failed.count, retry_in = ?(failed.retry_at - now), "the callback failed; nothing of it is kept");
            }
        }
        let failed = self.schedule.failed();
        self.context.status.update(|status| {
            status.running = None;
            status.failures = failed.map_or(0, |failed| failed.count);
            status.retry_at = failed.map(|failed| wall(failed.retry_at));
            status.last_run = Some(finished.run.clone());
        });
        if let Some(handled) = finished.handled {
            tracing::info!(digest = %handled.digest(), took = ?finished.run.duration, "the callback handled the roster");
            self.remember(handled);
        }
        if finished.deposed {
            Err(Deposed)
        } else {
            Ok(())
        }
    }

    /// A run could not be started: the store does not tell what the callback is to be handed.
    pub(super) fn put_off(&mut self, digest: Digest, reason: &str, now: Instant) {
        let failed = self.schedule.on_unread(digest, now);
        if self.trouble.borrow().is_empty() {
            tracing::warn!(%digest, reason, "the callback waits for the store");
        }
        self.trouble.send_replace(reason.to_owned());
        self.context.status.update(|status| {
            status.failures = failed.count;
            status.retry_at = Some(wall(failed.retry_at));
        });
    }

    /// Tells since when a change waits, and what it waits for.
    pub(super) fn tell(&mut self) {
        let starting = self.running.as_ref();
        let starting = starting.filter(|_| self.context.status.now().running.is_none());
        let pending = self
            .schedule
            .pending_since()
            .or(starting.and_then(|running| running.pending_since));
        let error = match (self.seen.state(), &self.context.settings.callback) {
            (Err(unreadable), Some(_)) => unreadable.to_string(),
            _ => self.trouble.borrow().clone(),
        };
        let (pending, due) = (
            self.told.pending.of(pending),
            self.told.due.of(self.schedule.due()),
        );
        self.context.status.update(|status| {
            status.pending_since = pending;
            status.due = due;
            status.error = error;
        });
    }

    /// Ends the run that goes on, and waits until nothing of it is left. Tells what it left that is not stored.
    pub(super) async fn stop_running(&mut self) -> Option<Success> {
        self.over.cancel();
        let mut unstored = None;
        if let Some(running) = self.running.take() {
            match running.task.await {
                Ok(finished) => {
                    if let Some(error) = finished.run.error {
                        tracing::info!(error, "the callback ended with the term");
                    }
                    unstored = finished.unstored;
                }
                Err(error) => {
                    tracing::error!(%error, "the task of a run panicked; this is a bug, please report it with the lines above");
                    // Nobody waits any more for the end of what it started.
                    sleep(QUARANTINE).await;
                }
            }
        }
        self.context.status.update(|status| {
            status.running = None;
            status.pending_since = None;
            status.due = None;
            status.error.clear();
        });
        unstored
    }
}
