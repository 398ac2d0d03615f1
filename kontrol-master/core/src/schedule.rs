//! When a run of the callback starts. PURE: time is an argument.
//!
//! ```text
//! change ──▶ damper ──▶ due ──▶ digest another than the handled one? ──▶ Start
//!                        ▲        └─ no ──▶ Drop
//! failed ──▶ retry_at ───┘        a newer digest takes its own time in the damper, and replaces the one that failed
//! ```

use crate::{damper::Damper, model::Digest};
use std::time::Duration;
use tokio::time::Instant;

/// When a run is looked at again that could not be started, because the store did not tell what it is to be handed.
const UNREAD: Duration = Duration::from_secs(1);

/// What waits for a run of the callback.
#[derive(Debug, Clone)]
pub struct Schedule {
    damper: Damper,
    failed: Option<Failed>,
    barred_until: Option<Instant>,
    held_until: Option<Instant>,
    demand: Option<Demand>,
}

/// An operator asks for a run now: without the damper, and before a run that failed is due again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Even for the digest that was handled last.
    pub again: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start a run.
    Start,
    /// Decide again at this time, or when something changed.
    Wait(Instant),
    /// Nothing waits for a run, or no longer: what changed has changed back, or only in what the digest leaves out.
    Drop,
}

/// A digest whose run failed, or could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    digest: Digest,
    /// How many runs for it failed.
    pub count: u32,
    /// When it is tried again.
    pub retry_at: Instant,
}

impl Schedule {
    /// Nothing waits yet.
    pub fn new(damper: Damper) -> Self {
        Self {
            damper,
            failed: None,
            barred_until: None,
            held_until: None,
            demand: None,
        }
    }

    /// The roster changed.
    pub fn on_change(&mut self, now: Instant) {
        self.damper.on_change(now);
    }

    /// No run starts before this time.
    pub fn bar(&mut self, until: Instant) {
        self.barred_until = Some(until);
    }

    /// An operator holds the callback until then, or no longer: changes gather meanwhile.
    pub fn hold(&mut self, until: Option<Instant>) {
        self.held_until = until;
    }

    /// An operator asks for a run.
    pub fn demand(&mut self, demand: Demand) {
        self.demand = Some(demand);
    }

    /// A run for this digest failed. Tells how often, and when it is tried again: after 1 s, 2 s, 4 s, up to a minute.
    pub fn on_failure(&mut self, digest: Digest, now: Instant) -> Failed {
        let count = self.failures(digest) + 1;
        let delay = Duration::from_secs(1 << count.saturating_sub(1).min(6));
        self.retry(digest, count, now + delay.min(Duration::from_secs(60)))
    }

    /// A run for this digest could not be started. That is no failure of the callback.
    pub fn on_unread(&mut self, digest: Digest, now: Instant) -> Failed {
        self.retry(digest, self.failures(digest), now + UNREAD)
    }

    fn failures(&self, digest: Digest) -> u32 {
        let before = self.failed.filter(|failed| failed.digest == digest);
        before.map_or(0, |failed| failed.count)
    }

    fn retry(&mut self, digest: Digest, count: u32, retry_at: Instant) -> Failed {
        *self.failed.insert(Failed {
            digest,
            count,
            retry_at,
        })
    }

    /// A run succeeded.
    pub fn on_success(&mut self) {
        self.failed = None;
    }

    /// A run starts: what changed so far is its business.
    pub fn on_start(&mut self) {
        self.damper.clear();
        self.demand = None;
    }

    /// There is no callback: nothing waits.
    pub fn clear(&mut self) {
        self.damper.clear();
        self.failed = None;
        self.demand = None;
    }

    /// Whether a run is asked for that has not started.
    pub fn is_demanded(&self) -> bool {
        self.demand.is_some()
    }

    /// What failed last and was not replaced or done since.
    pub fn failed(&self) -> Option<Failed> {
        self.failed
    }

    /// Since when a change waits for the damper.
    pub fn pending_since(&self) -> Option<Instant> {
        self.damper.pending_since()
    }

    /// When the damper lets a run start for what waits.
    pub fn due(&self) -> Option<Instant> {
        self.damper.due()
    }

    /// What is to be done about the roster with this digest, given the one that was handled last. Not to be asked while a
    /// run goes on.
    pub fn decide(&mut self, now: Instant, digest: Digest, handled: Digest) -> Decision {
        let due = self.damper.due();
        if due.is_none() && self.failed.is_none() && self.demand.is_none() {
            return Decision::Drop;
        }
        let until = self.barred_until.max(self.held_until);
        if let Some(until) = until.filter(|until| *until > now) {
            return Decision::Wait(until);
        }
        match self.demand.take() {
            Some(Demand { again }) if again || digest != handled => return Decision::Start,
            // What waits for the damper may change the digest back, or not: that is for the damper to say.
            Some(_) | None => {}
        }
        if due.is_none() && self.failed.is_none() {
            return Decision::Drop;
        }
        let settled = due.is_none_or(|due| due <= now);
        if digest == handled && settled {
            self.clear();
            return Decision::Drop;
        }
        match (self.failed.filter(|failed| failed.digest == digest), due) {
            (Some(failed), _) if failed.retry_at <= now => Decision::Start,
            (Some(failed), Some(due)) if due > now => Decision::Wait(due.min(failed.retry_at)),
            (Some(failed), _) => {
                // It changed back to what failed.
                self.damper.clear();
                Decision::Wait(failed.retry_at)
            }
            (None, Some(due)) if due > now => Decision::Wait(due),
            (None, Some(_)) => Decision::Start,
            (None, None) => Decision::Drop,
        }
    }
}

#[cfg(test)]
mod tests;
