//! Putting the callback's state by hand.

use crate::cluster::{
    error::Error,
    store::{SharedStore, commit_or_read},
};
use kontrol_core::{
    kv::{Compare, Op, Outcome, Revision, Txn},
    model::Exact,
    view::{STATE, StateRecord, Unreadable, View},
};

/// How often a put is tried when other writes keep coming in between.
const MAX_ATTEMPTS: usize = 16;

/// Replaces the stored state. The digest that the callback handled last stays. Returns the revision of the write.
pub async fn put(store: &SharedStore, view: &View, state: Exact) -> Result<Revision, Error> {
    let mut current = match view.state() {
        Ok((record, revision)) => (StateRecord::clone(record), revision),
        Err(unreadable) => replaced(unreadable),
    };
    for _ in 0..MAX_ATTEMPTS {
        let record = StateRecord {
            state: Some(state.clone()),
            ..current.0
        };
        let txn = Txn {
            compares: vec![Compare::unchanged(STATE, current.1)],
            ops: vec![Op::put(
                STATE,
                serde_json::to_vec(&record)
                    .map_err(|error| Error::Internal(format!("write the state: {error}")))?,
            )],
            otherwise: vec![STATE.to_owned()],
        };
        let outcome = commit_or_read(store, txn).await;
        match outcome.map_err(|error| Error::from_store(&error))? {
            Outcome::Committed(revision) => return Ok(revision),
            Outcome::Conflict(snapshot) => {
                current =
                    StateRecord::find(&snapshot).unwrap_or_else(|unreadable| replaced(&unreadable));
                if current.0.state.as_ref() == Some(&state) {
                    return Ok(current.1);
                }
            }
        }
    }
    Err(Error::Unavailable(
        "others kept changing the state; try again".to_owned(),
    ))
}

/// The record that replaces one that can't be read, because a person asked for it. The digest handled last is lost.
fn replaced(unreadable: &Unreadable) -> (StateRecord, Revision) {
    tracing::warn!("a state is put in place of a record that can't be read");
    (StateRecord::default(), unreadable.revision)
}
