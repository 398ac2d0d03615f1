//! Stores for the tests: one whose way can be cut, and one whose writes hold a lock.

use crate::cluster::store::{SharedStore, Store, StoreError, Watch};
use async_trait::async_trait;
use kontrol_core::kv::{Events, LeaseId, Revision, Snapshot, Txn};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// The lease of a master.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How long a call to a store waits that can't be reached.
pub(super) const CALL: Duration = Duration::from_secs(2);
/// The way of one master to the store, which can be cut: then nothing comes through, either way.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) store: SharedStore,
    pub(super) cut: watch::Sender<bool>,
}

impl Way {
    pub(super) async fn passes(&self) -> bool {
        let mut cut = self.cut.subscribe();
        let open = timeout(CALL, cut.wait_for(|cut| !cut)).await;
        matches!(open, Ok(Ok(_)))
    }

    pub(super) async fn pass(&self) -> Result<(), StoreError> {
        let passes = self.passes().await;
        passes
            .then_some(())
            .ok_or_else(|| StoreError::Unavailable("cut".into()))
    }
}

#[async_trait]
impl Store for Way {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<kontrol_core::kv::Outcome, StoreError> {
        if !self.passes().await {
            return Err(StoreError::Indeterminate("cut".into()));
        }
        self.store.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.pass().await?;
        Ok(Box::new(Seen {
            watch: self.store.watch(behind).await?,
            cut: self.cut.subscribe(),
        }))
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.pass().await?;
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.pass().await?;
        self.store.keep_alive(lease).await?;
        Ok(LEASE)
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass().await?;
        self.store.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}

pub(super) struct Seen {
    pub(super) watch: Box<dyn Watch>,
    pub(super) cut: watch::Receiver<bool>,
}

#[async_trait]
impl Watch for Seen {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            let _ = self.cut.wait_for(|cut| !cut).await;
            tokio::select! {
                biased;
                _ = self.cut.changed() => {}
                events = self.watch.next() => return events,
            }
        }
    }
}

/// A store whose writes come one after the other, each with a lock that its caller's future holds.
#[derive(Debug)]
pub(super) struct Locking {
    pub(super) way: Way,
    pub(super) lock: tokio::sync::Mutex<()>,
}

pub(super) const WRITE: Duration = Duration::from_millis(300);

#[async_trait]
impl Store for Locking {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.way.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.way.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.way.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<kontrol_core::kv::Outcome, StoreError> {
        let _lock = self.lock.lock().await;
        sleep(WRITE).await;
        self.way.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.way.watch(behind).await
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.way.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.way.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.way.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}
