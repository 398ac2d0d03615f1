//! When the guard ends the program, and how. PURE: the time arrives as milliseconds of one clock.
//!
//! The program runs until something asks for its end; then it has its grace, but never beyond the hard end of the lease;
//! then it is killed. What was asked for is never taken back: a lease that is confirmed after SIGTERM changes nothing.

use super::super::control::{Cause, Lease};

/// How long the program has after SIGTERM when the process that it runs for died. Short: one that starts again may run it
/// again.
const ORPHAN_GRACE_MS: u64 = 250;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing before this time, or before something happens.
    Wait(Option<u64>),
    /// Send SIGTERM. Comes once.
    Terminate,
    /// Send SIGKILL.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Asked(Cause, u64),
    Terminated(Cause, u64),
}

/// The state of one run.
#[derive(Debug)]
pub(super) struct Plan {
    lease: Lease,
    grace_ms: u64,
    phase: Phase,
}

impl Plan {
    pub(super) fn new(lease: Lease, grace_ms: u64) -> Self {
        Self {
            lease,
            grace_ms,
            phase: Phase::Running,
        }
    }

    /// The lease was confirmed.
    pub(super) fn renew(&mut self, lease: Lease) {
        self.lease = lease;
    }

    /// The program must end. A later cause replaces none, but can only shorten the grace.
    pub(super) fn end(&mut self, cause: Cause, now: u64) {
        let grace_ms = match cause {
            Cause::ParentGone => self.grace_ms.min(ORPHAN_GRACE_MS),
            Cause::Itself | Cause::Stop | Cause::Lease | Cause::Signal => self.grace_ms,
        };
        let kill_at = now.saturating_add(grace_ms);
        self.phase = match self.phase {
            Phase::Running => Phase::Asked(cause, kill_at),
            Phase::Asked(first, at) => Phase::Asked(first, at.min(kill_at)),
            Phase::Terminated(first, at) => Phase::Terminated(first, at.min(kill_at)),
        };
    }

    /// Who ended the program, if it ends now.
    pub(super) fn cause(&self) -> Cause {
        match self.phase {
            Phase::Running => Cause::Itself,
            Phase::Asked(cause, _) | Phase::Terminated(cause, _) => cause,
        }
    }

    /// What to do at this time.
    pub(super) fn act(&mut self, now: u64) -> Act {
        let (soft, hard) = match self.lease {
            Lease::Forever => (None, u64::MAX),
            Lease::Until { soft, hard } => (Some(soft.min(hard)), hard),
        };
        if self.phase == Phase::Running && soft.is_some_and(|soft| now >= soft) {
            self.end(Cause::Lease, now);
        }
        match self.phase {
            Phase::Running => Act::Wait(soft),
            Phase::Asked(cause, at) => {
                self.phase = Phase::Terminated(cause, at);
                Act::Terminate
            }
            Phase::Terminated(_, at) if now >= at.min(hard) => Act::Kill,
            Phase::Terminated(_, at) => Act::Wait(Some(at.min(hard))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Lease = Lease::Until {
        soft: 1000,
        hard: 1500,
    };

    #[test]
    fn without_a_lease_it_runs_until_it_is_stopped() {
        let mut plan = Plan::new(Lease::Forever, 2000);
        assert_eq!(plan.act(1_000_000), Act::Wait(None));
        plan.end(Cause::Stop, 1_000_000);
        assert_eq!(plan.act(1_000_000), Act::Terminate);
        assert_eq!(plan.act(1_000_001), Act::Wait(Some(1_002_000)));
        assert_eq!(plan.act(1_002_000), Act::Kill);
        assert_eq!(plan.cause(), Cause::Stop);
    }

    #[test]
    fn a_lease_that_is_not_confirmed_ends_it_before_the_hard_end() {
        let mut plan = Plan::new(LEASE, 2000);
        assert_eq!(plan.act(999), Act::Wait(Some(1000)));
        assert_eq!(plan.act(1000), Act::Terminate);
        assert_eq!(plan.act(1001), Act::Wait(Some(1500)));
        assert_eq!(plan.act(1500), Act::Kill);
        assert_eq!(plan.cause(), Cause::Lease);
    }

    #[test]
    fn a_confirmed_lease_lets_it_run_on() {
        let mut plan = Plan::new(LEASE, 2000);
        plan.renew(Lease::Until {
            soft: 3000,
            hard: 3500,
        });
        assert_eq!(plan.act(2999), Act::Wait(Some(3000)));
    }

    #[test]
    fn a_guard_that_wakes_late_kills_right_after_sigterm() {
        let mut plan = Plan::new(LEASE, 2000);
        assert_eq!(plan.act(9000), Act::Terminate);
        assert_eq!(plan.act(9000), Act::Kill);
    }

    #[test]
    fn the_death_of_the_parent_shortens_the_grace_of_a_stop() {
        let mut plan = Plan::new(Lease::Forever, 2000);
        plan.end(Cause::Stop, 100);
        assert_eq!(plan.act(100), Act::Terminate);
        plan.end(Cause::ParentGone, 200);
        assert_eq!(plan.act(200), Act::Wait(Some(450)));
        assert_eq!(plan.cause(), Cause::Stop);
    }

    proptest! {
        /// Whatever happens when: it is killed by the hard end of the last lease, and SIGTERM came once before.
        #[test]
        fn nothing_outlives_the_lease(steps in prop::collection::vec((0_u64..800, 0_u8..5), 0..20), grace in 0_u64..5000) {
            let mut plan = Plan::new(LEASE, grace);
            let (mut now, mut hard, mut terminated) = (0, 1500, 0);
            for (pause, what) in steps {
                now += pause;
                match what {
                    0 => {
                        hard = now + 1500;
                        plan.renew(Lease::Until { soft: now + 1000, hard });
                    }
                    1 => plan.end(Cause::Stop, now),
                    2 => plan.end(Cause::ParentGone, now),
                    _ => {}
                }
                match plan.act(now) {
                    Act::Terminate => terminated += 1,
                    Act::Wait(at) => {
                        prop_assert!(now < hard && at.is_some_and(|at| at > now && at <= hard));
                    }
                    Act::Kill => prop_assert_eq!(terminated, 1),
                }
            }
            while plan.act(hard) == Act::Terminate {
                terminated += 1;
            }
            prop_assert_eq!(plan.act(hard), Act::Kill);
            prop_assert_eq!(terminated, 1);
        }
    }
}
