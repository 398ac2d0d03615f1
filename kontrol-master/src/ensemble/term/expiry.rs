//! Removes the pods that were silent for too long, and those whose channel ended and that did not come back: a few at a
//! time, each compared against the exact record that was read, so that a racing change wins.

use super::{Deposed, Term};
use crate::cluster::store::StoreError;
use futures::future::join_all;
use kontrol_core::{
    kv::{Compare, MAX_TXN_OPS, Op, Outcome, Revision, Txn},
    liveness::{Gone, Heard, TICK, Tracked},
    view::{MAX_TOMBSTONES, RELAY, Reason, RemovalRecord, View, pod_key, tombstone_key},
};
use kontrol_runtime::clock::now_ms;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// Most pods in one transaction, which for each has the record to delete and the tombstone to write, and the reasons.
const BATCH: usize = (MAX_TXN_OPS - 1) / 2;
/// Most pods at a time: their transactions are on their way together, so that a mass death is told in time.
const MAX_AT_ONCE: usize = 2 * BATCH;
/// When a removal is tried again that the store did not take.
const RETRY: Duration = Duration::from_millis(500);

impl Term {
    /// Removes every pod whose deadline has passed.
    pub(super) async fn expire(&mut self, now: Instant) -> Result<(), Deposed> {
        loop {
            // Not a newer view: what it knows through the store must be in the deadlines.
            let view = Arc::clone(&self.seen);
            let mut marks = Marks::default();
            let expired = self.deadlines.expired(now, MAX_AT_ONCE, |pod| {
                marks.mark(&view, pod).map(|heard| heard.at()).ok_or(Gone)
            });
            let (expired, stay) = self.part(&view, expired, now);
            marks.keep(&expired);
            self.retry(&stay, now + RETRY);
            if expired.is_empty() || self.over.is_cancelled() {
                marks.remove(&expired);
                break;
            }
            match self
                .remove(&view, &expired, &marks, Reason::Expired, now)
                .await?
            {
                Removed::All => {}
                // A record changed in between: that pod lives. The others are tried again.
                Removed::Overtaken => self.retry(&expired, now + TICK / 4),
                Removed::NotYet => {
                    self.retry(&expired, now + RETRY);
                    return Ok(());
                }
            }
        }
        self.lose(now).await?;
        self.forget().await
    }

