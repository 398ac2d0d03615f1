//! The store in etcd: every key of the ensemble under `/kontrol/<namespace>/<app>/`.
//!
//! Each call has a deadline, so that nothing waits for a member that is paused or cut off; see `members` for how a call
//! finds one that answers, and `failure` for what an error means. A transaction is sent once: sent again only when etcd
//! certainly did not take it. A lease is kept alive by one call a beat, each on a new stream that carries its request
//! from the start: etcd answers nothing, not even headers, on a stream without a request, and a stream that is kept open
//! can't tell a slow member from a silent one.

mod addresses;
mod connection;
mod failure;
mod leases;
mod members;
mod tls;
mod watch;

use self::{
    failure::Failure,
    leases::Leases,
    members::{Connection, Members, Sent},
};
use super::{EtcdOptions, SharedStore, Store, StoreError, Watch, is_prefix};
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, CompareOp, GetOptions, GetResponse, KeyValue, KvClient, LeaseClient, PutOptions,
    ResponseHeader, TxnOp, TxnOpResponse,
};
use kontrol_core::kv::{
    Compare, Entry, LeaseId, MAX_TXN_OPS, Op, Outcome, Revision, Snapshot, Txn,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Longest wait for one answer, unless whom the call serves waits for less: above a slow disk's sync.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Keys in one page of a snapshot. With the largest pods that is some 100 MB, with usual ones a fraction of one.
const PAGE_KEYS: i64 = 256;
/// Largest page that is read, far above the largest that can be.
const PAGE_BYTES: usize = 1024 * 1024 * 1024;
/// How often a snapshot begins anew because etcd was compacted under it.
const SNAPSHOT_TRIES: usize = 3;

/// A store in etcd. It connects when it is first used, and again whenever that is needed. Clones share their
/// connections.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    prefix: Arc<str>,
    members: Arc<Members>,
    leases: Arc<Mutex<Leases>>,
    /// How long each call may take.
    deadline: Duration,
}

impl EtcdStore {
    /// The store under a prefix, at these members (`host:port`). Connects to none of them yet.
    pub fn new(
        endpoints: &[String],
        prefix: impl Into<Arc<str>>,
        options: EtcdOptions,
    ) -> Result<Self, StoreError> {
        Ok(Self::of(Members::new(endpoints, options)?, prefix))
    }

