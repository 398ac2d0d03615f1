//! What the store holds and takes: entries, transactions, events. Whoever decides needs no more of it than this.

use crate::model::exact::MAX_STATE_BYTES;
use bytes::Bytes;
use std::{collections::HashSet, fmt};

/// Most operations in one transaction: etcd's default `--max-txn-ops` is 128, and counts compares, writes and reads apart.
pub const MAX_TXN_OPS: usize = 120;
/// Most bytes of values in one transaction: the largest state, of 1 MiB, with the record around it. The default of etcd's
/// `--max-request-bytes` is 1.5 MiB.
pub const MAX_TXN_BYTES: usize = MAX_STATE_BYTES + 64 * 1024;

/// A revision of the store: 0 before the first write, then one more with each transaction that writes.
pub type Revision = i64;

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, relative to the ensemble's prefix.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision that created the key (again, if it was deleted in between).
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
}

/// All keys, or some, as they were at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
}

impl Snapshot {
    /// The entry of a key, if there is one.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// What must hold for a transaction to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key doesn't exist.
    Absent(String),
    /// The key was last written by this revision.
    ModRevision(String, Revision),
    /// The key was created by this revision.
    CreateRevision(String, Revision),
    /// No key under this prefix (`relay/`) was written later than this revision; holds when there are none.
    NotNewer {
        /// The prefix.
        prefix: String,
        /// The last revision that may have written one of its keys.
        revision: Revision,
    },
}

impl Compare {
    /// The key is as it was read: written last by this revision, or not there (0).
    pub fn unchanged(key: impl Into<String>, revision: Revision) -> Self {
        match revision {
            0 => Self::Absent(key.into()),
            revision => Self::ModRevision(key.into(), revision),
        }
    }
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease that the key goes away with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, if it is there.
    Delete(String),
}

impl Op {
    /// Sets a key without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }
}

/// Writes that happen together, or not at all. At most `MAX_TXN_OPS` of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is then written. No key twice.
    pub ops: Vec<Op>,
    /// What is read instead when something does not hold, at the same revision; see `Store::read`.
    pub otherwise: Vec<String>,
}

impl Txn {
    /// Refuses, before anything is sent, what not every store could take.
    pub fn check(&self) -> Result<(), String> {
        let counts = [
            // A fence may come on top.
            ("compares", self.compares.len(), MAX_TXN_OPS + 1),
            ("writes", self.ops.len(), MAX_TXN_OPS),
            ("reads", self.otherwise.len(), MAX_TXN_OPS),
        ];
        if let Some((what, count, most)) = counts.iter().find(|(_, count, most)| count > most) {
            let reason = format!("a transaction of {count} {what}; {most} is the most");
            return Err(reason);
        }
        let mut bytes = 0;
        let mut seen = HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            let (key, size) = match op {
                // No record is empty: one that could not be encoded must not take the place of one that holds.
                Op::Put { key, value, .. } if value.is_empty() => {
                    let reason = format!("a transaction that writes nothing into {key}");
                    return Err(reason);
                }
                Op::Put { key, value, .. } => (key, value.len()),
                Op::Delete(key) => (key, 0),
            };
            bytes += size;
            if !seen.insert(key) {
                let reason = format!("a transaction that writes {key} twice");
                return Err(reason);
            }
        }
        if bytes > MAX_TXN_BYTES {
            let reason = format!("a transaction of {bytes} bytes; {MAX_TXN_BYTES} is the most");
            return Err(reason);
        }
        Ok(())
    }

    /// The first lease that a write is bound to.
    pub fn lease(&self) -> Option<LeaseId> {
        self.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete(_) => None,
        })
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was committed and made this revision. One that changed nothing (it deleted what was not there) made none, and
    /// this is the revision that it found.
    Committed(Revision),
    /// A compare did not hold; nothing was written. What `otherwise` reads, at this revision.
    Conflict(Snapshot),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put(Entry),
    /// The key was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

/// Changes in the order of their revisions. A revision is never split between two batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// The last revision that the batch covers.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// A lease: keys bound to it go away when nobody keeps it alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    /// As etcd's own election names its keys: lower-case hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The right to write as the leader: a transaction that carries it is committed only while the leader key is the one
/// that this leader created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    key: String,
    epoch: Revision,
}

impl Fence {
    /// The fence of the leader that owns this key (`leader/<lease>`), created at this revision.
    pub fn new(key: impl Into<String>, epoch: Revision) -> Self {
        Self {
            key: key.into(),
            epoch,
        }
    }

    /// The leader key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The epoch: the create-revision of the leader key.
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// The same transaction, committed only while this leader leads.
    pub fn guard(&self, mut txn: Txn) -> Txn {
        txn.compares
            .push(Compare::CreateRevision(self.key.clone(), self.epoch));
        txn
    }

    /// Whether the leader key, read with a conflict, is no longer the one that this leader created: another leads.
    pub fn is_lost(&self, found: &Snapshot) -> bool {
        let leader = found.get(&self.key);
        leader.is_none_or(|leader| leader.create_revision != self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_could_not_be_encoded_takes_no_others_place() {
        let txn = |value: &'static str| Txn {
            ops: vec![Op::put("seq", "1"), Op::put("state", value)],
            ..Txn::default()
        };
        assert!(txn("{}").check().is_ok());
        assert!(txn("").check().is_err());
    }
}
