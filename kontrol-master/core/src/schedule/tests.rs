//! The table of decisions, and what holds under any course of events.

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
