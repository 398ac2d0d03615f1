//! The state of an embedded store: the keys as they are, and a bounded history of how they came to be. PURE.
//!
//! Each revision is one `Step`. A step is first planned against the state, then (by a store with a file) made durable,
//! then applied; planning changes nothing, and applying can't fail. `floor` is the earliest revision that the history
//! can still restore; what is asked from before it is `Compacted`.

use crate::cluster::store::{StoreError, is_prefix};
use bytes::Bytes;
use kontrol_core::kv::{
    Compare, Entry, Event, Events, LeaseId, Op, Outcome, Revision, Snapshot, Txn,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    time::Duration,
};

/// Most revisions in the history.
const HISTORY_REVISIONS: usize = 10_000;
/// Most bytes of values in the history.
const HISTORY_BYTES: usize = 64 * 1024 * 1024;
/// After this many bytes a batch of events ends, at the end of a revision.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// What is kept of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) value: Bytes,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) lease: Option<LeaseId>,
}

impl Record {
    fn entry(&self, key: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
        }
    }
}

/// How one revision changes one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: String,
    pub(super) before: Option<Record>,
    pub(super) after: Option<Record>,
}

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
}

impl Step {
    fn bytes(&self) -> usize {
        let size = |record: &Option<Record>| record.as_ref().map_or(0, |record| record.value.len());
        self.changes
            .iter()
            .map(|change| change.key.len() + size(&change.before) + size(&change.after))
            .sum()
    }
}

/// What a transaction would do.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing: this is its outcome.
    Done(Outcome),
    /// This step; `Committed` once it is applied.
    Step(Step),
}

/// The keys and their history.
#[derive(Debug, Default)]
pub(super) struct State {
    keys: BTreeMap<String, Record>,
    revision: Revision,
    floor: Revision,
    history: VecDeque<Step>,
    history_bytes: usize,
    /// The leases given out, with their times to live. They end only by being revoked, or with the process.
    leases: HashMap<LeaseId, Duration>,
}

