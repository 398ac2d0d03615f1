//! What is known of a removal: the record in the store, and what a view remembers. PURE.

use super::{REMOVALS, Reason, TOMBSTONES, millis, to_json};
use crate::{
    kv::{Op, Revision},
    model::{Incarnation, Pod, Retired, incarnation::retire, whole},
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// What the transaction that removes a pod says about it: an entry of the JSON array in `removals`, which tells of the last
/// transaction, and the pod's tombstone, which stays until somebody joins at that key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalRecord {
    /// The pod's key.
    pub key: String,
    /// Its seq.
    pub seq: u64,
    /// Why it left.
    pub reason: Reason,
    /// Which start of which pod it was.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// The beat of its goodbye, or the highest that was heard of it; 0: unknown.
    #[serde(default, with = "whole")]
    pub beat: u64,
    /// How long it had been silent, in milliseconds.
    pub silence_ms: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The id of the master that removed it.
    pub master: String,
    /// The operator who evicted it, and why; empty for all other reasons.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The incarnations that had the place before it. Only in tombstones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
}

impl RemovalRecord {
    /// The record of a pod that leaves now, after that much silence.
    pub fn of(pod: &Pod, reason: Reason, silence: Duration, time_ms: u64, master: &str) -> Self {
        Self {
            key: pod.key().to_string(),
            seq: pod.seq(),
            reason,
            incarnation: pod.incarnation(),
            beat: pod.beat(),
            silence_ms: millis(silence),
            time_ms,
            master: master.to_owned(),
            by: String::new(),
            retired: pod.retired().to_vec(),
        }
    }

    /// The writes that tell why pods leave, for the transaction that removes them: one for each pod, and one more.
    pub fn writes(removals: &[Self]) -> Vec<Op> {
        let mut list = removals.to_vec();
        list.iter_mut().for_each(|removal| removal.retired.clear());
        let mut ops = vec![Op::put(REMOVALS, to_json(&list))];
        ops.extend(removals.iter().map(|removal| {
            let key = format!("{TOMBSTONES}{}", removal.key);
            Op::put(key, to_json(removal))
        }));
        ops
    }

    /// The incarnations that had the place, this one included.
    pub fn predecessors(&self) -> Vec<Retired> {
        let one = Retired {
            incarnation: self.incarnation.clone(),
            seq: self.seq,
            reason: Some(self.reason),
        };
        retire(&self.retired, one)
    }
}

/// A tombstone as the store holds it.
#[derive(Debug, Clone)]
pub struct Tombstone {
    /// What it says; absent when it can't be read.
    pub record: Option<Arc<RemovalRecord>>,
    /// The revision that wrote it.
    pub mod_revision: Revision,
}

/// A removal that this view remembers.
#[derive(Debug, Clone)]
pub struct Removal {
    /// The pod as it was.
    pub pod: Arc<Pod>,
    /// Why it left.
    pub reason: Reason,
    /// What else is known; absent when nobody wrote why.
    pub record: Option<RemovalRecord>,
}
