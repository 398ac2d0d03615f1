//! Which history of the store a revision belongs to. PURE.
//!
//! A revision is a number, and numbers come again: in an etcd that was restored from a backup, in a memory store that
//! began anew. So a revision goes with a fingerprint of everything that the store held at it. Where the fingerprints
//! are the same, so is what was told until then, whatever happened to the store; where they differ, nothing may be
//! concluded from the number. The fingerprint is a sum over the entries, so that each change costs one entry, and all
//! masters come to the same one, from whatever snapshot they began.

use kontrol_core::kv::{Entry, Event, Events, Revision, Snapshot};
use md5::{Digest as _, Md5};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    str::FromStr,
};

/// How many revisions the fingerprint is known of.
const REMEMBERED: usize = 16 * 1024;

/// The fingerprint of all that the store held at one revision: 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History(u64);

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not 16 hex digits")]
pub struct NoHistory;

impl FromStr for History {
    type Err = NoHistory;

    fn from_str(text: &str) -> Result<Self, NoHistory> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoHistory);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| NoHistory)
    }
}

/// The entries of the store, as far as their fingerprint needs them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    prints: HashMap<String, u64>,
    sum: u64,
}

fn print(entry: &Entry) -> u64 {
    let mut hash = Md5::new();
    hash.update(entry.create_revision.to_be_bytes());
    hash.update(entry.mod_revision.to_be_bytes());
    // With its length before it a key never runs into the value.
    hash.update(
        u64::try_from(entry.key.len())
            .unwrap_or(u64::MAX)
            .to_be_bytes(),
    );
    hash.update(&entry.key);
    hash.update(&entry.value);
    let digest: [u8; 16] = hash.finalize().into();
    let [half, _] = digest.as_chunks::<8>().0 else {
        return 0; // 16 bytes are twice 8
    };
    u64::from_be_bytes(*half)
}

impl Entries {
    /// Whether a snapshot shows another history than the one that is known up to this revision: an entry that should have
    /// been known, and was not. A revision below the known one shows it as well.
    pub(super) fn are_contradicted_by(&self, snapshot: &Snapshot, known: Revision) -> bool {
        let is_news = |entry: &Entry| {
            entry.mod_revision <= known && self.prints.get(&entry.key) != Some(&print(entry))
        };
        snapshot.revision < known || snapshot.entries.iter().any(is_news)
    }

    /// Takes a snapshot for all there is.
    pub(super) fn replace(&mut self, snapshot: &Snapshot) -> History {
        *self = Self::default();
        for entry in &snapshot.entries {
            self.put(entry);
        }
        History(self.sum)
    }

    /// Takes changes; the fingerprint after each revision of them.
    pub(super) fn apply(&mut self, events: &Events) -> Vec<(Revision, History)> {
        let mut marks: Vec<(Revision, History)> = Vec::new();
        for event in &events.events {
            let revision = match event {
                Event::Put(entry) => {
                    self.put(entry);
                    entry.mod_revision
                }
                Event::Delete { key, revision } => {
                    self.delete(key);
                    *revision
                }
            };
            match marks.last_mut() {
                Some(last) if last.0 == revision => last.1 = History(self.sum),
                Some(_) | None => marks.push((revision, History(self.sum))),
            }
        }
        marks
    }

    fn put(&mut self, entry: &Entry) {
        let print = print(entry);
        let before = self.prints.insert(entry.key.clone(), print).unwrap_or(0);
        self.sum = self.sum.wrapping_sub(before).wrapping_add(print);
    }

    fn delete(&mut self, key: &str) {
        let before = self.prints.remove(key).unwrap_or(0);
        self.sum = self.sum.wrapping_sub(before);
    }
}

/// The fingerprints of the last revisions.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// From each of these revisions to the next the fingerprint is this one, or unknown.
    marks: VecDeque<(Revision, Option<History>)>,
    /// Up to which revision fingerprints are known.
    until: Revision,
    /// The highest revision of histories that are gone.
    gone: Revision,
}

impl Marks {
    /// A snapshot: what lies between it and what was known before is unknown.
    pub(super) fn skip_to(&mut self, revision: Revision, history: History) {
        if revision > self.until + 1 {
            self.push(self.until + 1, None);
        }
        self.push(revision, Some(history));
        self.until = revision;
    }

    /// What came without a gap, up to this revision.
    pub(super) fn go_on(&mut self, marks: Vec<(Revision, History)>, until: Revision) {
        for (revision, history) in marks {
            self.push(revision, Some(history));
        }
        self.until = until;
    }

    fn push(&mut self, revision: Revision, history: Option<History>) {
        if self.marks.back().is_some_and(|last| last.0 == revision) {
            self.marks.pop_back();
        }
        self.marks.push_back((revision, history));
        if self.marks.len() > REMEMBERED {
            self.marks.pop_front();
        }
    }

    /// Another history begins.
    pub(super) fn forget(&mut self) {
        self.gone = self.gone.max(self.until);
        self.marks.clear();
    }

    /// The fingerprint at a revision, where it is known.
    pub(super) fn at(&self, revision: Revision) -> Option<History> {
        if revision > self.until {
            return None;
        }
        let behind = self.marks.partition_point(|mark| mark.0 <= revision);
        self.marks.get(behind.checked_sub(1)?)?.1
    }

