//! I1: a seq is given once, in growing order, and stays with its pod while that lives.

use super::{
    record::{Answer, History},
    store::{Version, versions},
};
use std::collections::BTreeMap;

/// What breaks the order of seqs.
pub(super) fn violations(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let versions = versions(history);
    let mut last: BTreeMap<&str, &Version> = BTreeMap::new();
    // The greatest seq that was given before the revision that is looked at.
    let (mut given, mut before, mut revision) = (Vec::new(), None, 0);
    for version in &versions {
        if version.from != revision {
            before = before.max(given.drain(..).max());
            revision = version.from;
        }
        let previous = last.insert(&version.key, version);
        let goes_on = previous.filter(|old| old.until == Some(version.from));
        if let Some(old) = goes_on.filter(|old| old.id == version.id) {
            if old.seq != version.seq {
                found.push(format!(
                    "{} had seq {} and has {} at revision {revision}, without having left",
                    version.id, old.seq, version.seq
                ));
            }
            continue;
        }
        if before.is_some_and(|before| version.seq <= before) || given.contains(&version.seq) {
            found.push(format!(
                "{} got seq {} at revision {revision}, and {before:?} was given before",
                version.id, version.seq
            ));
        }
        given.push(version.seq);
    }
    for beat in history.beats.iter().filter(|beat| !beat.down) {
        let Answer::Accepted(seq) = beat.answer else {
            continue;
        };
        let mut of_pod = versions.iter().filter(|version| {
            (&version.key, &version.id, version.seq) == (&beat.key, &beat.id, seq)
        });
        if !of_pod.any(|version| version.possible(history, beat.sent, beat.done)) {
            found.push(format!(
                "{} was told seq {seq} at {:.3}, which it did not have then",
                beat.id, beat.done
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{accepted, history, pod},
        *,
    };

    #[test]
    fn each_break_of_the_order_is_found() {
        let good = history(&[(2, "k", pod("a", 1, 0, 0)), (4, "l", pod("b", 1, 1, 0))]);
        assert_eq!(violations(&good), Vec::<String>::new());

        let again = history(&[(2, "k", pod("a", 1, 0, 0)), (4, "l", pod("b", 1, 0, 0))]);
        assert_eq!(violations(&again).len(), 1);

        let back = history(&[(2, "k", pod("a", 1, 5, 0)), (4, "l", pod("b", 1, 3, 0))]);
        assert_eq!(violations(&back).len(), 1);

        let of_a_dead_one = history(&[
            (2, "k", pod("a", 1, 5, 0)),
            (4, "k", None),
            (6, "l", pod("b", 1, 5, 0)),
        ]);
        assert_eq!(violations(&of_a_dead_one).len(), 1);

        let lost = history(&[(2, "k", pod("a", 1, 0, 0)), (4, "k", pod("a", 2, 1, 0))]);
        assert_eq!(
            violations(&lost).len(),
            1,
            "a restart in time keeps the seq"
        );
    }

    #[test]
    fn a_seq_that_the_pod_did_not_have_is_found() {
        let mut told = history(&[(2, "k", pod("a", 1, 3, 0))]);
        told.beats = vec![accepted("a", "k", 0, 4.0, 3)];
        assert_eq!(violations(&told), Vec::<String>::new());
        told.beats = vec![accepted("a", "k", 0, 4.0, 4)];
        assert_eq!(violations(&told).len(), 1);
    }
}
