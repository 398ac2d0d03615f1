//! The record of what operators asked for, and of the safeguard. PURE.

use super::OPERATE;
use crate::kv::{Entry, Revision, Snapshot};
use serde::{Deserialize, Serialize};

/// The JSON of `operate`: one record, so that each change compares all of it. Fields of newer versions are lost when this
/// one writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperateRecord {
    /// The callback is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// A run is asked for, and has not started yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Demand>,
    /// Removals for silence are frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safeguard: Option<Freeze>,
}

/// An operator holds the callback. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
}

impl Hold {
    /// How much of it is left; never more than it was made for, whatever became of the clock.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        let whole = self.until_ms.saturating_sub(self.since_ms);
        self.until_ms.saturating_sub(now_ms).min(whole)
    }
}

/// An operator asks for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Tells it from the one before.
    pub id: String,
    /// Even for a digest that was handled.
    #[serde(default)]
    pub again: bool,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who.
    pub by: String,
}

/// Removals for silence are frozen. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Since when.
    pub since_ms: u64,
    /// Until when at the most.
    pub until_ms: u64,
    /// How many pods are silent.
    pub silent: usize,
    /// Of how many.
    pub pods: usize,
    /// Who released it, and why: the leader is about to end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
}

/// Who released the safeguard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Who.
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

impl OperateRecord {
    /// The record among these entries, and the revision that wrote it; the empty one and 0 where there is none. One that
    /// can't be read counts as empty, and the next write replaces it.
    pub fn find(snapshot: &Snapshot) -> (Self, Revision) {
        let entry = snapshot.get(OPERATE);
        entry.map_or_else(Default::default, |entry| {
            (Self::read(entry).unwrap_or_default(), entry.mod_revision)
        })
    }

    pub(super) fn read(entry: &Entry) -> serde_json::Result<Self> {
        serde_json::from_slice(&entry.value)
    }

    /// The record as the store has it.
    pub fn encode(&self) -> Vec<u8> {
        super::to_json(self)
    }
}
