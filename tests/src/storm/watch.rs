//! A watch, resumed however often, makes the roster of every revision that it claims, and tells the reasons that hold.

use super::{
    record::{Event, History, Watched},
    store::{Digests, Version, digest, versions},
};
use crate::pod::from_proto;
use kontrol_proto::v1::{LeaveReason, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What breaks the promises about watches.
pub(super) fn violations(history: &History) -> Vec<String> {
    let (digests, versions) = (Digests::of(history), versions(history));
    let watches = history.watches.iter();
    watches
        .flat_map(|watch| {
            let mut found = replay(watch, &digests);
            found.extend(reasons(watch, &versions, history));
            found
        })
        .collect()
}

/// The first message behind which the roster is not that of its revision.
fn replay(watch: &Watched, digests: &Digests) -> Vec<String> {
    let mut roster: BTreeMap<String, Value> = BTreeMap::new();
    let mut claimed = 0;
    let mut before = digest(roster.values());
    for told in &watch.told {
        match &told.event {
            Event::Snapshot(pods) => {
                roster = pods
                    .iter()
                    .map(|pod| (pod.key.clone(), document(pod)))
                    .collect();
                claimed = 0;
            }
            Event::Here(pod) => drop(roster.insert(pod.key.clone(), document(pod))),
            Event::Left(pod, _) => drop(roster.remove(&pod.key)),
            Event::Digest(_) | Event::Other => {}
        }
        let behind = std::mem::replace(&mut before, digest(roster.values()));
        if told.revision <= claimed {
            continue;
        }
        claimed = told.revision;
        // Of several changes at one revision only the last claims it; the first may claim what was before.
        if ![&before, &behind].contains(&&digests.at(claimed).to_owned()) {
            let text = format!(
                "{}: master {} claims revision {claimed} at {:.3} with {:?}, where the roster is another than was told",
                watch.name,
                told.master,
                told.at,
                kind(&told.event)
            );
            return vec![text];
        }
    }
    Vec::new()
}

/// Reasons that don't hold: only a pod whose place another took was replaced.
fn reasons(watch: &Watched, versions: &[Version], history: &History) -> Vec<String> {
    let left = watch.told.iter().filter_map(|told| match &told.event {
        Event::Left(pod, reason) => Some((told, pod, *reason)),
        Event::Snapshot(_) | Event::Here(_) | Event::Digest(_) | Event::Other => None,
    });
    let wrong = left.filter_map(|(told, pod, reason)| {
        let mut of_pod = versions.iter().rev();
        let last = of_pod.find(|of| of.key == pod.key && of.seq == pod.seq)?;
        let removal = history.changes.iter().find_map(|change| {
            let list = (change.key == "removals").then_some(change.value.as_ref()?)?;
            let mut list = list.as_array()?.iter();
            list.find(|one| one["key"] == pod.key.as_str() && one["seq"] == pod.seq)
        });
        let removal = removal.and_then(|one| one["reason"].as_str());
        let told_reason = reason.as_str_name().trim_start_matches("LEAVE_REASON_");
        let right = match (reason, last.deleted) {
            (LeaveReason::Replaced, deleted) => !deleted,
            (_, false) => false,
            (_, true) => removal.is_none_or(|removal| removal == told_reason),
        };
        (!right).then(|| {
            format!(
                "{}: master {} told at {:.3} that {} with seq {} left as {told_reason}, and the store says {}",
                watch.name, told.master, told.at, pod.id, pod.seq,
                if last.deleted { removal.unwrap_or("deleted") } else { "REPLACED" }
            )
        })
    });
    wrong.collect()
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Snapshot(_) => "a snapshot",
        Event::Here(_) => "a pod",
        Event::Left(..) => "a departure",
        Event::Digest(_) => "a digest",
        Event::Other => "something else",
    }
}

fn document(pod: &Pod) -> Value {
    let labels: BTreeMap<_, _> = pod.labels.iter().collect();
    json!({
        "app": pod.app, "id": pod.id, "ip": pod.ip, "key": pod.key, "labels": labels, "node": pod.node,
        "nonce": pod.nonce, "payload": from_proto(pod.payload.as_ref()), "role": pod.role, "seq": pod.seq,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            record::{Change, Told},
            samples::{history, pod},
        },
        *,
    };
    use crate::pod::to_proto;

    fn shown(id: &str, nonce: u64, seq: u64, says: u64) -> Pod {
        Pod {
            app: "web".into(),
            id: id.into(),
            ip: "10.0.0.1".into(),
            key: "k".into(),
            role: "r".into(),
            nonce: nonce.to_string(),
            payload: Some(to_proto(&json!(says))),
            seq,
            ..Pod::default()
        }
    }

    fn of(told: &[(i64, Event)]) -> History {
        let changes = [
            (2, "k", pod("a", 1, 0, 0)),
            (4, "k", pod("a", 1, 0, 5)),
            (6, "k", None),
            (8, "k", pod("b", 2, 1, 0)),
        ];
        let mut all = history(&changes);
        all.changes.push(Change {
            revision: 60,
            key: "removals".into(),
            value: Some(json!([{"key": "k", "seq": 0, "reason": "DOWN"}])),
        });
        let told = told.iter().map(|(revision, event)| Told {
            at: 0.0,
            master: 0,
            revision: *revision,
            event: event.clone(),
        });
        all.watches = vec![Watched {
            name: "w".into(),
            told: told.collect(),
        }];
        all
    }

    #[test]
    fn a_watch_makes_the_roster_of_what_it_claims() {
        let first = (20, Event::Snapshot(vec![shown("a", 1, 0, 0)]));
        let change = (40, Event::Here(shown("a", 1, 0, 5)));
        let left = |reason| Event::Left(shown("a", 1, 0, 5), reason);
        let good = [first.clone(), change.clone(), (60, left(LeaveReason::Down))];
        assert_eq!(violations(&of(&good)), Vec::<String>::new());
        let early = [first.clone(), (40, Event::Other), change.clone()];
        assert_eq!(
            violations(&of(&early)).len(),
            1,
            "claimed before it was told"
        );
        let gap = [first, (60, left(LeaveReason::Down)), (80, Event::Other)];
        assert_eq!(violations(&of(&gap)).len(), 1, "never told");
    }

    #[test]
    fn a_wrong_reason_is_found() {
        let first = (40, Event::Snapshot(vec![shown("a", 1, 0, 5)]));
        for (reason, wrong) in [
            (LeaveReason::Down, 0),
            (LeaveReason::Replaced, 1),
            (LeaveReason::Expired, 1),
        ] {
            let left = (60, Event::Left(shown("a", 1, 0, 5), reason));
            assert_eq!(
                violations(&of(&[first.clone(), left])).len(),
                wrong,
                "{reason:?}"
            );
        }
    }
}
