//! The safeguard under a clock that the test moves.

use super::*;
use crate::model::PodKey;
use proptest::prelude::*;

const TTL: Duration = Duration::from_secs(10);
const POLICY: Policy = Policy {
    percent: 50,
    min: 10,
    max: Duration::from_secs(100),
};

fn pods(range: std::ops::Range<u64>) -> HashSet<Tracked> {
    range
        .map(|n| (PodKey::from_u128(u128::from(n)), n))
        .collect()
}

fn list(range: std::ops::Range<u64>) -> Vec<Tracked> {
    pods(range).into_iter().collect()
}

fn safeguard() -> (Safeguard, Instant) {
    (Safeguard::new(POLICY, TTL), Instant::now())
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn half_may_leave_and_one_more_freezes() {
    let (mut safeguard, now) = safeguard();
    assert_eq!(safeguard.judge(now, 20, &pods(0..10)), Verdict::Remove);
    assert!(matches!(
        safeguard.judge(now, 20, &pods(0..11)),
        Verdict::Freeze(Frozen {
            silent: 11,
            pods: 20,
            ..
        })
    ));
}

#[test]
fn a_small_ensemble_and_one_without_a_share_never_freeze() {
    let now = Instant::now();
    for (policy, all, frozen) in [
        (POLICY, 9, false),
        (POLICY, 10, true),
        (
            Policy {
                percent: 0,
                ..POLICY
            },
            1000,
            false,
        ),
        (
            Policy {
                percent: 100,
                ..POLICY
            },
            1000,
            false,
        ),
    ] {
        let mut safeguard = Safeguard::new(policy, TTL);
        let verdict = safeguard.judge(now, all, &pods(0..all as u64));
        assert_eq!(
            matches!(verdict, Verdict::Freeze(_)),
            frozen,
            "{policy:?} {all}"
        );
    }
}

#[test]
fn what_left_within_the_window_counts_with_what_is_about_to() {
    let (mut safeguard, now) = safeguard();
    assert_eq!(safeguard.judge(now, 20, &pods(0..6)), Verdict::Remove);
    safeguard.on_removed(now, &list(0..6));
    // 6 of 20 left, and 5 of the 14 that remain are silent.
    let verdict = safeguard.judge(now + TTL / 2, 14, &pods(6..11));
    assert!(matches!(verdict, Verdict::Freeze(_)), "{verdict:?}");

    let (mut safeguard, now) = self::safeguard();
    safeguard.on_removed(now, &list(0..6));
    let verdict = safeguard.judge(now + TTL, 14, &pods(6..11));
    assert_eq!(verdict, Verdict::Remove, "the window is over");
}

#[test]
fn a_slow_decline_never_freezes() {
    let (mut safeguard, mut now) = safeguard();
    for left in (1..100).rev() {
        now += TTL;
        assert_eq!(safeguard.judge(now, left + 1, &pods(0..1)), Verdict::Remove);
        safeguard.on_removed(now, &list(0..1));
    }
}

#[test]
fn it_thaws_under_half_the_share_and_not_at_it() {
    let (mut safeguard, now) = safeguard();
    safeguard.judge(now, 20, &pods(0..11));
    for silent in [11, 8, 5] {
        let verdict = safeguard.judge(now + seconds(1), 20, &pods(0..silent));
        assert!(matches!(verdict, Verdict::Hold(_)), "{silent}: {verdict:?}");
    }
    let verdict = safeguard.judge(now + seconds(2), 20, &pods(0..4));
    assert!(matches!(verdict, Verdict::Thaw(Thaw::Recovered, _)));
    // Those that are still silent leave as ever.
    let verdict = safeguard.judge(now + seconds(2), 20, &pods(0..4));
    assert_eq!(verdict, Verdict::Remove);
    assert!(!safeguard.is_exempt(list(0..1)[0]));
}

#[test]
fn who_is_silent_at_a_release_or_at_the_limit_leaves_and_others_are_guarded() {
    for (thaw, after) in [(Thaw::Released, 3), (Thaw::Limit, 100)] {
        let (mut safeguard, now) = safeguard();
        safeguard.judge(now, 100, &pods(0..60));
        if thaw == Thaw::Released {
            safeguard.release();
        }
        let now = now + seconds(after);
        let verdict = safeguard.judge(now, 100, &pods(0..60));
        assert!(
            matches!(verdict, Verdict::Thaw(why, _) if why == thaw),
            "{verdict:?}"
        );
        assert_eq!(safeguard.judge(now, 100, &pods(0..60)), Verdict::Remove);
        assert!(list(0..60).iter().all(|pod| safeguard.is_exempt(*pod)));
        safeguard.on_removed(now, &list(0..30));
        assert_eq!(safeguard.judge(now, 70, &pods(30..60)), Verdict::Remove);
        // Another rack dies in the same moment: of the 40 that are left, more than half.
        let verdict = safeguard.judge(now, 70, &pods(30..85));
        assert!(matches!(verdict, Verdict::Freeze(_)), "{verdict:?}");
        assert!(safeguard.is_exempt(list(59..60)[0]) && !safeguard.is_exempt(list(60..61)[0]));
    }
}

#[test]
fn one_that_was_heard_again_is_exempt_no_more() {
    let (mut safeguard, now) = safeguard();
    safeguard.judge(now, 20, &pods(0..11));
    safeguard.release();
    safeguard.judge(now, 20, &pods(0..11));
    assert_eq!(safeguard.judge(now, 20, &pods(1..11)), Verdict::Remove);
    assert!(!safeguard.is_exempt(list(0..1)[0]));
}

#[test]
fn a_new_leader_keeps_it_until_it_has_listened_for_a_window() {
    for released in [false, true] {
        let (mut safeguard, now) = safeguard();
        safeguard.adopt(now, seconds(50), 60, 100);
        if released {
            safeguard.release();
        }
        // In its grace nobody is silent.
        let verdict = safeguard.judge(now + TTL - seconds(1), 100, &pods(0..0));
        assert!(
            matches!(
                verdict,
                Verdict::Hold(Frozen {
                    silent: 60,
                    pods: 100,
                    ..
                })
            ),
            "{verdict:?}"
        );
        let verdict = safeguard.judge(now + TTL, 100, &pods(0..60));
        if released {
            assert!(matches!(verdict, Verdict::Thaw(Thaw::Released, _)));
            assert!(safeguard.is_exempt(list(0..1)[0]));
        } else {
            assert!(matches!(verdict, Verdict::Hold(_)), "{verdict:?}");
            let verdict = safeguard.judge(now + seconds(50), 100, &pods(0..60));
            assert!(matches!(verdict, Verdict::Thaw(Thaw::Limit, _)));
        }
    }
}

/// What happens to an ensemble of 100 pods within some seconds.
#[derive(Debug, Clone)]
enum Step {
    Die(u64),
    Return(u64),
    Wait(u64),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..60).prop_map(Step::Die),
        (0_u64..60).prop_map(Step::Return),
        (1_u64..30).prop_map(Step::Wait),
        Just(Step::Release),
    ]
}

