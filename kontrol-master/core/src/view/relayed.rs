//! What masters that can't reach the leader tell it through the store: one key for each of them, `relay/<master>`, which
//! holds its latest batch. PURE: time is an argument.
//!
//! A batch takes effect when the view that holds it is made: every view knows all keepalives that stand in the store at
//! its revision. A snapshot shows only the latest batch of each master; whether some before it were missed is told by
//! their numbers, and no pod is held to account for a time from which some are missing.

use crate::{
    kv::{Entry, Revision},
    liveness::{Blind, Instance},
    model::PodKey,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// How many notes may wait for the term; it reads them at each new view.
const MAX_NOTES: usize = 4096;

/// The JSON of `relay/<master>`: the keepalives that a master heard and could not tell the leader.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    /// Which start of the master wrote it, 16 hex digits.
    pub instance: String,
    /// Number of the batch: 1 when the key is made, then growing by one.
    pub batch: u64,
    /// What was heard since the batch before.
    pub signs: Vec<RelayedSign>,
}

/// One pod that was heard, or whose channel ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayedSign {
    /// The pod's key.
    pub key: String,
    /// How long ago that was when the batch was written, in milliseconds.
    pub age_ms: u64,
    /// The revision of the record that it was held against.
    pub revision: Revision,
    /// The beat; 0: unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub beat: u64,
    /// The number of the pod's attachment to that master; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attachment: u64,
    /// The attachment ended without a goodbye: no sign of life.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The end of a channel, as a batch tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayedEnd {
    /// The pod's key.
    pub key: PodKey,
    /// The revision of the record that it was held against.
    pub revision: Revision,
    /// The attachment that ended.
    pub attachment: u64,
    /// When it ended.
    pub at: Instant,
}

/// The latest batch of one master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latest {
    /// Which start of the master wrote it.
    pub instance: Option<Instance>,
    /// Its number.
    pub batch: u64,
    /// The revision that made the key.
    pub create_revision: Revision,
    /// The revision that wrote the batch.
    pub mod_revision: Revision,
    /// When it arrived.
    pub at: Instant,
}

impl Latest {
    /// The batch in this entry of the store.
    pub(super) fn of(entry: &Entry, record: &RelayRecord, at: Instant) -> Self {
        Self {
            instance: record.instance.parse().ok(),
            batch: record.batch,
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            at,
        }
    }

    /// Whether no batch can lie between an earlier one and this.
    fn follows(&self, before: Option<&Self>) -> bool {
        match before {
            Some(before) if before.create_revision == self.create_revision => {
                before.instance == self.instance
                    && (self.batch == before.batch
                        || Some(self.batch) == before.batch.checked_add(1))
            }
            // The key was made since; the end of its last use was told to the leader directly before it was deleted.
            Some(_) | None => self.batch == 1,
        }
    }
}

/// Notes in order, each read once by whoever remembers how many it has read.
#[derive(Debug, Clone)]
pub struct Notes<T: Clone> {
    written: u64,
    last: imbl::Vector<T>,
}

impl<T: Clone> Default for Notes<T> {
    fn default() -> Self {
        Self {
            written: 0,
            last: imbl::Vector::new(),
        }
    }
}

impl<T: Clone> Notes<T> {
    fn write(&mut self, note: T) {
        self.written += 1;
        self.last.push_back(note);
        if self.last.len() > MAX_NOTES {
            self.last.pop_front();
        }
    }

    /// The notes behind the first `read` ones, as far as they are still there.
    pub fn behind(&self, read: u64) -> impl Iterator<Item = &T> {
        let unread = usize::try_from(self.written.saturating_sub(read)).unwrap_or(usize::MAX);
        self.last
            .iter()
            .skip(self.last.len().saturating_sub(unread))
    }

    /// How many were ever written.
    pub fn written(&self) -> u64 {
        self.written
    }
}

/// What was told through the store.
#[derive(Debug, Clone, Default)]
pub struct Relayed {
    masters: BTreeMap<String, Latest>,
    /// Spans from which batches may be missing.
    pub deaf: Notes<Blind>,
    /// Channels that ended.
    pub ends: Notes<RelayedEnd>,
}

