//! The record of the callback's state. PURE.

use super::STATE;
use crate::{
    kv::{Entry, Revision, Snapshot},
    model::{Exact, exact, invalid::one_line},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The JSON of `state`. A record that lacks what every record has is none: it counts as unreadable, not as empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StateRecord {
    /// What the callback persisted; absent before the first time. Null is a state like any other.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "exact::present"
    )]
    pub state: Option<Exact>,
    /// The digest that was handled last; empty before the first time.
    pub digest: String,
    /// The revision of the roster that was handled last.
    pub revision: Revision,
    /// The epoch of the leader that handled it.
    pub epoch: Revision,
}

impl StateRecord {
    /// The record among these entries, and the revision that wrote it: the empty record and 0 when there is none yet.
    pub fn find(snapshot: &Snapshot) -> Result<(Self, Revision), Unreadable> {
        match snapshot.get(STATE) {
            Some(entry) => Ok((Self::read(entry)?, entry.mod_revision)),
            None => Ok((Self::default(), 0)),
        }
    }

    pub(super) fn read(entry: &Entry) -> Result<Self, Unreadable> {
        serde_json::from_slice(&entry.value).map_err(|error| Unreadable {
            revision: entry.mod_revision,
            reason: one_line(error).into(),
        })
    }
}

/// The record of the state can't be read: somebody edited it, or a newer version wrote it. It stays as it is, and no
/// callback runs, until a person repairs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the record of the state in the store can't be read ({reason}); no callback runs until a person puts a state or repairs the record"
)]
pub struct Unreadable {
    /// The revision that wrote it.
    pub revision: Revision,
    pub(super) reason: Arc<str>,
}