    fn of(members: Members, prefix: impl Into<Arc<str>>) -> Self {
        Self {
            prefix: prefix.into(),
            members: Arc::new(members),
            leases: Arc::default(),
            deadline: CALL_TIMEOUT,
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The entry of a key of ours. A key that is no text is not ours, whoever put it there.
    fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
        let (key, value) = kv.into_key_value();
        Some(Entry {
            key: relative(&self.prefix, &key)?,
            value: Bytes::from(value),
            create_revision,
            mod_revision,
        })
    }

    async fn read_call<T, F>(
        &self,
        revision: Revision,
        send: impl Fn(KvClient) -> F + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let send = |client: Client| send(kv(&client));
        self.members
            .call(Sent::Repeatedly, Connection::Shared, self.deadline, send)
            .await
            .map_err(|failure| failure.of_read(revision))
    }

    /// Reads the keys under a prefix at a revision, now when that is 0, page by page.
    async fn range(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        let mut from = self.key(prefix).into_bytes();
        let end = after_prefix(&from);
        let mut snapshot = Snapshot {
            revision,
            entries: Vec::new(),
        };
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE_KEYS)
                .with_revision(snapshot.revision);
            let get = |mut kv: KvClient| {
                let (from, options) = (from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            let mut page: GetResponse = self.read_call(snapshot.revision, get).await?;
            if snapshot.revision == 0 {
                snapshot.revision = header_revision(page.header())?;
            }
            let more = page.more();
            let kvs = page.take_kvs();
            let Some(last) = kvs.last() else {
                return Ok(snapshot);
            };
            from = last.key().to_vec();
            from.push(0);
            let entries = kvs.into_iter().filter_map(|kv| self.entry(kv));
            snapshot.entries.extend(entries);
            if !more {
                return Ok(snapshot);
            }
        }
    }

    fn gets(&self, keys: &[String]) -> Vec<TxnOp> {
        let options = |key: &str| is_prefix(key).then(|| GetOptions::new().with_prefix());
        keys.iter()
            .map(|key| TxnOp::get(self.key(key), options(key)))
            .collect()
    }

    /// What the reads of a transaction gave.
    fn answers(&self, revision: Revision, answers: Vec<TxnOpResponse>) -> Snapshot {
        let mut entries: Vec<Entry> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                TxnOpResponse::Get(mut get) => Some(get.take_kvs()),
                TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
            })
            .flatten()
            .filter_map(|kv| self.entry(kv))
            .collect();
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        entries.dedup_by(|a, b| a.key == b.key);
        Snapshot { revision, entries }
    }

    fn etcd_txn(&self, txn: &Txn) -> etcd_client::Txn {
        let compare = |compare: &Compare| match compare {
            Compare::Absent(key) => {
                etcd_client::Compare::create_revision(self.key(key), CompareOp::Equal, 0)
            }
            Compare::ModRevision(key, revision) => {
                etcd_client::Compare::mod_revision(self.key(key), CompareOp::Equal, *revision)
            }
            Compare::CreateRevision(key, revision) => {
                etcd_client::Compare::create_revision(self.key(key), CompareOp::Equal, *revision)
            }
            Compare::NotNewer { prefix, revision } => {
                // etcd compares every key of a range, and 0 where there is none.
                let next = revision.saturating_add(1);
                etcd_client::Compare::mod_revision(self.key(prefix), CompareOp::Less, next)
                    .with_range(after_prefix(self.key(prefix).as_bytes()))
            }
        };
        let op = |op: &Op| match op {
            Op::Put { key, value, lease } => {
                let options = PutOptions::new().with_lease(lease.map_or(0, |lease| lease.0));
                TxnOp::put(self.key(key), value.to_vec(), Some(options))
            }
            Op::Delete(key) => TxnOp::delete(self.key(key), None),
        };
        etcd_client::Txn::new()
            .when(txn.compares.iter().map(compare).collect::<Vec<_>>())
            .and_then(txn.ops.iter().map(op).collect::<Vec<_>>())
            .or_else(self.gets(&txn.otherwise))
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // They are whole whatever panicked: each use is one call.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time to live of a lease; asks etcd when another store granted it.
    async fn lifetime(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        if let Some(ttl) = self.leases().ttl(lease) {
            return Ok(ttl);
        }
        let ask = |mut client: LeaseClient| async move { client.time_to_live(lease.0, None).await };
        let answer = self.lease_call(lease, self.deadline, ask).await?;
        if answer.ttl() <= 0 {
            return Err(StoreError::LeaseGone(lease));
        }
        Ok(seconds(answer.granted_ttl()))
    }

    async fn lease_call<T, F>(
        &self,
        lease: LeaseId,
        deadline: Duration,
        send: impl Fn(LeaseClient) -> F + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let send = |client: Client| send(client.lease_client());
        self.members
            .call(Sent::Repeatedly, Connection::Shared, deadline, send)
            .await
            .map_err(|failure| {
                if failure == Failure::Lease {
                    StoreError::LeaseGone(lease)
                } else {
                    failure.of_read(0)
                }
            })
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        for _ in 0..SNAPSHOT_TRIES {
            match self.range("", 0).await {
                Err(StoreError::Compacted(_)) => {}
                result => return result,
            }
        }
        Err(StoreError::Unavailable(
            "etcd is compacted faster than it can be read".into(),
        ))
    }

    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        if revision <= 0 {
            // To etcd that would mean now.
            return Err(StoreError::Compacted(revision));
        }
        self.range(prefix, revision).await
    }

    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        if keys.len() > MAX_TXN_OPS {
            let reason = format!("a read of {} keys; {MAX_TXN_OPS} is the most", keys.len());
            return Err(StoreError::Refused(reason));
        }
        let gets = self.gets(keys);
        let txn = etcd_client::Txn::new().and_then(gets);
        let read = |mut kv: KvClient| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        let answer = self.read_call(0, read).await?;
        Ok(self.answers(header_revision(answer.header())?, answer.op_responses()))
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check().map_err(StoreError::Refused)?;
        let lease = txn.lease();
        let etcd_txn = self.etcd_txn(&txn);
        drop(txn);
        let send = |client: Client| {
            let txn = etcd_txn.clone();
            async move { kv(&client).txn(txn).await }
        };
        let answer = self
            .members
            .call(Sent::Once, Connection::Shared, self.deadline, send)
            .await
            .map_err(|failure| failure.of_write(lease))?;
        let revision = header_revision(answer.header())
            .map_err(|error| StoreError::Indeterminate(error.to_string()))?;
        Ok(if answer.succeeded() {
            Outcome::Committed(revision)
        } else {
            Outcome::Conflict(self.answers(revision, answer.op_responses()))
        })
    }

    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let open = |client: Client| watch::open(client, self.prefix.to_string(), behind);
        let (watch, current) = self
            .members
            .call(Sent::Repeatedly, Connection::Own, self.deadline, open)
            .await
            .map_err(|failure| failure.of_read(behind))?;
        if current < behind {
            // Either the member lags, and catches up; or etcd was set back, and would let us wait for its future.
            if self.read(&[]).await?.revision < behind {
                return Err(StoreError::Compacted(behind));
            }
        }
        Ok(Box::new(watch))
    }

    /// In whole seconds, rounded up, and no less than etcd's own minimum (2 s with its defaults).
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let whole = i64::try_from(whole.max(1)).unwrap_or(i64::MAX);
        // A lease whose answer is lost holds no keys, and ends by itself.
        let grant = |mut client: LeaseClient| async move { client.grant(whole, None).await };
        let asked = Instant::now();
        let answer = self.lease_call(LeaseId(0), self.deadline, grant).await?;
        let (lease, ttl) = (LeaseId(answer.id()), seconds(answer.ttl()));
        self.leases().lives(lease, ttl, asked);
        Ok((lease, ttl))
    }

    /// Takes at most a third of the lease's time: two more beats fit in before it ends.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let ttl = self.lifetime(lease).await?;
        let asked = Instant::now();
        let beat = |mut client: LeaseClient| async move { client.keep_alive(lease.0).await };
        let result = self
            .lease_call(lease, CALL_TIMEOUT.min(ttl / 3), beat)
            .await;
        match result {
            Ok(_) => self.leases().lives(lease, ttl, asked),
            Err(StoreError::LeaseGone(_)) => self.leases().ended(lease),
            Err(_) => {}
        }
        result.map(|_| ttl)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.leases().ended(lease);
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        // To revoke twice is to revoke once, but it does write: an unclear end must be told.
        let result = self
            .members
            .call(Sent::Repeatedly, Connection::Shared, self.deadline, revoke)
            .await;
        match result {
            Ok(_) | Err(Failure::Lease) => Ok(()),
            Err(failure) => Err(failure.of_write(Some(lease))),
        }
    }

    fn leases_expire(&self) -> bool {
        true
    }

    fn serving(&self, deadline: Duration) -> Option<SharedStore> {
        Some(Arc::new(Self {
            deadline: deadline.min(CALL_TIMEOUT),
            ..self.clone()
        }))
    }
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(PAGE_BYTES)
}

fn header_revision(header: Option<&ResponseHeader>) -> Result<Revision, StoreError> {
    header
        .map(ResponseHeader::revision)
        .ok_or_else(|| StoreError::Unavailable("etcd answered without a header".into()))
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// The key behind the prefix.
fn relative(prefix: &str, key: &[u8]) -> Option<String> {
    let key = key.strip_prefix(prefix.as_bytes())?;
    str::from_utf8(key).ok().map(str::to_owned)
}

/// The first key behind all that begin with this prefix. A prefix is text, so its last byte has a next one.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

#[cfg(test)]
pub(super) mod tests;
