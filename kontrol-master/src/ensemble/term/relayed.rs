//! What masters that can't reach this leader tell it through the store: see `kontrol_core::view::relayed`. The view has counted
//! the keepalives; here are the times from which some may be missing, the ends of channels, and the keys that nobody
//! deletes.

use super::{Deposed, Term};
use kontrol_core::{
    kv::{Compare, Op, Outcome, Txn},
    liveness::Detached,
    view::{RELAY, View, relayed::RelayedEnd},
};
use std::sync::Arc;
use tokio::time::Instant;

/// How much was read of what the views note.
#[derive(Debug, Default)]
pub(super) struct Read {
    deaf: u64,
    ends: u64,
    /// When the keys were last looked through for old ones.
    swept: Option<Instant>,
}

impl Term {
    /// Reads what a view notes that the one before did not. Both are of the same roster.
    pub(super) fn hear_relayed(&mut self, view: &View) {
        let relayed = view.relayed();
        for blind in relayed.deaf.behind(self.relayed.deaf) {
            tracing::warn!(
                ?blind,
                "keepalives that went through the store may have been missed; no pod is held to account for that time"
            );
            self.deadlines.forgive(*blind);
        }
        for end in relayed.ends.behind(self.relayed.ends) {
            if let Some(detached) = detached(view, end) {
                self.deadlines.detach(detached);
            }
        }
        (self.relayed.deaf, self.relayed.ends) = (relayed.deaf.written(), relayed.ends.written());
    }

    /// Deletes the keys of masters that ended, or that forgot theirs: those not written for two TTLs. Everything in them
    /// has long been counted.
    pub(super) async fn sweep_relayed(&mut self, now: Instant) -> Result<(), Deposed> {
        let old = self.context.settings.ttl * 2;
        if self.relayed.swept.is_some_and(|at| now < at + old) {
            return Ok(());
        }
        self.relayed.swept = Some(now);
        let seen = Arc::clone(&self.seen);
        for (master, latest) in seen.relayed().masters() {
            if now.saturating_duration_since(latest.at) < old {
                continue;
            }
            let key = format!("{RELAY}{master}");
            let txn = self.fence.guard(Txn {
                compares: vec![Compare::ModRevision(key.clone(), latest.mod_revision)],
                ops: vec![Op::Delete(key)],
                otherwise: vec![self.fence.key().to_owned()],
            });
            let store = Arc::clone(&self.context.store);
            match self.attending(async move { store.commit(txn).await }).await {
                Ok(Outcome::Conflict(found)) if self.fence.is_lost(&found) => return Err(Deposed),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, master, "could not delete an old batch yet");
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The end of a channel, unless the pod is gone or its record was written anew since.
fn detached(view: &View, end: &RelayedEnd) -> Option<Detached> {
    let member = view.member(end.key)?;
    (member.mod_revision <= end.revision).then(|| Detached {
        pod: (end.key, member.pod.seq()),
        heard: Arc::clone(&member.heard),
        attachment: end.attachment,
        at: end.at,
    })
}
