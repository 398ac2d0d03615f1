//! A store that counts and times every call of another.

use super::{SharedStore, Store, StoreError, Watch};
use crate::metrics::Metrics;
use async_trait::async_trait;
use kontrol_core::kv::{LeaseId, Outcome, Revision, Snapshot, Txn};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Another store, measured.
#[derive(Debug)]
pub struct Measured {
    store: SharedStore,
    metrics: Arc<Metrics>,
}

impl Measured {
    /// Measures a store.
    pub fn new(store: SharedStore, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let result = call.await;
        self.metrics
            .store_call(operation, result.is_ok(), start.elapsed());
        result
    }
}

#[async_trait]
impl Store for Measured {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.measure("snapshot", self.store.snapshot()).await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        let call = self.store.snapshot_at(prefix, revision);
        self.measure("snapshot_at", call).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.measure("read", self.store.read(keys)).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.measure("commit", self.store.commit(txn)).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.measure("watch", self.store.watch(behind)).await
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.measure("grant", self.store.grant(ttl)).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.measure("keep_alive", self.store.keep_alive(lease))
            .await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.measure("revoke", self.store.revoke(lease)).await
    }
    fn leases_expire(&self) -> bool {
        self.store.leases_expire()
    }
    fn serving(&self, deadline: Duration) -> Option<SharedStore> {
        let store = self.store.serving(deadline)?;
        Some(Arc::new(Self::new(store, Arc::clone(&self.metrics))))
    }
}
