//! A store for tests: the embedded one, with leases that end by the runtime's clock, paused or not. Each master has a
//! client of its own, which a test makes slow, deaf, unclear, or late to tell what changed.

use super::{SharedStore, Store, StoreError, Watch, embedded::EmbeddedStore};
use async_trait::async_trait;
use kontrol_core::kv::{Compare, Events, LeaseId, Op, Outcome, Revision, Snapshot, Txn};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

/// How long a call goes without an answer before the client gives up: every call has a deadline of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A call, and for those that name keys the beginning of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Snapshot,
    SnapshotAt,
    Read(&'static str),
    /// A transaction that writes such a key.
    Commit(&'static str),
    Watch,
    Grant,
    KeepAlive,
    Revoke,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is done and answered so much later.
    Late(Duration),
    /// It is done, and the answer is lost.
    Unanswered,
    /// It is done so long after the client gave up.
    Overdue(Duration),
    /// It is never done, and there is no answer.
    Silent,
    /// The store can't be reached, and the client knows at once.
    Down,
    /// The store will not do it.
    Refused,
    /// The caller runs into a bug.
    Panic,
}

#[derive(Debug)]
struct Rule {
    call: Call,
    fault: Fault,
    times: usize,
}

/// A client of the store, with faults. Clones share them; [`Faulty::client`] makes another client of the same store.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: SharedStore,
    leases: Arc<Leases>,
    /// How long a transaction takes.
    pub(crate) delay: watch::Sender<Duration>,
    /// Whether the next transaction gets no clear answer, and is committed a moment later.
    pub(crate) unclear: watch::Sender<bool>,
    /// Whether watches hold back what they have.
    pub(crate) held: watch::Sender<bool>,
    rules: Arc<Mutex<Vec<Rule>>>,
}

#[derive(Debug)]
struct Leases {
    ends: Mutex<HashMap<LeaseId, (Duration, Instant)>>,
    /// What a lease gets at least.
    least: Mutex<Duration>,
}

impl Faulty {
    pub(crate) fn new() -> Self {
        Self::of(
            Arc::new(EmbeddedStore::memory()),
            Arc::new(Leases {
                ends: Mutex::default(),
                least: Mutex::default(),
            }),
        )
    }

    fn of(inner: SharedStore, leases: Arc<Leases>) -> Self {
        Self {
            inner,
            leases,
            delay: watch::Sender::new(Duration::ZERO),
            unclear: watch::Sender::new(false),
            held: watch::Sender::new(false),
            rules: Arc::default(),
        }
    }

    /// Another client of the same store, without faults as yet.
    pub(crate) fn client(&self) -> Self {
        Self::of(self.inner.clone(), self.leases.clone())
    }

    /// From now on this happens to such calls, so many times. What was asked for first comes first.
    pub(crate) fn fault(&self, call: Call, fault: Fault, times: usize) {
        let rule = Rule { call, fault, times };
        self.rules.lock().unwrap().push(rule);
    }

    /// All goes well from now on.
    pub(crate) fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// The store gives leases of at least that length.
    pub(crate) fn least_lease(&self, least: Duration) {
        *self.leases.least.lock().unwrap() = least;
    }

    /// The leases that live.
    pub(crate) fn leases(&self) -> usize {
        self.leases.ends.lock().unwrap().len()
    }

    /// Whether there is such a key.
    pub(crate) async fn holds(&self, prefix: &str) -> bool {
        let snapshot = self.inner.snapshot().await.unwrap();
        let mut entries = snapshot.entries.iter();
        entries.any(|entry| entry.key.starts_with(prefix))
    }

    /// Writes a key as somebody would by hand.
    pub(crate) async fn edit(&self, key: &str, value: impl Into<bytes::Bytes>) {
        let txn = Txn {
            ops: vec![Op::put(key, value)],
            ..Txn::default()
        };
        self.inner.commit(txn).await.unwrap();
    }