impl State {
    /// The state with these keys, and the history that led to them (without gaps, up to this revision).
    pub(super) fn restore(
        keys: BTreeMap<String, Record>,
        revision: Revision,
        history: VecDeque<Step>,
    ) -> Self {
        let mut state = Self {
            floor: history.front().map_or(revision, |step| step.revision - 1),
            history_bytes: history.iter().map(Step::bytes).sum(),
            keys,
            revision,
            history,
            leases: HashMap::new(),
        };
        state.trim(HISTORY_REVISIONS, HISTORY_BYTES);
        state
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    fn snapshot_of<'a>(&self, entries: impl Iterator<Item = (&'a String, &'a Record)>) -> Snapshot {
        Snapshot {
            revision: self.revision,
            entries: entries.map(|(key, record)| record.entry(key)).collect(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot_of(self.keys.iter())
    }

    /// Those of these keys that exist.
    pub(super) fn read(&self, names: &[String]) -> Snapshot {
        let mut found: BTreeMap<&String, &Record> = BTreeMap::new();
        for name in names {
            if is_prefix(name) {
                found.extend(self.under(name));
            } else {
                found.extend(self.keys.get_key_value(name));
            }
        }
        self.snapshot_of(found.into_iter())
    }

    /// The keys that begin with this.
    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Record)> {
        self.keys
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The keys under a prefix at an earlier revision: the keys of now, with the steps since then undone.
    pub(super) fn snapshot_at(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<Snapshot, StoreError> {
        if revision < self.floor || revision > self.revision {
            return Err(StoreError::Compacted(revision));
        }
        let mut keys: BTreeMap<&String, &Record> = self.under(prefix).collect();
        let later = self
            .history
            .iter()
            .rev()
            .take_while(|step| step.revision > revision);
        for change in later.flat_map(|step| step.changes.iter().rev()) {
            if !change.key.starts_with(prefix) {
                continue;
            }
            match &change.before {
                Some(record) => keys.insert(&change.key, record),
                None => keys.remove(&change.key),
            };
        }
        Ok(Snapshot {
            revision,
            ..self.snapshot_of(keys.into_iter())
        })
    }

    /// The changes behind a revision, whole revisions up to a batch; none when there are none yet.
    pub(super) fn since(&self, behind: Revision) -> Result<Option<Events>, StoreError> {
        if behind < self.floor || behind > self.revision {
            return Err(StoreError::Compacted(behind));
        }
        if behind == self.revision {
            return Ok(None);
        }
        let first = self.history.partition_point(|step| step.revision <= behind);
        let (mut revision, mut bytes, mut events) = (behind, 0, Vec::new());
        for step in self.history.range(first..) {
            revision = step.revision;
            bytes += step.bytes();
            events.extend(step.changes.iter().map(|change| match &change.after {
                Some(record) => Event::Put(record.entry(&change.key)),
                None => Event::Delete {
                    key: change.key.clone(),
                    revision,
                },
            }));
            if bytes > BATCH_BYTES {
                break;
            }
        }
        Ok(Some(Events { revision, events }))
    }

    /// What a transaction would do now.
    pub(super) fn plan(&self, txn: Txn) -> Result<Plan, StoreError> {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            let read = self.read(&txn.otherwise);
            return Ok(Plan::Done(Outcome::Conflict(read)));
        }
        let revision = self.revision + 1;
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            changes.extend(match op {
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease.filter(|lease| !self.leases.contains_key(lease)) {
                        return Err(StoreError::LeaseGone(lease));
                    }
                    let before = self.keys.get(&key).cloned();
                    let after = Record {
                        value,
                        create_revision: before.as_ref().map_or(revision, |r| r.create_revision),
                        mod_revision: revision,
                        lease,
                    };
                    Some(Change {
                        key,
                        before,
                        after: Some(after),
                    })
                }
                Op::Delete(key) => self.deletion(key),
            });
        }
        Ok(if changes.is_empty() {
            Plan::Done(Outcome::Committed(self.revision))
        } else {
            Plan::Step(Step { revision, changes })
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::ModRevision(key, revision) => {
                self.keys.get(key).map_or(0, |r| r.mod_revision) == *revision
            }
            Compare::CreateRevision(key, revision) => {
                self.keys.get(key).map_or(0, |r| r.create_revision) == *revision
            }
            Compare::NotNewer { prefix, revision } => self
                .under(prefix)
                .all(|(_, record)| record.mod_revision <= *revision),
        }
    }

    fn deletion(&self, key: String) -> Option<Change> {
        let before = self.keys.get(&key).cloned()?;
        Some(Change {
            key,
            before: Some(before),
            after: None,
        })
    }

    /// The step that deletes the keys of one lease, or of every lease; none when there are no such keys.
    pub(super) fn plan_release(&self, lease: Option<LeaseId>) -> Option<Step> {
        let ends = |record: &Record| match lease {
            Some(lease) => record.lease == Some(lease),
            None => record.lease.is_some(),
        };
        let changes: Vec<Change> = self
            .keys
            .iter()
            .filter(|(_, record)| ends(record))
            .filter_map(|(key, _)| self.deletion(key.clone()))
            .collect();
        (!changes.is_empty()).then_some(Step {
            revision: self.revision + 1,
            changes,
        })
    }

    /// Takes the step that was planned on this very state.
    pub(super) fn apply(&mut self, step: Step) {
        self.revision = step.revision;
        for change in &step.changes {
            match &change.after {
                Some(record) => self.keys.insert(change.key.clone(), record.clone()),
                None => self.keys.remove(&change.key),
            };
        }
        self.history_bytes += step.bytes();
        self.history.push_back(step);
        self.trim(HISTORY_REVISIONS, HISTORY_BYTES);
    }

    fn trim(&mut self, revisions: usize, bytes: usize) {
        while self.history.len() > revisions || self.history_bytes > bytes {
            let Some(step) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= step.bytes();
            self.floor = step.revision;
        }
    }

    /// Forgets the history but for the last so many revisions.
    #[cfg(test)]
    pub(super) fn forget_all_but(&mut self, revisions: usize) {
        self.trim(revisions, HISTORY_BYTES);
    }

    pub(super) fn grant(&mut self, lease: LeaseId, ttl: Duration) {
        self.leases.insert(lease, ttl);
    }

    /// The lease's time to live.
    pub(super) fn lease(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.leases
            .get(&lease)
            .copied()
            .ok_or(StoreError::LeaseGone(lease))
    }

    /// Ends a lease. Its keys go by a step of their own.
    pub(super) fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// Takes the place of a state that is not sure to be what is on the disk; the leases live on.
    pub(super) fn succeed(&mut self, mut truth: Self) {
        std::mem::swap(&mut truth.leases, &mut self.leases);
        *self = truth;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commit(state: &mut State, ops: Vec<Op>) {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        if let Plan::Step(step) = state.plan(txn).unwrap() {
            state.apply(step);
        }
    }

    #[test]
    fn the_history_is_bounded_by_bytes_and_by_revisions() {
        let mut state = State::default();
        for _ in 0..100 {
            commit(&mut state, vec![Op::put("big", vec![0; 1024 * 1024])]);
        }
        assert!(state.history_bytes <= HISTORY_BYTES);
        assert!(state.floor > 0);
        for _ in 0..=HISTORY_REVISIONS {
            commit(&mut state, vec![Op::put("small", "x")]);
        }
        assert!(state.history.len() <= HISTORY_REVISIONS);
        assert_eq!(state.floor, state.history[0].revision - 1);
        assert!(state.snapshot_at("", state.floor).is_ok());
        assert!(matches!(
            state.since(state.floor - 1),
            Err(StoreError::Compacted(_))
        ));
    }

    proptest! {
        #[test]
        fn every_earlier_revision_can_be_restored_and_replayed(
            txns in prop::collection::vec(prop::collection::btree_map(0_u8..6, any::<Option<u8>>(), 1..4), 1..40)
        ) {
            let mut state = State::default();
            let mut seen = vec![state.snapshot()];
            for txn in txns {
                let ops = txn.into_iter().map(|(key, value)| match value {
                    Some(value) => Op::put(format!("k{key}"), vec![value]),
                    None => Op::Delete(format!("k{key}")),
                });
                commit(&mut state, ops.collect());
                if state.revision() > seen.last().map_or(0, |last| last.revision) {
                    seen.push(state.snapshot());
                }
            }
            for snapshot in &seen {
                prop_assert_eq!(&state.snapshot_at("k", snapshot.revision).unwrap(), snapshot);
                let mut entries: BTreeMap<String, Entry> =
                    snapshot.entries.iter().map(|entry| (entry.key.clone(), entry.clone())).collect();
                let mut behind = snapshot.revision;
                while let Some(batch) = state.since(behind).unwrap() {
                    behind = batch.revision;
                    for event in batch.events {
                        match event {
                            Event::Put(entry) => entries.insert(entry.key.clone(), entry),
                            Event::Delete { key, .. } => entries.remove(&key),
                        };
                    }
                }
                prop_assert_eq!(entries.into_values().collect::<Vec<_>>(), state.snapshot().entries);
            }
        }
    }
}
