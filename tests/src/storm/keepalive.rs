//! I4 and I7 for the pods over HTTP: whoever is heard stays, whoever is silent goes, a goodbye is obeyed, the dead lock
//! nobody out, and what was accepted is stored.

use super::{
    record::{Answer, Beat, History, Time},
    store::{Version, bounds, quiet, versions},
};
use std::collections::BTreeMap;

/// What a busy machine may add to a bound of the contract.
const SLACK: Time = 1.5;
/// After an answer, what it told must be in the store; so much later, bounds are surely apart.
const SETTLED: Time = 0.2;

/// A write without an answer may come this much later: no fault lasts longer.
const LATE: Time = 10.0;

/// The keepalives of each pod, in order.
fn by_key(history: &History) -> BTreeMap<&str, Vec<&Beat>> {
    let mut pods: BTreeMap<&str, Vec<&Beat>> = BTreeMap::new();
    for beat in &history.beats {
        pods.entry(&beat.key).or_default().push(beat);
    }
    pods
}

/// What breaks the promises about who lives.
pub(super) fn violations(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let pods = by_key(history);
    for version in versions(history) {
        if let Some(beats) = pods.get(version.key.as_str()) {
            found.extend(ended(history, &version, beats));
        }
    }
    for beats in pods.values() {
        found.extend(locked_out(beats));
        found.extend(goodbyes(history, beats));
        found.extend(silent(history, beats));
    }
    found
}

/// Which incarnation of its pod that is.
fn incarnation(beats: &[&Beat], nonce: &str) -> Option<usize> {
    let beat = beats.iter().find(|beat| beat.nonce == nonce);
    beat.map(|beat| beat.incarnation)
}

/// What is wrong with the end of a record.
fn ended(history: &History, version: &Version, beats: &[&Beat]) -> Option<String> {
    let until = version.until?;
    let (earliest, latest) = bounds(history, until);
    let own = incarnation(beats, &version.nonce)?;
    if !version.deleted {
        let next = history.changes.iter().find(|change| {
            change.revision == until && change.key.strip_prefix("pods/") == Some(&version.key)
        });
        let nonce = next?.value.as_ref()?["nonce"].as_str()?;
        let new = incarnation(beats, nonce);
        return new.is_none_or(|new| new < own).then(|| {
            format!(
                "a keepalive of incarnation {new:?} of {} took the place of incarnation {own} at revision {until}",
                version.id
            )
        });
    }
    // A goodbye of this incarnation or a later one, even one whose answer never came, ends it.
    let gone = |beat: &&&Beat| beat.down && beat.incarnation >= own && beat.sent <= latest;
    if beats.iter().any(|beat| gone(&beat)) {
        return None;
    }
    let heard = beats.iter().rfind(|beat| {
        beat.accepted() && !beat.down && beat.done <= earliest && beat.sent > latest - history.ttl
    })?;
    Some(format!(
        "{} was removed at revision {until}, {:.3} to {:.3}, and was accepted by master {} at {:.3}",
        version.id, earliest, latest, heard.master, heard.done
    ))
}

/// Keepalives of the latest incarnation that were refused for another reason than that nobody can hear them now.
fn locked_out(beats: &[&Beat]) -> Vec<String> {
    // Refused, not: ask another, or later.
    let is_final = |status: u16| (400..500).contains(&status) && status != 408 && status != 429;
    let refused = beats.iter().filter_map(|beat| match &beat.answer {
        Answer::Refused(status, reason) if is_final(*status) => Some(format!(
            "incarnation {} of {} was refused at {:.3}: {status} {reason}",
            beat.incarnation, beat.id, beat.done
        )),
        Answer::Accepted(_) | Answer::Refused(..) | Answer::Unclear => None,
    });
    refused.collect()
}

/// Goodbyes that were accepted and not obeyed.
fn goodbyes(history: &History, beats: &[&Beat]) -> Vec<String> {
    let Some(first) = beats.first() else {
        return Vec::new();
    };
    let versions = versions(history);
    let of_pod: Vec<&Version> = versions.iter().filter(|of| of.key == first.key).collect();
    let accepted = beats.iter().filter(|beat| beat.down && beat.accepted());
    let ignored = accepted.filter_map(|beat| {
        let stays = of_pod.iter().find(|version| {
            let own = incarnation(beats, &version.nonce).unwrap_or(usize::MAX);
            let was_there = bounds(history, version.from).1 <= beat.sent;
            let goes = version.until.map(|revision| bounds(history, revision).0);
            own <= beat.incarnation && was_there && goes.is_none_or(|earliest| earliest > beat.done)
        })?;
        Some(format!(
            "{} said goodbye, accepted by master {} at {:.3}, and its record of revision {} stayed",
            beat.id, beat.master, beat.done, stays.from
        ))
    });
    ignored.collect()
}

