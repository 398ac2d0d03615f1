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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUIET: Duration = Duration::from_secs(3);
    const MAX: Duration = Duration::from_secs(8);

    fn digest(of: u8) -> Digest {
        format!("{of:032x}").parse().unwrap()
    }

    fn schedule() -> Schedule {
        Schedule::new(Damper::new(QUIET, MAX))
    }

    /// What happens at a second, and what is decided then about which digest, where A is handled.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Change,
        Fail(u8),
        Unread(u8),
        Bar(u64),
        Hold(u64),
        Resume,
        Demand(bool),
        Decide(u8, Outcome),
    }
    use Act::{Bar, Change, Decide, Demand, Fail, Hold, Resume, Unread};

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Outcome {
        Start,
        Until(u64),
        Drop,
    }
    use Outcome::{Drop, Start, Until};

    #[test]
    fn the_table_of_decisions() {
        const A: u8 = 0;
        const B: u8 = 1;
        const C: u8 = 2;
        let table: &[(&str, &[(u64, Act)])] = &[
            (
                "nothing changed",
                &[(0, Decide(A, Drop)), (9, Decide(B, Drop))],
            ),
            (
                "a change waits for the damper, and starts a run",
                &[
                    (0, Change),
                    (1, Decide(B, Until(3))),
                    (3, Decide(B, Start)),
                    (4, Decide(B, Drop)),
                ],
            ),
            (
                "a change that changes back starts none",
                &[
                    (0, Change),
                    (1, Change),
                    (1, Decide(A, Until(4))),
                    (4, Decide(A, Drop)),
                    (9, Decide(A, Drop)),
                ],
            ),
            (
                "endless change can't put it off",
                &[
                    (0, Change),
                    (2, Change),
                    (4, Change),
                    (6, Change),
                    (7, Decide(B, Until(8))),
                    (8, Decide(B, Start)),
                ],
            ),
            (
                "a failure is retried later and later",
                &[
                    (0, Fail(B)),
                    (0, Decide(B, Until(1))),
                    (1, Decide(B, Start)),
                    (1, Fail(B)),
                    (1, Decide(B, Until(3))),
                    (3, Fail(B)),
                    (3, Decide(B, Until(7))),
                ],
            ),
            (
                "what could not be started is no failure",
                &[
                    (0, Fail(B)),
                    (1, Unread(B)),
                    (1, Decide(B, Until(2))),
                    (2, Fail(B)),
                    (2, Decide(B, Until(4))),
                ],
            ),
            (
                "a newer digest replaces the one that failed, after its own damper",
                &[
                    (0, Fail(B)),
                    (0, Change),
                    (1, Decide(C, Until(3))),
                    (3, Decide(C, Start)),
                ],
            ),
            (
                "a newer digest does not wait for the retry of an older",
                &[
                    (0, Fail(B)),
                    (1, Fail(B)),
                    (3, Fail(B)),
                    (7, Fail(B)),
                    (7, Change),
                    (8, Decide(C, Until(10))),
                    (10, Decide(C, Start)),
                ],
            ),
            (
                "what changes back to the failed digest waits for its retry, and gets it",
                &[
                    (0, Fail(B)),
                    (1, Fail(B)),
                    (3, Fail(B)),
                    (3, Change),
                    (4, Decide(C, Until(6))),
                    (5, Change),
                    (5, Decide(B, Until(7))),
                    (6, Decide(B, Until(7))),
                    (7, Decide(B, Start)),
                ],
            ),
            (
                "what changes back to the handled digest needs no retry",
                &[
                    (0, Fail(B)),
                    (0, Change),
                    (1, Decide(A, Until(3))),
                    (3, Decide(A, Drop)),
                    (9, Decide(A, Drop)),
                ],
            ),
            (
                "nothing starts while it is held, and one run follows",
                &[
                    (0, Hold(20)),
                    (1, Change),
                    (2, Decide(B, Until(20))),
                    (9, Change),
                    (10, Decide(C, Until(20))),
                    (20, Decide(C, Start)),
                    (20, Decide(C, Drop)),
                ],
            ),
            (
                "a hold over changes that change back is followed by none",
                &[
                    (0, Hold(20)),
                    (1, Change),
                    (2, Change),
                    (20, Decide(A, Drop)),
                ],
            ),
            (
                "who resumes does not wait for the end of the hold",
                &[
                    (0, Hold(20)),
                    (1, Change),
                    (10, Resume),
                    (10, Decide(B, Start)),
                ],
            ),
            (
                "who asks for a run waits for no damper and no retry",
                &[
                    (0, Change),
                    (1, Demand(false)),
                    (1, Decide(B, Start)),
                    (1, Fail(B)),
                    (1, Fail(B)),
                    (2, Demand(false)),
                    (2, Decide(B, Start)),
                    (9, Decide(B, Start)),
                ],
            ),
            (
                "a handled digest runs only again",
                &[
                    (0, Demand(false)),
                    (0, Decide(A, Drop)),
                    (1, Demand(true)),
                    (1, Decide(A, Start)),
                    (2, Decide(A, Drop)),
                ],
            ),
            (
                "a run that is asked for waits for the end of the hold",
                &[
                    (0, Hold(5)),
                    (1, Demand(true)),
                    (1, Decide(A, Until(5))),
                    (5, Decide(A, Start)),
                ],
            ),
            (
                "nothing starts while it is barred",
                &[
                    (0, Bar(5)),
                    (0, Decide(B, Drop)),
                    (1, Change),
                    (4, Decide(B, Until(5))),
                    (5, Decide(B, Start)),
                ],
            ),
        ];
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        for (name, acts) in table {
            let mut schedule = schedule();
            for (second, act) in *acts {
                let now = at(*second);
                match *act {
                    Change => schedule.on_change(now),
                    Fail(of) => drop(schedule.on_failure(digest(of), now)),
                    Unread(of) => drop(schedule.on_unread(digest(of), now)),
                    Bar(until) => schedule.bar(at(until)),
                    Hold(until) => schedule.hold(Some(at(until))),
                    Resume => schedule.hold(None),
                    Demand(again) => schedule.demand(super::Demand { again }),
                    Decide(of, outcome) => {
                        let decision = schedule.decide(now, digest(of), digest(A));
                        let expected = match outcome {
                            Start => Decision::Start,
                            Until(second) => Decision::Wait(at(second)),
                            Drop => Decision::Drop,
                        };
                        assert_eq!(decision, expected, "{name}, second {second}");
                        if decision == Decision::Start {
                            schedule.on_start();
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn retries_double_up_to_a_minute() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let delays = (0..8).map(|_| (schedule.on_failure(digest(1), now).retry_at - now).as_secs());
        assert_eq!(delays.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        /// I3: whatever changes and fails, a digest that stands gets its run, unless it is handled.
        #[test]
        fn a_digest_that_stands_gets_its_run(
            steps in prop::collection::vec((0_u64..5_000, 0_u8..3, prop::bool::ANY), 1..40),
        ) {
            let mut schedule = schedule();
            let (mut now, mut current, mut handled) = (Instant::now(), digest(0), digest(0));
            let mut step = |schedule: &mut Schedule, now: Instant, current: Digest, fails: bool| {
                let decision = schedule.decide(now, current, handled);
                if decision == Decision::Start {
                    assert_ne!(current, handled, "a run for what is handled");
                    schedule.on_start();
                    if fails {
                        schedule.on_failure(current, now);
                    } else {
                        schedule.on_success();
                        handled = current;
                    }
                }
                (decision, handled)
            };
            for (gap, of, fails) in steps {
                now += Duration::from_millis(gap);
                if digest(of) != current {
                    current = digest(of);
                    schedule.on_change(now);
                }
                step(&mut schedule, now, current, fails);
            }
            let end = now + Duration::from_secs(70);
            loop {
                match step(&mut schedule, now, current, false) {
                    (Decision::Wait(until), _) => {
                        prop_assert!(until > now, "it would spin");
                        prop_assert!(until <= end);
                        now = until;
                    }
                    (Decision::Start, _) => {}
                    (Decision::Drop, handled) => {
                        prop_assert_eq!(current, handled);
                        break;
                    }
                }
            }
        }
    }
}
