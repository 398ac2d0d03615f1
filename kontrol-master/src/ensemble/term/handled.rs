//! What the callback handled last: the digest, and the roster that it stood for, from which `CHANGES` is told.

use crate::cluster::store::{SharedStore, StoreError};
use kontrol_core::{
    kv::Revision,
    model::{Digest, Pod},
    view::{PODS, View},
};
use std::sync::Arc;

/// The pods of a roster by seq.
pub(super) type Order = imbl::OrdMap<u64, Arc<Pod>>;

/// What was handled last.
#[derive(Debug, Clone, Default)]
pub(super) struct Handled {
    /// Absent before the first time.
    digest: Option<Digest>,
    revision: Revision,
    /// The roster it stood for; absent while it was not read back.
    order: Option<Order>,
}

impl Handled {
    /// What the store says was handled last.
    pub(super) fn recorded(view: &View) -> Self {
        let Ok((state, _)) = view.state() else {
            return Self::default();
        };
        match state.digest.parse() {
            Ok(digest) => Self {
                digest: Some(digest),
                revision: state.revision,
                order: None,
            },
            Err(_) => Self::default(),
        }
    }

    /// Whether it is known what was handled last.
    pub(super) fn is_known(&self) -> bool {
        self.digest.is_some()
    }

    /// This roster was handled.
    pub(super) fn view(view: &View) -> Self {
        Self {
            digest: Some(view.digest()),
            revision: view.revision(),
            order: Some(view.order().clone()),
        }
    }

    /// The digest that needs no run: that of an empty roster before the first time.
    pub(super) fn digest(&self) -> Digest {
        self.digest.unwrap_or_else(Digest::of_nothing)
    }

    /// The digest and the roster that it stood for, read back from the store's past after a change of leaders. Nothing
    /// before the first time, and when the store has forgotten; an error when it can't be asked.
    pub(super) async fn baseline(
        &self,
        store: &SharedStore,
    ) -> Result<Option<(Digest, Order)>, StoreError> {
        let Some(digest) = self.digest else {
            return Ok(None);
        };
        if let Some(order) = &self.order {
            return Ok(Some((digest, order.clone())));
        }
        let snapshot = match store.snapshot_at(PODS, self.revision).await {
            Err(error @ StoreError::Compacted(_)) => {
                tracing::warn!(%error, "the store has forgotten what was handled last; all pods count as joined");
                return Ok(None);
            }
            snapshot => snapshot?,
        };
        let pods = snapshot
            .entries
            .iter()
            .filter_map(|entry| Pod::decode(&entry.value).ok());
        let order: Order = pods.map(|pod| (pod.seq(), Arc::new(pod))).collect();
        Ok((Digest::of(order.values()) == digest).then_some((digest, order)))
    }
}
