//! The store: one ensemble's small, ordered, watched set of keys.
//!
//! ```text
//! pods/<key>       a live pod: canonical JSON, see `kontrol_core::model::pod`
//! seq              the next seq to give, as decimal text
//! leader/<lease>   a candidate (JSON: id, address, instance); the one with the lowest create-revision leads
//! state            the callback's state, the digest it handled, and at which epoch
//! operate          a hold of the callback, a run that is asked for, the safeguard, see `kontrol_core::view::operate`
//! masters/<id>     a live master (JSON: id, address, instance), bound to its lease
//! removals         the last removals and their reasons, written by the transaction that removes
//! relay/<master>   what a master heard that can't reach the leader, see `kontrol_core::view::relayed`
//! removals/<key>   who left last from a key where no pod is now, see `kontrol_core::view::RemovalRecord`
//! actions/<id>     an action and who carries it, see `kontrol_core::model::action`; bound to a lease where the store has those
//! ```
//!
//! Keys are relative to the ensemble's prefix, `/kontrol/<namespace>/<app>/`. Every write is a transaction, every
//! transaction has one revision, revisions only grow. A transaction that compares revisions may be sent again safely;
//! nothing else is ever repeated.

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod double;
pub mod embedded;
pub mod etcd;
pub mod measured;
pub mod url;

pub use url::{EtcdOptions, EtcdTls, StoreUrl, open};

use async_trait::async_trait;
use kontrol_core::kv::{Events, LeaseId, Outcome, Revision, Snapshot, Txn};
use std::{fmt, sync::Arc, time::Duration};

/// Why the store did not do what it was asked, by what the caller must do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store can't be reached or has no quorum; nothing was written. Try again later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No answer came, so the transaction may or may not be committed, now or a little later. Read back and decide.
    #[error("the store did not answer in time, the write may have happened: {0}")]
    Indeterminate(String),
    /// The revision asked for is no longer there. Take a snapshot and go on from it.
    #[error("revision {0} is no longer in the store")]
    Compacted(Revision),
    /// The lease is gone, and its keys with it. Grant another.
    #[error("lease {0} is gone")]
    LeaseGone(LeaseId),
    /// The store refuses for good: wrong password, missing permission, request too large. A person must act.
    #[error("the store refuses: {0}")]
    Refused(String),
}

/// The changes behind a revision, as they come.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next changes. Cancel safe. An error ends the watch; `Compacted` when changes were lost.
    async fn next(&mut self) -> Result<Events, StoreError>;
}

/// A store of one ensemble. Each method is one round trip with a deadline of its own, and never retries a write.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Reads every key, all at one revision.
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Reads every key under a prefix (`pods/`) as it was at an earlier revision. `Compacted` when that is forgotten.
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError>;

    /// Reads those of these keys that exist, at one revision. A name that ends in a slash (`relay/`) stands for every key
    /// that begins with it; that is for few and small keys, because they come in one answer. At most `MAX_TXN_OPS` names.
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError>;

    /// Commits a transaction.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Follows every key from the first change behind a revision.
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Makes a lease that lasts this long without a sign of life. The store may round it up; it tells what it took.
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError>;

    /// Gives the lease its full time again; the answer is that time. `LeaseGone` when it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease and deletes its keys. A lease that is gone already is fine.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Whether leases can end by themselves: false for a store that lives inside this one process.
    fn leases_expire(&self) -> bool;

    /// The same store for whoever waits no longer than this for a call; none where no call is ever waited for.
    fn serving(&self, _deadline: Duration) -> Option<SharedStore> {
        None
    }
}

/// Commits a transaction that reads what it compares. When no clear answer comes, that is read, as after a conflict: whoever
/// finds what it wrote is done, and whoever tries again compares again.
pub async fn commit_or_read(store: &SharedStore, txn: Txn) -> Result<Outcome, StoreError> {
    let keys = txn.otherwise.clone();
    match store.commit(txn).await {
        Err(StoreError::Indeterminate(_)) => store.read(&keys).await.map(Outcome::Conflict),
        outcome => outcome,
    }
}

/// Whether a name that is read stands for all keys that begin with it.
fn is_prefix(name: &str) -> bool {
    name.ends_with('/')
}

/// A store that all tasks of a master share.
pub type SharedStore = Arc<dyn Store>;

/// The same store for whoever waits no longer than this for a call: a time-out is derived from the deadline that it
/// serves.
pub fn serving(store: &SharedStore, deadline: Duration) -> SharedStore {
    store.serving(deadline).unwrap_or_else(|| Arc::clone(store))
}
