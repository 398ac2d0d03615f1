//! What the callback handled last: the digest, and the roster that it stood for, from which `CHANGES` is told.

use crate::cluster::store::{SharedStore, StoreError};
use kontrol_core::{
    kv::Revision,
    model::{Digest, Pod},
    view::{PODS, View},
};
use std::sync::Arc;
use tokio::sync::watch;

/// The pods of a roster by seq.
pub(super) type Order = imbl::OrdMap<u64, Arc<Pod>>;

/// What was handled last.
#[derive(Debug, Clone, Default)]
pub struct Handled {
    /// Absent before the first time.
    digest: Option<Digest>,
    revision: Revision,
    /// The roster it stood for; absent while it was not read back.
    order: Option<Order>,
}

impl Handled {
    /// What the store says was handled last.
    pub fn recorded(view: &View) -> Self {
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

    /// The digest that was handled last, where that is known; nothing before the first time.
    pub fn known(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether this roster needs no run. An empty one needs none before the first time.
    pub fn covers(&self, view: &View) -> bool {
        self.digest() == view.digest()
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

    /// The roster that it stood for, read back from the store's past after a change of leaders. An error when the store
    /// can't be asked.
    pub(super) async fn baseline(&self, store: &SharedStore) -> Result<Baseline, StoreError> {
        let Some(digest) = self.digest else {
            return Ok(Baseline::Nothing);
        };
        if let Some(order) = &self.order {
            return Ok(Baseline::Roster(digest, order.clone()));
        }
        let snapshot = match store.snapshot_at(PODS, self.revision).await {
            Err(StoreError::Compacted(_)) => return Ok(Baseline::Forgotten),
            snapshot => snapshot?,
        };
        let pods = snapshot
            .entries
            .iter()
            .filter_map(|entry| Pod::decode(&entry.value).ok());
        let order: Order = pods.map(|pod| (pod.seq(), Arc::new(pod))).collect();
        Ok(if Digest::of(order.values()) == digest {
            Baseline::Roster(digest, order)
        } else {
            // The store was restored, and its past is another one.
            Baseline::Forgotten
        })
    }
}

/// What changes are told against.
pub(super) enum Baseline {
    /// Nothing was handled yet: all pods have joined.
    Nothing,
    /// The digest that was handled last, and its roster.
    Roster(Digest, Order),
    /// The store does not have that roster any more.
    Forgotten,
}

/// What this master, as the leader, handled last: the store may have forgotten the roster of it. Nothing while it doesn't
/// lead. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Memory(watch::Sender<Option<Handled>>);

impl Memory {
    /// What it handled last, if it leads.
    pub fn now(&self) -> Option<Handled> {
        self.0.borrow().clone()
    }

    pub(super) fn set(&self, handled: Option<Handled>) {
        self.0.send_replace(handled);
    }
}
