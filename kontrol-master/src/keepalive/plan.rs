//! What a keepalive asks for, given what is known of its pod. PURE.

use crate::model::{Pod, Report};

/// What is known of the pod's key.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The live pod, if there is one.
    pub pod: Option<&'a Pod>,
    /// The highest beat heard of its incarnation; 0: unknown.
    pub beat: u64,
    /// Who last said goodbye from this key, if that is remembered.
    pub departed: Option<Departed<'a>>,
}

/// A pod that said goodbye.
#[derive(Debug, Clone, Copy)]
pub struct Departed<'a> {
    /// Its incarnation.
    pub nonce: &'a str,
    /// The beat of its goodbye.
    pub beat: u64,
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
    /// A goodbye of somebody who isn't there any more.
    Nothing,
    /// A newer incarnation, or another pod, took this one's place.
    Superseded,
}

/// Decides what a keepalive asks for.
pub fn plan(report: &Report, known: Known<'_>) -> Plan {
    let Some(pod) = known.pod else {
        return match known.departed {
            _ if report.down => Plan::Nothing,
            // Sent before the goodbye, arrived after it.
            Some(gone) if gone.nonce == report.nonce && older_or_same(report.beat, gone.beat) => {
                Plan::Stale
            }
            _ => Plan::Join,
        };
    };
    let superseded = !report.nonce.is_empty() && report.nonce == pod.previous_nonce();
    let same_pod = report.id == pod.id();
    let same_incarnation = same_pod && report.nonce == pod.nonce();
    // Without nonces a restart can't be told from a late keepalive, so that beats prove nothing.
    let stale = same_incarnation
        && !report.nonce.is_empty()
        && older(report.beat, known.beat.max(pod.beat()));
    if report.down {
        let unknown_incarnation = same_pod && (report.nonce.is_empty() || pod.nonce().is_empty());
        return if !stale && (same_incarnation || unknown_incarnation) {
            Plan::Remove
        } else {
            Plan::Nothing
        };
    }
    if same_incarnation {
        if stale {
            Plan::Stale
        } else if pod.says(report) {
            Plan::Refresh
        } else {
            Plan::Update
        }
    } else if superseded {
        Plan::Superseded
    } else if same_pod {
        Plan::Update
    } else {
        Plan::Replace
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
    use crate::model::pod::tests::report;
    use serde_json::json;

    fn known(pod: Option<&Pod>, beat: u64) -> Known<'_> {
        Known {
            pod,
            beat,
            departed: None,
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
        assert_eq!(plan(&down(report(1)), known(None, 0)), Plan::Nothing);
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

    #[test]
    fn an_incarnation_that_was_replaced_does_not_come_back() {
        let first = Pod::join(report(1), 0, 0);
        assert_eq!(plan(&restarted(), known(Some(&first), 9)), Plan::Update);
        let second = first.update(restarted());
        assert_eq!(plan(&report(1), known(Some(&second), 0)), Plan::Superseded);
    }

    #[test]
    fn a_keepalive_that_the_goodbye_overtook_does_not_bring_the_pod_back() {
        let departed = Some(Departed {
            nonce: "00000000000000aa",
            beat: 6,
        });
        let known = Known {
            pod: None,
            beat: 0,
            departed,
        };
        assert_eq!(plan(&beat(5), known), Plan::Stale);
        assert_eq!(plan(&beat(7), known), Plan::Join);
        assert_eq!(plan(&beat(0), known), Plan::Join);
        assert_eq!(plan(&restarted(), known), Plan::Join);
    }
}
