//! Never refused: how long a pod was without an accepted keepalive, by the kind of fault.

use super::record::{Beat, History, Time};
use std::collections::BTreeMap;

/// The longest time without acceptance for one pod, from the first keepalive that was not accepted to the answer to the next
/// that was, for each kind of fault.
pub fn silences(history: &History) -> BTreeMap<String, Time> {
    let mut longest: BTreeMap<String, Time> = BTreeMap::new();
    let mut open: BTreeMap<&str, Time> = BTreeMap::new();
    let mut told = |from: Time, to: Time| {
        let during = history
            .faults
            .iter()
            .find(|fault| fault.from <= to && from <= fault.ready);
        let kind = during.map_or("none", |fault| fault.kind.as_str());
        let time = longest.entry(kind.to_owned()).or_default();
        *time = time.max(to - from);
    };
    let mut beats: Vec<&Beat> = history.beats.iter().collect();
    beats.sort_by(|a, b| a.sent.total_cmp(&b.sent));
    for beat in beats {
        if beat.accepted() {
            if let Some(from) = open.remove(beat.key.as_str()) {
                told(from, beat.done);
            }
        } else {
            open.entry(&beat.key).or_insert(beat.sent);
        }
    }
    for from in open.into_values() {
        told(from, history.end);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            record::{Answer, Fault},
            samples::{accepted, beat},
        },
        *,
    };

    #[test]
    fn the_longest_time_counts_under_the_fault_that_was() {
        let fault = |kind: &str, from: Time, ready: Time| Fault {
            kind: kind.into(),
            from,
            mended: from,
            ready,
        };
        let refused = |at: Time| beat("a", "k", 0, at, Answer::Unclear);
        let history = History {
            faults: vec![fault("kill", 10.0, 12.0), fault("pause", 20.0, 30.0)],
            beats: vec![
                accepted("a", "k", 0, 9.0, 0),
                refused(10.0),
                refused(11.0),
                accepted("a", "k", 0, 11.5, 0),
                refused(20.0),
            ],
            end: 24.0,
            ..History::default()
        };
        let expected = [("kill".to_owned(), 1.5), ("pause".to_owned(), 4.0)];
        assert_eq!(silences(&history), BTreeMap::from(expected));
    }
}