    /// Whether a revision that was told with this fingerprint, or without any, is one of this history.
    pub(super) fn has(&self, revision: Revision, history: Option<History>) -> bool {
        match history {
            Some(history) => self.at(revision) == Some(history),
            // It might be of any history that reached it.
            None => revision > self.gone && revision <= self.until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::{SharedStore, embedded::EmbeddedStore};
    use kontrol_core::kv::{Op, Txn};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn entry(key: &str, revision: Revision, value: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            value: value.to_owned().into(),
            create_revision: 1,
            mod_revision: revision,
        }
    }

    fn snapshot(revision: Revision, entries: &[Entry]) -> Snapshot {
        Snapshot {
            revision,
            entries: entries.to_vec(),
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_written_and_nothing_else_is() {
        for sum in [0, 1, u64::MAX] {
            let text = History(sum).to_string();
            assert_eq!(text.parse(), Ok(History(sum)));
        }
        for text in [
            "",
            "1",
            "+000000000000001",
            "00000000000000001",
            "000000000000000g",
        ] {
            assert_eq!(text.parse::<History>(), Err(NoHistory), "{text}");
        }
    }

    #[test]
    fn what_differs_in_anything_has_another_fingerprint() {
        let of = |entries: &[Entry]| Entries::default().replace(&snapshot(9, entries));
        let base = of(&[entry("a", 5, "1"), entry("b", 6, "1")]);
        assert_eq!(base, of(&[entry("b", 6, "1"), entry("a", 5, "1")]));
        for other in [
            &[][..],
            &[entry("a", 5, "1")],
            &[entry("a", 5, "2"), entry("b", 6, "1")],
            &[entry("a", 6, "1"), entry("b", 6, "1")],
            &[entry("a", 5, "1"), entry("c", 6, "1")],
            &[entry("a1", 5, ""), entry("b", 6, "1")],
        ] {
            assert_ne!(base, of(other), "{other:?}");
        }
    }

    #[test]
    fn a_restored_store_is_noticed_by_its_revision_or_by_what_should_have_been_known() {
        let mut entries = Entries::default();
        entries.replace(&snapshot(9, &[entry("a", 5, "1"), entry("b", 9, "1")]));
        let is_other =
            |revision, found: &[Entry]| entries.are_contradicted_by(&snapshot(revision, found), 9);
        // Deleted, changed and added later: all that can happen in one history.
        assert!(!is_other(9, &[entry("a", 5, "1"), entry("b", 9, "1")]));
        assert!(!is_other(12, &[entry("b", 10, "2"), entry("c", 12, "1")]));
        // Went back; went on from a backup to beyond what was known.
        assert!(is_other(8, &[entry("a", 5, "1")]));
        assert!(is_other(12, &[entry("a", 5, "1"), entry("b", 8, "1")]));
        assert!(is_other(12, &[entry("a", 5, "1"), entry("c", 9, "1")]));
        assert!(is_other(12, &[entry("b", 9, "2")]));
    }

    #[test]
    fn a_revision_is_known_by_its_fingerprint_or_where_no_other_history_reached_it() {
        let [one, two, three] = [1, 2, 3].map(History);
        let mut marks = Marks::default();
        assert_eq!(marks.at(0), None);
        marks.skip_to(10, one);
        // Revision 12 was of another ensemble.
        marks.go_on(vec![(11, two), (13, three)], 13);
        let at = |marks: &Marks| [9, 10, 11, 12, 13, 14].map(|revision| marks.at(revision));
        assert_eq!(
            at(&marks),
            [None, Some(one), Some(two), Some(two), Some(three), None]
        );
        assert!(marks.has(12, Some(two)) && !marks.has(12, Some(one)));
        assert!(marks.has(12, None) && !marks.has(14, None));
        // The watch broke and a snapshot followed.
        marks.skip_to(20, one);
        assert_eq!(
            [13, 14, 19, 20].map(|r| marks.at(r)),
            [Some(three), None, None, Some(one)]
        );
        // The store went back.
        marks.forget();
        marks.skip_to(15, two);
        marks.go_on(vec![(22, three)], 22);
        assert!(marks.has(16, Some(two)) && !marks.has(13, Some(three)));
        assert!(
            !marks.has(20, None),
            "it may be of the history that is gone"
        );
        assert!(marks.has(21, None));
    }

    #[tokio::test]
    async fn a_memory_store_that_begins_anew_is_another_history_at_the_same_revision() {
        let mut all = Vec::new();
        for value in ["first", "second"] {
            let store: SharedStore = Arc::new(EmbeddedStore::memory());
            for n in 0..5 {
                let txn = Txn {
                    ops: vec![Op::put(format!("pods/{n}"), value)],
                    ..Txn::default()
                };
                store.commit(txn).await.unwrap();
            }
            let snapshot = store.snapshot().await.unwrap();
            assert_eq!(snapshot.revision, 5);
            all.push(Entries::default().replace(&snapshot));
        }
        assert_ne!(all[0], all[1]);
    }

    proptest! {
        #[test]
        fn a_watch_and_a_snapshot_come_to_the_same_fingerprint(
            changes in prop::collection::vec((0_u8..5, any::<Option<u8>>()), 1..40)
        ) {
            let mut held: std::collections::BTreeMap<String, Entry> = std::collections::BTreeMap::new();
            let mut watched = Entries::default();
            for (revision, (key, value)) in (1..).zip(changes) {
                let key = format!("k{key}");
                let event = if let Some(value) = value {
                    let entry = entry(&key, revision, &value.to_string());
                    held.insert(key, entry.clone());
                    Event::Put(entry)
                } else {
                    held.remove(&key);
                    Event::Delete { key, revision }
                };
                let marks = watched.apply(&Events { revision, events: vec![event] });
                let entries: Vec<Entry> = held.values().cloned().collect();
                let read = Entries::default().replace(&snapshot(revision, &entries));
                prop_assert_eq!(marks, vec![(revision, read)]);
            }
        }
    }
}
