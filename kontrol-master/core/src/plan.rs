//! What a keepalive asks for, given what is known of its pod. PURE.
//!
//! Incarnations have an order: whoever is known to have had the place before is older than whoever has it, and than who had
//! it last. So what a dead one has sent changes nothing, in whatever order it arrives:
//!
//! ```text
//!  keepalive of     │ its record    another incarnation's      another pod's    nobody, and left last:
//!                   │ is there      is there                   is there         itself      another
//! ──────────────────┼────────────────────────────────────────────────────────────────────────────────
//!  one never seen   │               Update (a restart)         Replace                      Join
//!  one seen before  │ Refresh,      Superseded                 Superseded       Join (*)    Superseded (**)
//!                   │ Update, Stale
//!
//!  (*) but Stale if its goodbye was sent later, and Superseded (**) if something later was heard before it was silent
//!  (**) but Join if it goes on reporting: it is alive
//!
//! A late keepalive of an incarnation that nobody heard of before can't be told from a restart.
//! ```

use crate::model::{Incarnation, Pod, Report, Retired, incarnation::is_retired};

/// What is known of the pod's key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// The live pod, if there is one.
    pub pod: Option<&'a Pod>,
    /// The highest beat heard of its incarnation; 0: unknown.
    pub beat: u64,
    /// The record is about to be removed for silence: it must be written anew to stay.
    pub leaving: bool,
    /// Who left last from this key, if nobody is there and that is remembered.
    pub departed: Option<Departed<'a>>,
    /// The incarnation that reports was refused so often that it must be alive.
    pub alive: bool,
    /// The place is fought over, and its owner keeps it for now.
    pub kept: bool,
}

/// A pod that left.
#[derive(Debug, Clone, Copy)]
pub struct Departed<'a> {
    /// Its incarnation.
    pub incarnation: &'a Incarnation,
    /// It said goodbye.
    pub down: bool,
    /// The beat of its goodbye, or the highest that was heard of it; 0: unknown.
    pub beat: u64,
    /// Who had the place before it.
    pub retired: &'a [Retired],
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The record says all of it already: the pod lives, nothing is written.
    Refresh,
    /// It was overtaken by a newer keepalive of the same incarnation, or by its goodbye: what it says is ignored.
    Stale,
    /// A new pod.
    Join,
    /// The same pod with something new to say.
    Update,
    /// Another pod took over the address: it joins, the one before leaves.
    Replace,
    /// The pod leaves.
    Remove,
    /// A goodbye that came before the keepalives that it follows: they are not to bring the pod back.
    Bury,
    /// A goodbye of somebody who isn't there any more.
    Nothing,
    /// A newer incarnation, or another pod, took this one's place; or it came too late, after its pod had left.
    Superseded,
    /// Several fight over the place: its owner keeps it for now.
    Kept,
}

/// Decides what a keepalive asks for.
pub fn plan(report: &Report, known: Known<'_>) -> Plan {
    let who = Incarnation::of(report);
    let Some(pod) = known.pod else {
        return plan_absent(report, &who, known);
    };
    let same_pod = report.id == pod.id();
    let same_incarnation = same_pod && report.nonce == pod.nonce();
    // Without nonces a restart can't be told from a late keepalive, so that beats prove nothing.
    let stale = same_incarnation
        && !report.nonce.is_empty()
        && older(report.beat, known.beat.max(pod.beat()));
    if report.down {
        let unknown_incarnation = same_pod
            && (report.nonce.is_empty() || pod.nonce().is_empty())
            && !pod.has_retired(&who);
        // One that expired and came back was here before as well.
        return if !stale && (same_incarnation || unknown_incarnation) {
            Plan::Remove
        } else {
            Plan::Nothing
        };
    }
    if same_incarnation {
        if stale {
            Plan::Stale
        } else if pod.says(report) && !known.leaving {
            Plan::Refresh
        } else {
            Plan::Update
        }
    } else if pod.has_retired(&who) {
        Plan::Superseded
    } else if known.kept || !same_pod && !may_take(report, pod) {
        Plan::Kept
    } else if same_pod {
        Plan::Update
    } else {
        Plan::Replace
    }
}

/// Whether a report may take the place of this pod, which is another one. An address is what a pod says; its id is what its
/// principal proves. So one principal does not drive out what another one reports: it waits until that has left.
pub fn may_take(report: &Report, pod: &Pod) -> bool {
    let by = report.by.as_ref();
    by.is_none_or(|by| by.speaks_for(pod.id()))
}

