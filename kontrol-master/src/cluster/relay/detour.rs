//! The detour: batches that reach the leader through the store, in `relay/<master>`.
//!
//! ```text
//! keepalives ──▶ queue ──▶ batch n ──▶ put relay/<me> ──▶ this master's own view shows it ──▶ answers
//!                            └── at most one each PACE        └── and each record is the one that was held against
//! ```
//!
//! A keepalive is answered once the batch is written and this master's own view is at least as new: whatever removed or
//! changed the pod before is then known, and the keepalive is decided about again. A removal behind the batch can't be,
//! for the leader compares that nothing newer than what it knows stands under `relay/`.

use super::{Counted, Item, Link};
use crate::cluster::{
    roster::Roster,
    store::{SharedStore, StoreError},
};
use kontrol_core::{
    kv::{Compare, Op, Outcome, Revision, Snapshot, Txn},
    liveness::Instance,
    view::{RELAY, RelayRecord, RelayedSign, millis},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// The time between two batches: at most five a second.
pub(super) const PACE: Duration = Duration::from_millis(200);
/// How often a batch is written over what stood in the way.
const MAX_ATTEMPTS: usize = 3;
/// Most pods in a batch: some 100 bytes each.
const MAX_BATCH: usize = 8_000;
/// How long an answer waits for this master's own view to show its batch.
const SHOWN_LIMIT: Duration = Duration::from_millis(500);
/// For how long the stream must have kept up before the key is deleted: each keepalive that took the detour was handed
/// to the stream as well or before, and is acknowledged by then.
pub(super) const SETTLED: Duration = Duration::from_secs(3);

/// The task behind the detour of [`Relay`](super::Relay).
#[derive(Debug)]
pub struct DetourTask {
    me: Instance,
    key: String,
    store: SharedStore,
    roster: Roster,
    queue: mpsc::Receiver<Item>,
    link: watch::Receiver<Link>,
    /// Taken from the queue and not yet written.
    waiting: Vec<Item>,
    /// The number of the last batch; 0 while there is no key.
    batch: u64,
    /// The revision that wrote it.
    written: Revision,
    /// When the next batch may be written.
    next: Instant,
}

impl DetourTask {
    pub(super) fn new(
        me: Instance,
        id: Arc<str>,
        store: SharedStore,
        roster: Roster,
        queue: mpsc::Receiver<Item>,
        link: watch::Receiver<Link>,
    ) -> Self {
        Self {
            me,
            key: format!("{RELAY}{id}"),
            store,
            roster,
            queue,
            link,
            waiting: Vec::new(),
            batch: 0,
            written: 0,
            next: Instant::now(),
        }
    }

    /// Runs until the token is cancelled. The key of a master that ends is left for the leader to delete.
    pub async fn run(mut self, token: CancellationToken) {
        token.run_until_cancelled(self.work()).await;
    }

    async fn work(&mut self) {
        loop {
            // Both arms are cancel safe: `recv_many` takes nothing unless it completes.
            tokio::select! {
                taken = self.queue.recv_many(&mut self.waiting, MAX_BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = settled(&mut self.link, self.next), if self.batch > 0 => {
                    self.clear().await;
                    continue;
                }
            }
            sleep_until(self.next).await;
            while self.waiting.len() < MAX_BATCH
                && let Ok(item) = self.queue.try_recv()
            {
                self.waiting.push(item);
            }
            self.next = Instant::now() + PACE;
            let batch = std::mem::take(&mut self.waiting);
            let batch: Vec<Item> = batch.into_iter().filter(|one| !one.abandoned()).collect();
            if !batch.is_empty() {
                self.pass_on(batch).await;
            }
        }
    }

    /// Writes a batch, and answers those in it. Who gets no answer is not counted this way.
    async fn pass_on(&mut self, batch: Vec<Item>) {
        let revision = match self.write(&batch).await {
            Ok(revision) => revision,
            Err(error) => {
                tracing::debug!(%error, pods = batch.len(), "could not pass keepalives on through the store");
                return;
            }
        };
        if self.batch == 1 {
            tracing::info!(
                key = self.key,
                "keepalives go through the store until the leader acknowledges them directly"
            );
        }
        if !self.roster.caught_up(revision, SHOWN_LIMIT).await {
            return;
        }
        let view = self.roster.view();
        for item in batch {
            let same = view
                .member(item.sign.key)
                .is_some_and(|member| member.mod_revision == item.sign.revision);
            item.settle(if same {
                Counted::Yes
            } else {
                Counted::Again(view.revision())
            });
        }
    }

    async fn write(&mut self, batch: &[Item]) -> Result<Revision, StoreError> {
        let mut found = None;
        for _ in 0..MAX_ATTEMPTS {
            match self.attempt(batch).await? {
                Ok(revision) => return Ok(revision),
                Err(revision) => found = Some(revision),
            }
        }
        Err(StoreError::Unavailable(format!(
            "{} keeps changing, last at revision {}",
            self.key,
            found.unwrap_or_default()
        )))
    }

    /// One attempt, over the batch that this master knows to be there: an earlier one that is committed late must not replace a
    /// later one. An error is the revision of what stood in the way.
    async fn attempt(&mut self, batch: &[Item]) -> Result<Result<Revision, Revision>, StoreError> {
        let number = self.batch + 1;
        let record = RelayRecord {
            instance: self.me.to_string(),
            batch: number,
            signs: batch.iter().map(relayed).collect(),
        };
        let value = serde_json::to_vec(&record)
            .map_err(|error| StoreError::Refused(format!("a batch as JSON: {error}")))?;
        let txn = Txn {
            compares: vec![Compare::unchanged(&self.key, self.written)],
            ops: vec![Op::put(&self.key, value)],
            otherwise: vec![self.key.clone()],
        };
        let found = match self.store.commit(txn).await {
            Ok(Outcome::Committed(revision)) => {
                (self.batch, self.written) = (number, revision);
                return Ok(Ok(revision));
            }
            Ok(Outcome::Conflict(found)) => found,
            Err(StoreError::Indeterminate(_)) => {
                // A batch that is committed after all must not be followed by one of its number.
                self.batch = number;
                self.store.read(std::slice::from_ref(&self.key)).await?
            }
            Err(error) => return Err(error),
        };
        let (batch, written) = self.own(&found);
        if batch == number && written > self.written {
            // It was this one, without a clear answer.
            (self.batch, self.written) = (number, written);
            return Ok(Ok(written));
        }
        // Deleted by the leader, or what an earlier attempt or another start of this master left.
        (self.batch, self.written) = (self.batch.max(batch), written);
        Ok(Err(found.revision))
    }

    /// The number of this master's batch in the store, 0 if it is of another start, and the revision of the key.
    fn own(&self, found: &Snapshot) -> (u64, Revision) {
        let Some(entry) = found.get(&self.key) else {
            return (0, 0);
        };
        let record = serde_json::from_slice::<RelayRecord>(&entry.value).ok();
        let own = record.filter(|record| record.instance == self.me.to_string());
        (own.map_or(0, |record| record.batch), entry.mod_revision)
    }

    /// Deletes the key, unless somebody else wrote it since.
    async fn clear(&mut self) {
        let txn = Txn {
            compares: vec![Compare::ModRevision(self.key.clone(), self.written)],
            ops: vec![Op::Delete(self.key.clone())],
            otherwise: vec![self.key.clone()],
        };
        match self.store.commit(txn).await {
            Ok(Outcome::Conflict(found)) if self.own(&found).0 > 0 => {
                // A batch that was committed late.
                let (batch, written) = self.own(&found);
                (self.batch, self.written) = (self.batch.max(batch), written);
            }
            Ok(_) => {
                tracing::info!(
                    key = self.key,
                    "the leader acknowledges keepalives directly again"
                );
                (self.batch, self.written) = (0, 0);
            }
            Err(error) => {
                tracing::debug!(%error, "could not delete the batch in the store yet");
                self.next = Instant::now() + SETTLED;
            }
        }
    }
}

/// Waits until the stream, or this master itself, has kept up for long enough since `from`.
async fn settled(link: &mut watch::Receiver<Link>, from: Instant) {
    let mut since = from;
    loop {
        let direct = matches!(*link.borrow_and_update(), Link::Up | Link::Leading);
        let end = if direct { Some(since + SETTLED) } else { None };
        let changed = match end {
            Some(end) => match timeout_at(end, link.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
            None => link.changed().await,
        };
        if changed.is_err() {
            // The relay has ended, and with it this master's part in the tier.
            std::future::pending::<()>().await;
        }
        since = Instant::now().max(from);
    }
}

fn relayed(item: &Item) -> RelayedSign {
    RelayedSign {
        key: item.sign.key.to_string(),
        age_ms: millis(item.sign.at.elapsed()),
        revision: item.sign.revision,
        beat: item.sign.beat,
        attachment: item.sign.attachment,
        detached: item.detached,
    }
}