    fn rule(&self, matches: impl Fn(Call) -> bool) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.times > 0 && matches(rule.call))?;
        rule.times -= 1;
        Some(rule.fault)
    }

    /// Does a call that writes nothing that a reader sees, or says what went wrong.
    async fn call<T: Send>(
        &self,
        matches: impl Fn(Call) -> bool,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match self.rule(matches) {
            None => work.await,
            Some(Fault::Late(delay)) => {
                sleep(delay).await;
                work.await
            }
            Some(Fault::Panic) => panic!("on purpose"),
            Some(Fault::Refused) => Err(StoreError::Refused("on purpose".into())),
            Some(Fault::Down) => Err(StoreError::Unavailable("on purpose".into())),
            Some(Fault::Unanswered) => {
                work.await?;
                sleep(PATIENCE).await;
                Err(StoreError::Indeterminate("on purpose".into()))
            }
            Some(Fault::Overdue(_) | Fault::Silent) => {
                sleep(PATIENCE).await;
                Err(StoreError::Unavailable("on purpose".into()))
            }
        }
    }

    async fn write(&self, txn: Txn, fault: Fault) -> Result<Outcome, StoreError> {
        let unclear = Err(StoreError::Indeterminate("on purpose".into()));
        match fault {
            Fault::Late(delay) => {
                sleep(delay).await;
                self.inner.commit(txn).await
            }
            Fault::Unanswered => {
                let _ = self.inner.commit(txn).await;
                sleep(PATIENCE).await;
                unclear
            }
            Fault::Overdue(delay) => {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    sleep(PATIENCE + delay).await;
                    inner.commit(txn).await
                });
                sleep(PATIENCE).await;
                unclear
            }
            Fault::Silent => {
                sleep(PATIENCE).await;
                unclear
            }
            Fault::Down => Err(StoreError::Unavailable("on purpose".into())),
            Fault::Refused => Err(StoreError::Refused("on purpose".into())),
            Fault::Panic => panic!("on purpose"),
        }
    }

    async fn expire(self, lease: LeaseId) {
        loop {
            let end = self.leases.ends.lock().unwrap().get(&lease).copied();
            match end {
                None => return,
                Some((_, end)) if end > Instant::now() => sleep_until(end).await,
                Some(_) => {
                    self.leases.ends.lock().unwrap().remove(&lease);
                    let _ = self.inner.revoke(lease).await;
                    return;
                }
            }
        }
    }
}

fn names(key: &str, wanted: &'static str) -> bool {
    key.starts_with(wanted)
}

fn writes(txn: &Txn, wanted: &'static str) -> bool {
    txn.ops.iter().any(|op| match op {
        Op::Put { key, .. } | Op::Delete(key) => names(key, wanted),
    })
}

#[async_trait]
impl Store for Faulty {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let call = |call| call == Call::Snapshot;
        self.call(call, self.inner.snapshot()).await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        let call = |call| call == Call::SnapshotAt;
        let work = self.inner.snapshot_at(prefix, revision);
        self.call(call, work).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        let reads = |wanted| keys.iter().any(|key| names(key, wanted));
        let call = |call| matches!(call, Call::Read(wanted) if reads(wanted));
        self.call(call, self.inner.read(keys)).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let delay = *self.delay.borrow();
        sleep(delay).await;
        if self.unclear.send_replace(false) {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                inner.commit(txn).await
            });
            return Err(StoreError::Indeterminate("on purpose".into()));
        }
        let call = |call| matches!(call, Call::Commit(wanted) if writes(&txn, wanted));
        match self.rule(call) {
            Some(fault) => self.write(txn, fault).await,
            None => self.inner.commit(txn).await,
        }
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let work = async {
            let inner = self.inner.watch(behind).await?;
            let held = self.held.subscribe();
            let watch: Box<dyn Watch> = Box::new(Held { inner, held });
            Ok(watch)
        };
        self.call(|call| call == Call::Watch, work).await
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        let work = async {
            let ttl = ttl.max(*self.leases.least.lock().unwrap());
            let (lease, _) = self.inner.grant(ttl).await?;
            let end = Instant::now() + ttl;
            self.leases.ends.lock().unwrap().insert(lease, (ttl, end));
            tokio::spawn(self.clone().expire(lease));
            Ok((lease, ttl))
        };
        self.call(|call| call == Call::Grant, work).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let work = async {
            let mut ends = self.leases.ends.lock().unwrap();
            let (ttl, end) = ends.get_mut(&lease).ok_or(StoreError::LeaseGone(lease))?;
            *end = Instant::now() + *ttl;
            Ok(*ttl)
        };
        self.call(|call| call == Call::KeepAlive, work).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let work = async {
            self.leases.ends.lock().unwrap().remove(&lease);
            self.inner.revoke(lease).await
        };
        self.call(|call| call == Call::Revoke, work).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}