    /// Deletes the oldest tombstones where there are too many. A key that changes meanwhile is left for the next time.
    async fn forget(&mut self) -> Result<(), Deposed> {
        let view = self.context.roster.view();
        let mut txn = Txn {
            otherwise: vec![self.fence.key().to_owned()],
            ..Txn::default()
        };
        for (revision, key) in view.excess_tombstones(MAX_TOMBSTONES).take(MAX_TXN_OPS) {
            let name = tombstone_key(*key);
            txn.compares
                .push(Compare::ModRevision(name.clone(), *revision));
            txn.ops.push(Op::Delete(name));
        }
        if txn.ops.is_empty() || self.over.is_cancelled() {
            return Ok(());
        }
        let (store, txn) = (self.context.store.clone(), self.fence.guard(txn));
        match self.attending(async move { store.commit(txn).await }).await {
            Ok(Outcome::Conflict(snapshot)) if self.fence.is_lost(&snapshot) => Err(Deposed),
            Ok(Outcome::Committed(_) | Outcome::Conflict(_)) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "could not delete old tombstones yet");
                Ok(())
            }
        }
    }

    /// Removes every pod whose channel ended and that did not come back. One that can't be removed now is left to its TTL.
    async fn lose(&mut self, now: Instant) -> Result<(), Deposed> {
        loop {
            let view = Arc::clone(&self.seen);
            let mut marks = Marks::default();
            let lost = self
                .deadlines
                .lost(now, MAX_AT_ONCE, |pod| marks.mark(&view, pod));
            let pods: Vec<Tracked> = lost.iter().map(|lost| lost.pod).collect();
            let (pods, stay) = self.part(&view, pods, now);
            marks.keep(&pods);
            let stay: HashSet<Tracked> = stay.into_iter().collect();
            let (stay, lost): (Vec<_>, Vec<_>) =
                lost.into_iter().partition(|one| stay.contains(&one.pod));
            stay.into_iter().for_each(|one| self.deadlines.detach(one));
            if lost.is_empty() || self.over.is_cancelled() {
                marks.remove(&pods);
                return Ok(());
            }
            match self.remove(&view, &pods, &marks, Reason::Lost, now).await? {
                Removed::All => {}
                Removed::Overtaken => {
                    // With the next look: what overtook them need not be in the view yet.
                    lost.into_iter().for_each(|one| self.deadlines.detach(one));
                    return Ok(());
                }
                Removed::NotYet => return Ok(()),
            }
        }
    }

    async fn remove(
        &mut self,
        view: &View,
        pods: &[Tracked],
        marks: &Marks,
        reason: Reason,
        now: Instant,
    ) -> Result<Removed, Deposed> {
        let transactions = pods.chunks(BATCH);
        let removals = transactions.map(|pods| self.removal(view, pods, reason, now));
        let outcomes = self.attending(join_all(removals)).await;
        let mut removed = Removed::All;
        for (pods, outcome) in pods.chunks(BATCH).zip(outcomes) {
            match outcome {
                Ok(Outcome::Committed(_)) => {
                    self.safeguard.on_removed(now, pods);
                    tell(view, pods, reason, now);
                }
                Ok(Outcome::Conflict(snapshot)) if self.fence.is_lost(&snapshot) => {
                    return Err(Deposed);
                }
                Ok(Outcome::Conflict(snapshot)) => {
                    marks.remove(pods);
                    // Whatever it was is in the next view: a pod that was heard, or another record.
                    let roster = self.context.roster.clone();
                    self.attending(roster.caught_up(snapshot.revision, RETRY))
                        .await;
                    self.observe(Instant::now());
                    if !matches!(removed, Removed::NotYet) {
                        removed = Removed::Overtaken;
                    }
                }
                Err(error) => {
                    // Without a clear answer they may be removed at any moment, and a keepalive has to write them anew.
                    if !matches!(error, StoreError::Indeterminate(_)) {
                        marks.remove(pods);
                    }
                    tracing::warn!(%error, pods = pods.len(), "could not remove silent pods yet");
                    removed = Removed::NotYet;
                }
            }
        }
        Ok(removed)
    }

    /// Waits for the store without taking that for a time in which the process stood still.
    pub(super) async fn attending<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match timeout_at(Instant::now() + TICK, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.attend(Instant::now()),
            }
        }
    }

    fn retry(&mut self, pods: &[Tracked], at: Instant) {
        for pod in pods {
            self.deadlines.retry(*pod, at);
        }
    }

    fn removal(
        &self,
        view: &View,
        pods: &[Tracked],
        reason: Reason,
        now: Instant,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + use<> {
        let mut txn = Txn {
            // A keepalive that took the way through the store may be of one of these pods.
            compares: vec![Compare::NotNewer {
                prefix: RELAY.to_owned(),
                revision: view.revision(),
            }],
            otherwise: vec![self.fence.key().to_owned()],
            ..Txn::default()
        };
        let mut removals = Vec::with_capacity(pods.len());
        for (key, _) in pods {
            let Some(member) = view.member(*key) else {
                continue;
            };
            let name = pod_key(*key);
            txn.compares
                .push(Compare::ModRevision(name.clone(), member.mod_revision));
            txn.ops.push(Op::Delete(name));
            let silence = member
                .heard
                .at()
                .map(|at| now.saturating_duration_since(at));
            let silence = silence.unwrap_or_default();
            let id = &self.context.id;
            let record = RemovalRecord::of(&member.pod, reason, silence, now_ms(), id);
            removals.push(RemovalRecord {
                // What is still under way of it came too late.
                beat: record.beat.max(member.heard.beat()),
                ..record
            });
        }
        txn.ops.extend(RemovalRecord::writes(&removals));
        let (store, txn) = (self.context.store.clone(), self.fence.guard(txn));
        async move { store.commit(txn).await }
    }
}

/// The pods that are marked as about to be removed.
#[derive(Default)]
struct Marks(HashMap<Tracked, (Arc<Heard>, Revision)>);

impl Marks {
    /// Marks a pod, if it is there. Whether it was heard is looked at after that.
    fn mark(&mut self, view: &View, pod: Tracked) -> Option<Arc<Heard>> {
        let (key, seq) = pod;
        let member = view.member(key).filter(|member| member.pod.seq() == seq)?;
        let (heard, revision) = (Arc::clone(&member.heard), member.mod_revision);
        // One that is marked already had a removal without a clear answer: that mark lasts as long as the record.
        if !heard.is_leaving(revision) {
            heard.leaves(revision);
            self.0.insert(pod, (Arc::clone(&heard), revision));
        }
        Some(heard)
    }

    /// All others stay.
    fn keep(&mut self, pods: &[Tracked]) {
        let pods: HashSet<&Tracked> = pods.iter().collect();
        self.0.retain(|pod, (heard, revision)| {
            let leaves = pods.contains(pod);
            if !leaves {
                heard.stays(*revision);
            }
            leaves
        });
    }

    /// These stay, for now.
    fn remove(&self, pods: &[Tracked]) {
        for (heard, revision) in pods.iter().filter_map(|pod| self.0.get(pod)) {
            heard.stays(*revision);
        }
    }
}

/// What became of a removal.
enum Removed {
    All,
    /// Another record changed first; of some transactions nothing was removed.
    Overtaken,
    /// The store can't be reached.
    NotYet,
}

fn tell(view: &View, pods: &[Tracked], reason: Reason, now: Instant) {
    for (key, seq) in pods {
        let Some(member) = view.member(*key) else {
            continue;
        };
        let silence = member.heard.at().map_or_else(
            || "unheard here".to_owned(),
            |at| kontrol_runtime::duration::show(now.saturating_duration_since(at)),
        );
        let why = if reason == Reason::Lost {
            "whose channel ended and that did not come back"
        } else {
            "that was silent for its TTL"
        };
        tracing::info!(%key, seq, id = member.pod.id(), silence, "removed a pod {why}");
    }
}
