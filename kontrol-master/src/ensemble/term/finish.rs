//! The end of a run of the callback, and what is told about it.

use super::{Deposed, Failed, QUARANTINE, Term, UNREAD, run::Finished, storing::Success};
use crate::cluster::status::timestamp;
use kontrol_core::{damper::retry_delay, model::Digest};
use tokio::time::{Instant, sleep};

impl Term {
    pub(super) fn on_finished(
        &mut self,
        finished: Result<Finished, tokio::task::JoinError>,
    ) -> Result<(), Deposed> {
        let digest = self.running.take().map(|running| running.digest);
        let now = Instant::now();
        let finished = finished.unwrap_or_else(|error| {
            tracing::error!(%error, "the task of a run panicked; this is a bug, please report it with the lines above");
            // Nobody waits any more for the end of what it started.
            self.quarantine = Some(now + QUARANTINE);
            Finished::broken(digest, format!("the run broke off, which is a bug: {error}"))
        });
        if let (Some(reason), Some(digest)) = (&finished.not_started, digest) {
            self.put_off(digest, reason, now);
            return Ok(());
        }
        self.context
            .metrics
            .callback_run(finished.error.is_none(), finished.duration);
        match (&finished.error, digest) {
            (None, _) => self.failed = None,
            (Some(error), Some(digest)) => {
                let before = self
                    .failed
                    .as_ref()
                    .filter(|failed| failed.digest == digest);
                let count = before.map_or(0, |failed| failed.count) + 1;
                let delay = retry_delay(count);
                tracing::warn!(%digest, error, count, retry_in = ?delay, "the callback failed; nothing of it is kept");
                self.failed = Some(Failed {
                    digest,
                    count,
                    retry_at: now + delay,
                });
            }
            (Some(_), None) => {}
        }
        let failed = self.failed.as_ref();
        let (failures, retry_at) = (
            failed.map_or(0, |failed| failed.count),
            failed.map(|failed| timestamp(failed.retry_at)),
        );
        self.context.status.update(|status| {
            status.running_since = None;
            status.running_digest.clear();
            status.failures = failures;
            status.retry_at = retry_at;
            status.last_run = Some(finished.report());
        });
        if let Some(handled) = finished.handled {
            tracing::info!(digest = %handled.digest(), took = ?finished.duration, "the callback handled the roster");
            self.handled = handled;
        }
        if finished.deposed {
            Err(Deposed)
        } else {
            Ok(())
        }
    }

    /// A run could not be started: the store does not tell what the callback is to be handed.
    pub(super) fn put_off(&mut self, digest: Digest, reason: &str, now: Instant) {
        let before = self.failed.as_ref();
        let before = before.filter(|failed| failed.digest == digest);
        let (count, retry_at) = (before.map_or(0, |failed| failed.count), now + UNREAD);
        if self.trouble.borrow().is_empty() {
            tracing::warn!(%digest, reason, "the callback waits for the store");
        }
        self.trouble.send_replace(reason.to_owned());
        self.failed = Some(Failed {
            digest,
            count,
            retry_at,
        });
        self.context.status.update(|status| {
            status.failures = count;
            status.retry_at = Some(timestamp(retry_at));
        });
    }

    /// Tells since when a change waits, and what it waits for.
    pub(super) fn tell(&self) {
        let told = self.context.status.now();
        let starting = self.running.as_ref();
        let starting = starting.filter(|_| told.running_since.is_none());
        let pending = self
            .damper
            .pending_since()
            .or(starting.and_then(|running| running.pending_since));
        let error = match (self.seen.state(), &self.context.settings.callback) {
            (Err(unreadable), Some(_)) => unreadable.to_string(),
            _ => self.trouble.borrow().clone(),
        };
        if pending.is_some() != told.pending_since.is_some() || error != told.error {
            self.context.status.update(|status| {
                status.pending_since = pending.map(timestamp);
                status.error = error;
            });
        }
    }

    /// Ends the run that goes on, and waits until nothing of it is left. Tells what it left that is not stored.
    pub(super) async fn stop_running(&mut self) -> Option<Success> {
        self.over.cancel();
        let mut unstored = None;
        if let Some(running) = self.running.take() {
            match running.task.await {
                Ok(finished) => {
                    if let Some(error) = finished.error {
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
            status.running_since = None;
            status.running_digest.clear();
            status.pending_since = None;
            status.error.clear();
        });
        unstored
    }
}