impl Relayed {
    /// The masters that tell the leader through the store, by id, each with its latest batch.
    pub fn masters(&self) -> &BTreeMap<String, Latest> {
        &self.masters
    }

    /// Takes in a batch. `gap`: since when batches before it may be missing, when it comes from a snapshot.
    pub(super) fn hear(&mut self, master: &str, latest: Latest, gap: Option<Instant>) {
        let before = self.masters.insert(master.to_owned(), latest);
        if let Some(since) = gap
            && !latest.follows(before.as_ref())
        {
            let since = before.map_or(since, |before| before.at);
            self.deaf.write(Blind::between(since, latest.at));
        }
    }

    pub(super) fn end(&mut self, end: RelayedEnd) {
        self.ends.write(end);
    }

    pub(super) fn forget(&mut self, master: &str) {
        self.masters.remove(master);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn latest(batch: u64, create_revision: Revision, at: Instant) -> Latest {
        Latest {
            instance: Some(Instance(1)),
            batch,
            create_revision,
            mod_revision: create_revision + 1,
            at,
        }
    }

    fn spans(relayed: &Relayed) -> Vec<Blind> {
        relayed.deaf.behind(0).copied().collect()
    }

    #[test]
    fn a_snapshot_behind_which_batches_are_missing_is_a_time_of_deafness() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut relayed = Relayed::default();
        relayed.hear("m", latest(1, 10, at(1)), Some(start));
        relayed.hear("m", latest(2, 10, at(2)), Some(at(1)));
        // The same one again, and the first of a key that was made anew.
        relayed.hear("m", latest(2, 10, at(3)), Some(at(2)));
        relayed.hear("m", latest(1, 20, at(4)), Some(at(3)));
        assert_eq!(spans(&relayed), []);
        relayed.hear("m", latest(3, 20, at(6)), Some(at(5)));
        assert_eq!(spans(&relayed), [Blind::between(at(4), at(6))]);
        // A watch misses nothing.
        relayed.hear("n", latest(7, 30, at(7)), None);
        assert_eq!(spans(&relayed).len(), 1);
        // Nothing is known of that master: deaf since the view before.
        relayed.hear("o", latest(5, 40, at(9)), Some(at(8)));
        assert_eq!(spans(&relayed)[1..], [Blind::between(at(8), at(9))]);
        // Another start of the same master counts anew.
        let other = Latest {
            instance: Some(Instance(2)),
            ..latest(6, 40, at(11))
        };
        relayed.hear("o", other, Some(at(10)));
        assert_eq!(spans(&relayed)[2..], [Blind::between(at(9), at(11))]);
        // Behind a number that no master reaches comes none.
        relayed.hear("last", latest(u64::MAX, 50, at(12)), None);
        relayed.hear("last", latest(2, 50, at(13)), Some(at(12)));
        assert_eq!(spans(&relayed)[3..], [Blind::between(at(12), at(13))]);
    }

    #[test]
    fn notes_are_read_once_and_bounded() {
        let mut notes = Notes::default();
        (0..10).for_each(|n| notes.write(n));
        assert_eq!(notes.behind(7).copied().collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(notes.behind(notes.written()).count(), 0);
        (0..2 * MAX_NOTES).for_each(|n| notes.write(n));
        assert_eq!(notes.behind(0).count(), MAX_NOTES);
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_leaves_out_what_is_zero() {
        let sign = RelayedSign {
            key: "39mysN".into(),
            age_ms: 12,
            revision: 9,
            beat: u64::MAX,
            attachment: 0,
            detached: false,
        };
        let record = RelayRecord {
            instance: Instance(1).to_string(),
            batch: 1,
            signs: vec![sign],
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"instance":"0000000000000001","batch":1,"signs":[{"key":"39mysN","ageMs":12,"revision":9,"beat":18446744073709551615}]}"#
        );
        assert_eq!(serde_json::from_str::<RelayRecord>(&text).unwrap(), record);
    }
}