struct Held {
    inner: Box<dyn Watch>,
    held: watch::Receiver<bool>,
}

#[async_trait]
impl Watch for Held {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            let _ = self.held.wait_for(|held| !held).await;
            tokio::select! {
                biased;
                Ok(()) = self.held.changed() => {}
                events = self.inner.next() => return events,
            }
        }
    }
}

mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    async fn bound(store: &Faulty, key: &'static str) -> LeaseId {
        let (lease, _) = store.grant(TTL).await.unwrap();
        let put = Op::Put {
            key: key.into(),
            value: "x".into(),
            lease: Some(lease),
        };
        let txn = Txn {
            compares: vec![Compare::Absent(key.into())],
            ops: vec![put],
            ..Txn::default()
        };
        store.commit(txn).await.unwrap();
        lease
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_by_the_runtimes_clock_and_takes_its_keys_along() {
        let store = Faulty::new();
        let (start, kept) = (Instant::now(), bound(&store, "kept").await);
        let gone = bound(&store, "gone").await;
        let revision = store.snapshot().await.unwrap().revision;
        let mut watch = store.client().watch(revision).await.unwrap();
        sleep(TTL / 2).await;
        assert_eq!(store.keep_alive(kept).await.unwrap(), TTL);
        let events = watch.next().await.unwrap();
        assert_eq!(start.elapsed(), TTL);
        assert_eq!(events.events.len(), 1);
        assert!(store.holds("kept").await && !store.holds("gone").await);
        assert!(matches!(
            store.keep_alive(gone).await,
            Err(StoreError::LeaseGone(lease)) if lease == gone
        ));
        store.revoke(kept).await.unwrap();
        assert!(!store.holds("kept").await);
        assert_eq!(store.leases(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn every_fault_happens_as_often_as_asked_and_to_one_client_alone() {
        use Fault::*;
        let second = Duration::from_secs(1);
        // The fault, what the client is told of a write, and whether that is done when the answer comes, and later.
        for (fault, answer, done, in_the_end) in [
            (Late(second), "ok", true, true),
            (Unanswered, "unclear", true, true),
            (Overdue(second), "unclear", false, true),
            (Silent, "unclear", false, false),
            (Down, "unavailable", false, false),
            (Refused, "refused", false, false),
        ] {
            let (store, txn) = (Faulty::new(), |key: &str| Txn {
                ops: vec![Op::put(key, "x")],
                ..Txn::default()
            });
            store.fault(Call::Commit("a"), fault, 1);
            store.commit(txn("b")).await.unwrap();
            store.client().commit(txn("b")).await.unwrap();
            let told = match store.commit(txn("a")).await {
                Ok(_) => "ok",
                Err(StoreError::Indeterminate(_)) => "unclear",
                Err(StoreError::Unavailable(_)) => "unavailable",
                Err(_) => "refused",
            };
            assert_eq!(told, answer, "{fault:?}");
            assert_eq!(store.holds("a").await, done, "{fault:?}");
            sleep(PATIENCE + 2 * second).await;
            assert_eq!(store.holds("a").await, in_the_end, "{fault:?}");
            store.commit(txn("a")).await.unwrap();
        }
    }
}
