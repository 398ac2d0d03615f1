//! Records whose master is gone, and what must hold for another one to take them over.

use super::{History, parse};
use crate::cluster::store::StoreError;
use kontrol_core::{
    kv::{Compare, Fence, Revision},
    model::action::{Record, State},
    view::{KnownAction, LEADER, MASTERS, PeerMaster, action_key},
};

/// How a record of another master is taken over, in one transaction.
#[derive(Debug)]
pub struct Taking {
    /// The revision of the record.
    pub revision: Revision,
    /// The right to do so; none is needed for what names this master already.
    pub fence: Option<Fence>,
    /// What holds only while the master that the record names is gone.
    pub absence: Vec<Compare>,
}

/// A record whose master is not there.
#[derive(Debug)]
pub struct Orphan {
    /// The record.
    pub record: Record,
    /// Its revision.
    pub revision: Revision,
    /// What must hold for it to be an orphan still.
    pub absence: Vec<Compare>,
}

impl History {
    /// Reads an action again whose master seems to be gone; nothing when it is over, or its master is there.
    pub async fn orphan(&self, known: &KnownAction) -> Result<Option<Orphan>, StoreError> {
        let head = &known.head;
        let record_key = action_key(&head.id);
        let mut carrier = vec![format!("{MASTERS}{}", head.master)];
        // A master of an older version says nothing about its candidacy.
        if !head.lease.is_empty() {
            carrier.push(format!("{LEADER}{}", head.lease));
        }
        let keys: Vec<String> = carrier
            .iter()
            .cloned()
            .chain([record_key.clone()])
            .collect();
        let read = self.store.read(&keys).await?;
        let find = |key: &String| read.get(key);
        let Some(entry) = find(&record_key) else {
            return Ok(None);
        };
        let Some(record) = parse(&head.id, entry) else {
            return Ok(None);
        };
        let same = record.head.instance == head.instance && record.head.lease == head.lease;
        if record.head.state != State::Running || !same {
            return Ok(None);
        }
        let mut absence = Vec::new();
        for key in carrier {
            absence.push(match find(&key) {
                None => Compare::Absent(key),
                Some(entry) => {
                    let master: Option<PeerMaster> = serde_json::from_slice(&entry.value).ok();
                    if master.is_none_or(|master| master.instance == head.instance) {
                        return Ok(None);
                    }
                    // Another master took over its name, so it is gone.
                    Compare::ModRevision(key, entry.mod_revision)
                }
            });
        }
        Ok(Some(Orphan {
            record,
            revision: entry.mod_revision,
            absence,
        }))
    }
}