fn plan_absent(report: &Report, who: &Incarnation, known: Known<'_>) -> Plan {
    let itself = known.departed.filter(|gone| gone.incarnation == who);
    if report.down {
        // Without a beat nothing could tell what came before it from what comes after.
        let stands = itself.is_some_and(|gone| gone.down);
        let tells = !report.nonce.is_empty() && report.beat != 0;
        let retired = known
            .departed
            .is_some_and(|gone| is_retired(gone.retired, who));
        return if tells && !stands && (itself.is_some() || !retired) {
            Plan::Bury
        } else {
            Plan::Nothing
        };
    }
    match (itself, known.departed) {
        // Sent before the goodbye, arrived after it.
        (Some(gone), _) if gone.down && older_or_same(report.beat, gone.beat) => Plan::Stale,
        // Held back by the network until its pod had expired. One whose beats are counted anew goes on reporting.
        (Some(gone), _)
            if !report.nonce.is_empty() && older(report.beat, gone.beat) && !known.alive =>
        {
            Plan::Superseded
        }
        (Some(_), _) => Plan::Join,
        // Without a nonce a restart can't be told from a late keepalive.
        (None, Some(gone))
            if !report.nonce.is_empty() && is_retired(gone.retired, who) && !known.alive =>
        {
            Plan::Superseded
        }
        (None, _) => Plan::Join,
    }
}

/// Whether a beat is certainly older than another; an unknown beat (0) is never.
fn older(beat: u64, than: u64) -> bool {
    beat != 0 && than != 0 && beat < than
}

