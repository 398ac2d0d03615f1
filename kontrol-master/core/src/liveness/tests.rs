//! What liveness promises, against moments that are handed in.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const TTL: Duration = Duration::from_secs(10);
const LOST: Duration = Duration::from_secs(3);
const POD: Tracked = (PodKey::ONE, 0);

fn at(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

#[test]
fn a_silent_pod_expires_after_its_ttl_and_a_heard_one_does_not() {
    let start = Instant::now();
    let mut deadlines = Deadlines::new(TTL, LOST, start);
    deadlines.track(POD, start);
    assert!(
        deadlines
            .expired(at(start, 9.9), 9, |_| Ok(None))
            .is_empty()
    );
    assert!(
        deadlines
            .expired(at(start, 10.0), 9, |_| Ok(Some(at(start, 3.0))))
            .is_empty()
    );
    assert_eq!(deadlines.next(), Some(at(start, 13.0)));
    assert_eq!(
        deadlines.expired(at(start, 13.0), 9, |_| Ok(Some(at(start, 3.0)))),
        [POD]
    );
}

#[test]
fn a_pause_is_added_to_who_was_heard_before_it_and_not_to_others() {
    let start = Instant::now();
    let mut attention = Attention::new(start);
    let mut deadlines = Deadlines::new(TTL, LOST, start);
    deadlines.track(POD, start);
    assert_eq!(attention.tick(at(start, 0.3)), None);
    let blind = attention.tick(at(start, 8.5)).expect("a pause");
    deadlines.forgive(blind);
    assert_eq!(
        deadlines.deadline(Some(at(start, 0.2))),
        at(start, 0.2 + 10.0 + 8.0)
    );
    assert_eq!(deadlines.deadline(Some(at(start, 8.6))), at(start, 18.6));
}

#[test]
fn an_older_moment_or_beat_overwrites_nothing() {
    let start = Instant::now();
    let heard = Heard::new(start);
    assert_eq!((heard.at(), heard.master()), (None, None));
    heard.touch(at(start, 5.0), 7, Some(Instance(1)));
    heard.touch(at(start, 4.0), 6, Some(Instance(2)));
    assert_eq!((heard.at(), heard.beat()), (Some(at(start, 5.0)), 7));
    assert_eq!(heard.master(), Some(Instance(1)));
}

fn detached(heard: &Arc<Heard>, attachment: u64, at: Instant) -> Detached {
    Detached {
        pod: POD,
        heard: Arc::clone(heard),
        attachment,
        at,
    }
}

#[test]
fn a_pod_whose_channel_ended_is_lost_unless_it_comes_back() {
    let start = Instant::now();
    let heard = Arc::new(Heard::new(start));
    heard.attach(1);
    heard.touch(at(start, 4.05), 1, None);
    let ended = || {
        let mut deadlines = Deadlines::new(TTL, LOST, start);
        deadlines.detach(detached(&heard, 1, at(start, 4.0)));
        assert_eq!(deadlines.next_lost(), Some(at(start, 7.0)));
        deadlines
    };
    let lost = |mut deadlines: Deadlines, seconds| {
        let lost = deadlines.lost(at(start, seconds), 9, |_| Some(Arc::clone(&heard)));
        assert!(deadlines.detached.is_empty() || lost.is_empty());
        lost.len()
    };
    assert_eq!(lost(ended(), 6.9), 0);
    assert_eq!(
        lost(ended(), 7.0),
        1,
        "what was on its way is no sign of life"
    );
    let mut restarted = ended();
    assert!(
        restarted
            .lost(at(start, 9.0), 9, |_| Some(Arc::new(Heard::new(start))))
            .is_empty()
    );
    assert!(ended().lost(at(start, 9.0), 9, |_| None).is_empty());
    let mut paused = ended();
    paused.forgive(Blind {
        start: at(start, 5.0),
        end: at(start, 8.0),
    });
    assert_eq!(
        paused.next_lost(),
        Some(at(start, 10.0)),
        "nothing could be heard for three seconds"
    );
    heard.touch(at(start, 4.2), 2, None);
    assert_eq!(lost(ended(), 9.0), 0, "it was heard since");
}

#[test]
fn an_end_that_is_told_late_is_not_held_against_a_later_attachment() {
    let start = Instant::now();
    let heard = Arc::new(Heard::new(start));
    heard.attach(2);
    let mut deadlines = Deadlines::new(TTL, LOST, start);
    deadlines.detach(detached(&heard, 1, at(start, 4.0)));
    assert!(
        deadlines
            .lost(at(start, 9.0), 9, |_| Some(Arc::clone(&heard)))
            .is_empty()
    );
    assert_eq!(deadlines.next_lost(), None);
}

#[test]
fn an_end_before_the_leader_led_and_a_lost_time_of_zero_lose_nobody() {
    let start = Instant::now();
    let heard = Arc::new(Heard::new(start));
    heard.attach(1);
    let mut deadlines = Deadlines::new(TTL, LOST, at(start, 5.0));
    deadlines.detach(detached(&heard, 1, at(start, 4.0)));
    assert_eq!(deadlines.next_lost(), None);
    let mut off = Deadlines::new(TTL, Duration::ZERO, start);
    off.detach(detached(&heard, 1, at(start, 4.0)));
    assert_eq!(off.next_lost(), None);
}

proptest! {
    /// Against a naive model: whatever is heard when, a pod is given out exactly when its silence reached the TTL.
    #[test]
    fn expiry_is_exact(steps in prop::collection::vec((0_u64..4_000, 0_u8..8, any::<bool>()), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let mut deadlines = Deadlines::new(TTL, LOST, start);
        let mut model: BTreeMap<Tracked, Instant> = BTreeMap::new();
        for (gap, host, hear) in steps {
            now += Duration::from_millis(gap);
            let silent: Vec<_> = model.iter().filter(|(_, heard)| **heard + TTL <= now).map(|(pod, _)| *pod).collect();
            let mut expired = deadlines.expired(now, usize::MAX, |pod| model.get(&pod).map(|heard| Some(*heard)).ok_or(Gone));
            expired.sort_unstable();
            prop_assert_eq!(&expired, &silent);
            model.retain(|pod, _| !silent.contains(pod));
            let pod = (PodKey::from_u128(u128::from(host)), 0);
            if let Some(heard) = model.get_mut(&pod) {
                if hear { *heard = now; }
            } else {
                model.insert(pod, now);
                deadlines.track(pod, now);
            }
        }
    }
}