/// Silent pods that stayed too long.
fn silent(history: &History, beats: &[&Beat]) -> Vec<String> {
    let versions = versions(history);
    let mut found = Vec::new();
    for (index, beat) in beats.iter().enumerate() {
        // Whatever may have been heard starts the time anew.
        let next = beats.get(index + 1).map_or(history.end, |next| next.sent);
        let end = due(history, beat.done);
        let deadline = quiet(history, end) + 1.0 + SLACK;
        if deadline >= next {
            continue;
        }
        let stays = versions.iter().find(|version| {
            version.key == beat.key
                && bounds(history, version.from).1 <= deadline
                && version
                    .until
                    .is_none_or(|revision| bounds(history, revision).0 > deadline)
        });
        if let Some(stays) = stays {
            found.push(format!(
                "{} was silent from {:.3} to {next:.3}, and its record of revision {} was there after {deadline:.3}",
                beat.id, beat.done, stays.from
            ));
        }
    }
    found
}

/// When a pod that is silent from then on is to be removed. What begins before the removal must be there puts it off.
fn due(history: &History, since: Time) -> Time {
    let mut end = quiet(history, since) + history.ttl;
    let mut counted = vec![false; history.faults.len()];
    loop {
        let before = end;
        for (fault, counted) in history.faults.iter().zip(&mut counted) {
            // A leader holds nobody to account for the time in which it may not have seen what masters passed on.
            if !*counted
                && fault.keeps_from_store()
                && since < fault.ready
                && fault.from < end + 1.0 + SLACK
            {
                *counted = true;
                end += fault.ready - fault.from.max(since);
            }
        }
        for term in &history.terms {
            if *term > since && *term < quiet(history, end) + 1.0 + SLACK {
                // A new term gives every pod a full TTL.
                end = end.max(term + history.ttl);
            }
        }
        if end == before {
            return end;
        }
    }
}