fn older_or_same(beat: u64, than: u64) -> bool {
    beat != 0 && than != 0 && beat <= than
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Principal, Role};
    use crate::{model::Reason, testing::report};
    use serde_json::json;
    use std::sync::Arc;

    fn known(pod: Option<&Pod>, beat: u64) -> Known<'_> {
        Known {
            pod,
            beat,
            ..Known::default()
        }
    }

    fn beat(beat: u64) -> Report {
        Report { beat, ..report(1) }
    }

    fn restarted() -> Report {
        Report {
            nonce: "00000000000000bb".into(),
            ..report(1)
        }
    }

    fn down(report: Report) -> Report {
        Report {
            down: true,
            ..report
        }
    }

    #[test]
    fn a_pod_joins_is_refreshed_and_changes() {
        let pod = Pod::join(beat(5), 0, 0);
        assert_eq!(plan(&beat(5), known(None, 0)), Plan::Join);
        assert_eq!(plan(&beat(6), known(Some(&pod), 5)), Plan::Refresh);
        let change = Report {
            payload: json!({"a": 1}),
            ..beat(6)
        };
        assert_eq!(plan(&change, known(Some(&pod), 5)), Plan::Update);
        let other = Report {
            id: "other".into(),
            nonce: "cc".into(),
            ..beat(1)
        };
        assert_eq!(plan(&other, known(Some(&pod), 5)), Plan::Replace);
        // Whoever may not speak for the pod does not take its place, and whoever may does.
        for (name, role, expected) in [
            (other.id.as_str(), Role::Slave, Plan::Kept),
            ("*", Role::Slave, Plan::Replace),
            ("masters", Role::Peer, Plan::Replace),
        ] {
            let by = Some(Arc::new(Principal::new(name, role).unwrap()));
            let said = Report {
                by,
                ..other.clone()
            };
            assert_eq!(plan(&said, known(Some(&pod), 5)), expected, "{name}");
        }
    }

    #[test]
    fn an_older_beat_overwrites_nothing_and_an_unknown_one_counts() {
        let pod = Pod::join(beat(5), 0, 0);
        let late = Report {
            payload: json!("old"),
            ..beat(6)
        };
        assert_eq!(plan(&late, known(Some(&pod), 7)), Plan::Stale);
        assert_eq!(
            plan(
                &Report {
                    payload: json!("old"),
                    ..beat(4)
                },
                known(Some(&pod), 0)
            ),
            Plan::Stale
        );
        assert_eq!(
            plan(
                &Report {
                    payload: json!("new"),
                    ..beat(0)
                },
                known(Some(&pod), 7)
            ),
            Plan::Update
        );
    }

    #[test]
    fn a_reporter_without_nonce_may_count_its_beats_anew() {
        let anonymous = |beat| Report {
            nonce: String::new(),
            beat,
            ..report(1)
        };
        let pod = Pod::join(anonymous(9), 0, 0);
        assert_eq!(plan(&anonymous(1), known(Some(&pod), 9)), Plan::Refresh);
    }

    #[test]
    fn a_goodbye_removes_its_own_incarnation_only() {
        let first = Pod::join(report(1), 0, 0);
        let second = first.update(restarted());
        assert_eq!(plan(&down(report(1)), known(Some(&first), 0)), Plan::Remove);
        assert_eq!(
            plan(&down(report(1)), known(Some(&second), 0)),
            Plan::Nothing
        );
        assert_eq!(plan(&down(beat(4)), known(Some(&first), 5)), Plan::Nothing);
        let classic = Report {
            nonce: String::new(),
            ..report(1)
        };
        assert_eq!(plan(&down(classic), known(Some(&second), 0)), Plan::Remove);
        let other = Report {
            id: "other".into(),
            ..report(1)
        };
        assert_eq!(plan(&down(other), known(Some(&first), 0)), Plan::Nothing);
    }

    fn start(nonce: &str) -> Report {
        Report {
            nonce: nonce.into(),
            ..report(1)
        }
    }

    #[test]
    fn an_incarnation_that_was_replaced_does_not_come_back() {
        let mut pod = Pod::join(start("n0"), 0, 0);
        for nonce in 1..10 {
            let next = start(&format!("n{nonce}"));
            assert_eq!(plan(&next, known(Some(&pod), 9)), Plan::Update);
            pod = pod.update(next);
            for before in 0..nonce {
                let late = start(&format!("n{before}"));
                assert_eq!(plan(&late, known(Some(&pod), 0)), Plan::Superseded);
                assert_eq!(plan(&down(late), known(Some(&pod), 0)), Plan::Nothing);
            }
        }
    }

    #[test]
    fn pods_on_one_address_come_to_rest_with_nonces_and_without() {
        let other = |id: &str, nonce: &str| Report {
            id: id.into(),
            ..start(nonce)
        };
        for nonce in ["", "same for all"] {
            let mut pod = Pod::join(other("p0", nonce), 0, 0);
            for id in ["p1", "p2", "p3"] {
                let next = other(id, nonce);
                assert_eq!(plan(&next, known(Some(&pod), 0)), Plan::Replace);
                pod = Pod::join(next, pod.seq() + 1, 0).replacing(&pod);
            }
            for id in ["p0", "p1", "p2"] {
                let again = plan(&other(id, nonce), known(Some(&pod), 0));
                assert_eq!(again, Plan::Superseded, "{id} with nonce {nonce:?}");
            }
            assert_eq!(
                plan(&other("p3", nonce), known(Some(&pod), 0)),
                Plan::Refresh
            );
            let kept = Known {
                kept: true,
                ..known(Some(&pod), 0)
            };
            assert_eq!(plan(&other("p4", nonce), kept), Plan::Kept);
        }
    }

    /// What is known once an incarnation has left, and another one had the place before it.
    fn left<'a>(who: &'a Incarnation, reason: Reason, retired: &'a [Retired]) -> Known<'a> {
        Known {
            departed: Some(Departed {
                incarnation: who,
                down: reason == Reason::Down,
                beat: 6,
                retired,
            }),
            ..Known::default()
        }
    }

    #[test]
    fn a_keepalive_that_the_goodbye_overtook_does_not_bring_the_pod_back() {
        let who = Incarnation::of(&report(1));
        let down = left(&who, Reason::Down, &[]);
        assert_eq!(plan(&beat(5), down), Plan::Stale);
        assert_eq!(plan(&beat(7), down), Plan::Join);
        assert_eq!(plan(&beat(0), down), Plan::Join);
        assert_eq!(plan(&restarted(), down), Plan::Join);
    }

    #[test]
    fn who_expired_comes_back_and_who_was_before_it_does_not_unless_it_lives() {
        let (old, last) = (
            Incarnation::new("web-1", "old"),
            Incarnation::of(&report(1)),
        );
        let retired = [Retired {
            incarnation: old,
            seq: 0,
            reason: Some(Reason::Down),
        }];
        for reason in [Reason::Expired, Reason::Lost, Reason::Down] {
            let known = left(&last, reason, &retired);
            assert_eq!(plan(&beat(7), known), Plan::Join);
            assert_eq!(plan(&start("new"), known), Plan::Join);
            assert_eq!(plan(&start("old"), known), Plan::Superseded);
            let lives = Known {
                alive: true,
                ..known
            };
            assert_eq!(plan(&start("old"), lives), Plan::Join);
        }
    }

    #[test]
    fn what_the_network_held_back_until_its_pod_had_expired_does_not_bring_it_back() {
        let who = Incarnation::of(&report(1));
        for reason in [Reason::Expired, Reason::Lost] {
            let known = left(&who, reason, &[]);
            assert_eq!(plan(&beat(5), known), Plan::Superseded);
            // The same again may have been sent again.
            for later in [beat(6), beat(7), beat(0)] {
                assert_eq!(plan(&later, known), Plan::Join);
            }
            let lives = Known {
                alive: true,
                ..known
            };
            assert_eq!(plan(&beat(5), lives), Plan::Join, "its beats began anew");
            let anonymous = Report {
                nonce: String::new(),
                ..beat(5)
            };
            let gone = Incarnation::of(&anonymous);
            assert_eq!(plan(&anonymous, left(&gone, reason, &[])), Plan::Join);
        }
    }

    #[test]
    fn a_goodbye_that_is_ahead_of_its_join_is_remembered_once() {
        let who = Incarnation::of(&report(1));
        assert_eq!(plan(&down(beat(6)), known(None, 0)), Plan::Bury);
        assert_eq!(
            plan(&down(beat(6)), left(&who, Reason::Expired, &[])),
            Plan::Bury
        );
        assert_eq!(
            plan(&down(beat(7)), left(&who, Reason::Down, &[])),
            Plan::Nothing
        );
        assert_eq!(plan(&down(beat(0)), known(None, 0)), Plan::Nothing);
        assert_eq!(
            plan(
                &down(Report {
                    nonce: String::new(),
                    ..beat(6)
                }),
                known(None, 0)
            ),
            Plan::Nothing
        );
    }
}
