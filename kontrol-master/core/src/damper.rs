//! The damper: when a changing roster is worth a run of the callback. PURE: time is an argument.
//!
//! ```text
//! quiet = 3, max = 8
//! changes   x  x x           x  x  x  x  x
//! time      0  .  .  .  .  . 10 .  .  .  .  .  18
//! due                  ▲ 3 after the last      ▲ 8 after the first: endless change can't put it off
//! ```

use std::time::Duration;
use tokio::time::Instant;

/// Collects changes until they stand still for a while, or for too long.
#[derive(Debug, Clone)]
pub struct Damper {
    quiet: Duration,
    max: Duration,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Damper {
    /// A damper that waits until nothing changed for `quiet`, but never longer than `max` after the first change.
    pub fn new(quiet: Duration, max: Duration) -> Self {
        Self {
            quiet,
            max: max.max(quiet),
            pending: None,
        }
    }

    /// Something changed.
    pub fn on_change(&mut self, now: Instant) {
        self.pending = Some(Pending {
            first: self.pending.map_or(now, |pending| pending.first),
            last: now,
        });
    }

    /// When the changes collected so far are to be handled; none while nothing changed.
    pub fn due(&self) -> Option<Instant> {
        self.pending
            .map(|pending| (pending.last + self.quiet).min(pending.first + self.max))
    }

    /// When the first of the changes collected so far came.
    pub fn pending_since(&self) -> Option<Instant> {
        self.pending.map(|pending| pending.first)
    }

    /// The changes collected so far are handled, or were none after all.
    pub fn clear(&mut self) {
        self.pending = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUIET: Duration = Duration::from_secs(3);
    const MAX: Duration = Duration::from_secs(8);

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_before_a_change_and_after_clear() {
        let mut damper = Damper::new(QUIET, MAX);
        assert_eq!(damper.due(), None);
        damper.on_change(Instant::now());
        assert_eq!(damper.due(), Some(Instant::now() + QUIET));
        damper.clear();
        assert_eq!(damper.due(), None);
    }

    proptest! {
        /// Under any pattern of changes a run is due at most `MAX` after the first change it handles, and never
        /// before `QUIET` has passed since the last one unless `MAX` forces it.
        #[test]
        fn due_is_bounded(gaps in prop::collection::vec(0_u64..12_000, 1..60)) {
            let start = Instant::now();
            let mut damper = Damper::new(QUIET, MAX);
            let (mut now, mut first) = (start, None);
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Some(due) = damper.due()
                    && due <= now
                {
                    damper.clear();
                    first = None;
                }
                damper.on_change(now);
                let first = *first.get_or_insert(now);
                let due = damper.due().unwrap();
                prop_assert!(due <= first + MAX);
                prop_assert!(due == now + QUIET || due == first + MAX);
                prop_assert_eq!(damper.pending_since(), Some(first));
            }
        }
    }
}