/// What was accepted and is not in the store when the pod says nothing else.
pub(super) fn unstored(history: &History) -> Vec<String> {
    let versions = versions(history);
    let mut found = Vec::new();
    for beats in by_key(history).values() {
        for pair in beats.windows(2) {
            let (beat, next) = (pair[0], pair[1]);
            let at = beat.done + SETTLED;
            if beat.down || !beat.accepted() || next.sent < at + SETTLED {
                continue;
            }
            // A leader whose watch is silent, and whom a master that writes can't tell of it, does not know of the write yet.
            let mut faults = history.faults.iter();
            let two = |kind: &str| kind.contains('+') && kind.contains("Member");
            if faults
                .any(|fault| two(&fault.kind) && (fault.from..=fault.ready).contains(&beat.sent))
            {
                continue;
            }
            let mut of_pod = versions.iter().filter(|version| version.key == beat.key);
            // A change that nobody answered may be stored late: it was neither accepted nor refused. The pod's next
            // keepalive puts it right.
            let unclear: Vec<_> = beats
                .iter()
                .filter(|before| before.sent < beat.sent && beat.sent - before.sent < LATE)
                .filter(|before| before.nonce == beat.nonce)
                .filter(|before| matches!(before.answer, Answer::Unclear))
                .map(|before| &before.payload)
                .collect();
            let holds = |version: &Version| {
                (version.payload == beat.payload || unclear.contains(&&version.payload))
                    && version.nonce == beat.nonce
                    && version.possible(history, at, at)
            };
            if !of_pod.any(holds) {
                found.push(format!(
                    "{} said {} to master {} at {:.3}, which accepted it and did not store it",
                    beat.id, beat.payload, beat.master, beat.sent
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            record::Fault,
            samples::{accepted, beat, history, pod},
        },
        *,
    };
    use serde_json::json;

    fn of(mut history: History, beats: &[Beat]) -> History {
        history.beats = beats.to_vec();
        history
    }

    /// A keepalive each second.
    fn steady(incarnation: usize, from: i32, to: i32) -> Vec<Beat> {
        let each = (from..=to).map(|at| accepted("a", "k", incarnation, f64::from(at), 0));
        each.collect()
    }

    fn goodbye(at: f64, answer: Answer) -> Beat {
        Beat {
            down: true,
            ..beat("a", "k", 0, at, answer)
        }
    }

    #[test]
    fn whoever_was_heard_within_the_ttl_must_stay() {
        let removed = history(&[(2, "k", pod("a", 1, 0, 0)), (20, "k", None)]);
        let silent = of(removed.clone(), &steady(0, 3, 14));
        assert_eq!(violations(&silent), Vec::<String>::new());
        let heard = of(removed.clone(), &steady(0, 3, 17));
        assert_eq!(violations(&heard).len(), 1);
        let mut left = steady(0, 3, 17);
        left.push(goodbye(18.0, Answer::Unclear));
        assert_eq!(violations(&of(removed, &left)), Vec::<String>::new());
    }

    #[test]
    fn the_dead_take_no_place() {
        let restarted = history(&[
            (2, "k", pod("a", 1, 0, 0)),
            (20, "k", pod("a", 2, 0, 0)),
            (22, "k", pod("a", 1, 0, 0)),
        ]);
        let mut beats = steady(0, 3, 19);
        beats.extend(steady(1, 20, 100));
        assert_eq!(violations(&of(restarted, &beats)).len(), 1);
        let refused = Answer::Refused(409, "another has its place".into());
        let out = beat("a", "k", 1, 30.0, refused);
        assert_eq!(locked_out(&[&out]).len(), 1);
        let later = Answer::Refused(503, "ask another".into());
        assert_eq!(locked_out(&[&beat("a", "k", 1, 30.0, later)]).len(), 0);
    }

    #[test]
    fn a_goodbye_is_obeyed_at_once() {
        let mut beats = steady(0, 3, 9);
        beats.push(goodbye(10.0, Answer::Accepted(0)));
        let obeyed = history(&[(2, "k", pod("a", 1, 0, 0)), (10, "k", None)]);
        assert_eq!(violations(&of(obeyed, &beats)), Vec::<String>::new());
        let ignored = history(&[(2, "k", pod("a", 1, 0, 0)), (14, "k", None)]);
        assert_eq!(violations(&of(ignored, &beats)).len(), 1);
    }

    #[test]
    fn the_silent_go_within_a_ttl_and_a_second_of_the_last_fault() {
        let late = history(&[(2, "k", pod("a", 1, 0, 0)), (25, "k", None)]);
        let mut late = of(late, &steady(0, 3, 10));
        assert_eq!(violations(&late).len(), 1);
        late.faults = vec![Fault {
            from: 9.0,
            ready: 18.0,
            ..Fault::default()
        }];
        assert_eq!(violations(&late), Vec::<String>::new());
    }

    #[test]
    fn a_term_that_begins_gives_the_silent_a_full_ttl() {
        let late = history(&[(2, "k", pod("a", 1, 0, 0)), (25, "k", None)]);
        let mut late = of(late, &steady(0, 3, 10));
        for (terms, violated) in [(vec![4.0], 1), (vec![12.0], 1), (vec![12.0, 17.8], 0)] {
            late.terms = terms;
            assert_eq!(violations(&late).len(), violated, "{:?}", late.terms);
        }
    }

    #[test]
    fn what_was_accepted_is_stored() {
        let stored = history(&[(2, "k", pod("a", 1, 0, 7)), (5, "k", pod("a", 1, 0, 8))]);
        let says = |at: f64, payload: u64| Beat {
            payload: json!(payload),
            ..accepted("a", "k", 0, at, 0)
        };
        let good = [says(2.0, 7), says(5.0, 8), says(9.0, 8)];
        assert_eq!(unstored(&of(stored.clone(), &good)), Vec::<String>::new());
        // Taken back, accepted, and forgotten.
        let bad = [says(2.0, 7), says(5.0, 8), says(7.0, 7), says(9.0, 8)];
        assert_eq!(unstored(&of(stored.clone(), &bad)).len(), 1);
        // It was not answered, and came late.
        let mut late = bad;
        late[1].answer = Answer::Unclear;
        assert_eq!(unstored(&of(stored, &late)), Vec::<String>::new());
    }
}