proptest! {
    /// Whatever dies and comes back: without a release or the limit, silence never removes more than the share within a TTL;
    /// and it never stays frozen beyond the limit.
    #[test]
    fn no_more_than_the_share_leaves_within_a_window(steps in prop::collection::vec(step(), 1..60)) {
        let (mut safeguard, mut now) = safeguard();
        let mut present = pods(0..100);
        let mut silent: HashSet<Tracked> = HashSet::new();
        let mut left: VecDeque<(Instant, usize)> = VecDeque::new();
        let mut frozen_since = None;
        for step in steps {
            match step {
                Step::Die(n) => silent.extend(present.iter().copied().take(n as usize)),
                Step::Return(n) => {
                    let back: Vec<_> = silent.iter().copied().take(n as usize).collect();
                    silent.retain(|pod| !back.contains(pod));
                }
                Step::Wait(n) => now += seconds(n),
                Step::Release => safeguard.release(),
            }
            left.retain(|(at, _)| *at + TTL > now);
            let verdict = safeguard.judge(now, present.len(), &silent);
            match verdict {
                Verdict::Remove => frozen_since = None,
                Verdict::Freeze(_) => frozen_since = Some(now),
                Verdict::Hold(_) => {
                    prop_assert!(frozen_since.is_some_and(|since| now < since + POLICY.max));
                }
                Verdict::Thaw(Thaw::Recovered, frozen) => {
                    prop_assert!(frozen.silent * 4 < frozen.pods || frozen.pods == 0);
                }
                Verdict::Thaw(..) => {}
            }
            let may: Vec<Tracked> = silent
                .iter()
                .copied()
                .filter(|pod| verdict == Verdict::Remove || safeguard.is_exempt(*pod))
                .collect();
            let guarded = may.iter().filter(|pod| !safeguard.is_exempt(**pod)).count();
            let gone: usize = left.iter().map(|(_, n)| n).sum();
            let exempt = may.len() - guarded;
            let all = present.len() - exempt + gone;
            if all >= POLICY.min && guarded > 0 {
                prop_assert!((guarded + gone) * 2 <= all, "{guarded} and {gone} of {all}");
            }
            if guarded > 0 {
                left.push_back((now, guarded));
            }
            safeguard.on_removed(now, &may);
            for pod in &may {
                present.remove(pod);
                silent.remove(pod);
            }
            if matches!(verdict, Verdict::Thaw(..)) {
                left.clear();
            }
        }
    }
}
