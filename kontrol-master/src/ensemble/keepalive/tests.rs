//! Two masters over one store in memory, whose watches and writes stop as they are told, under virtual time.

mod fight;
mod order;
mod room;

use super::{committer::Committer, transaction::Committed};
use crate::cluster::{
    error::Error,
    roster::Roster,
    store::{EtcdOptions, SharedStore, Store, StoreError, StoreUrl, Watch, open},
};
use async_trait::async_trait;
use kontrol_core::{
    kv::{Events, LeaseId, Op, Outcome, Revision, Snapshot, Txn},
    limits::Limits,
    model::{Incarnation, Pod, Report},
    testing::report,
    view::{Reason, RemovalRecord, pod_key, tombstone_key},
};
use serde_json::json;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

/// A master's way to the store.
#[derive(Debug, Clone)]
struct Client {
    inner: SharedStore,
    /// Watches hold back what they have.
    behind: watch::Sender<bool>,
    /// Transactions wait.
    stopped: watch::Sender<bool>,
    /// Transactions get lost, and nobody can tell.
    lossy: watch::Sender<bool>,
}

#[async_trait]
impl Store for Client {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.inner.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.inner.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.inner.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let _ = self.stopped.subscribe().wait_for(|stopped| !stopped).await;
        if self.lossy.send_replace(false) {
            return Err(StoreError::Indeterminate("on purpose".into()));
        }
        self.inner.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(Slow {
            inner: self.inner.watch(behind).await?,
            behind: self.behind.subscribe(),
        }))
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.inner.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        self.inner.leases_expire()
    }
}

struct Slow {
    inner: Box<dyn Watch>,
    behind: watch::Receiver<bool>,
}

#[async_trait]
impl Watch for Slow {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            let _ = self.behind.wait_for(|behind| !behind).await;
            tokio::select! {
                biased;
                _ = self.behind.changed() => {}
                events = self.inner.next() => return events,
            }
        }
    }
}

/// The part of a master that decides about keepalives.
struct Master {
    client: Client,
    roster: Roster,
    committer: Committer,
    _tasks: JoinSet<()>,
}

impl Master {
    async fn on(store: &SharedStore) -> Self {
        Self::taking(store, Limits::default()).await
    }

    async fn taking(store: &SharedStore, limits: Limits) -> Self {
        let client = Client {
            inner: store.clone(),
            behind: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            lossy: watch::Sender::new(false),
        };
        let shared: SharedStore = Arc::new(client.clone());
        let (roster, mirror) = Roster::new(shared.clone());
        let (committer, task) =
            Committer::new(shared, roster.clone(), "m".into(), limits, Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror.run(CancellationToken::new()));
        tasks.spawn(task.run(CancellationToken::new()));
        assert!(roster.caught_up(0, Duration::from_secs(1)).await);
        Self {
            client,
            roster,
            committer,
            _tasks: tasks,
        }
    }

    async fn take(&self, report: Report) -> Result<Committed, Error> {
        self.committer.commit(report, false).await
    }

    /// Waits until the roster shows what is in the store.
    async fn catch_up(&self) {
        let revision = self.client.inner.snapshot().await.unwrap().revision;
        assert!(
            self.roster
                .caught_up(revision, Duration::from_secs(1))
                .await
        );
    }
}

fn memory() -> SharedStore {
    open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap()
}

/// Two masters, the second of which no longer hears of changes.
async fn one_behind() -> (SharedStore, Master, Master) {
    let store = memory();
    let (first, second) = (Master::on(&store).await, Master::on(&store).await);
    second.client.behind.send_replace(true);
    (store, first, second)
}

fn start(nonce: &str, beat: u64) -> Report {
    Report {
        nonce: nonce.into(),
        beat,
        ..report(1)
    }
}

fn down(report: Report) -> Report {
    Report {
        down: true,
        ..report
    }
}

/// The pod of these tests as the store has it.
async fn stored(store: &SharedStore) -> Option<Pod> {
    let read = store.read(&[pod_key(report(1).key())]).await.unwrap();
    let entry = read.entries.first()?;
    Some(Pod::decode(&entry.value).unwrap())
}

/// What the leader does to a pod that was silent.
async fn expire(store: &SharedStore) {
    let pod = stored(store).await.unwrap();
    let removal = RemovalRecord::of(&pod, Reason::Expired, Duration::ZERO, 0, "leader");
    let mut ops = RemovalRecord::writes(&[removal]);
    ops.push(Op::Delete(pod_key(pod.key())));
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
}

fn superseded(answer: Result<Committed, Error>) {
    assert!(matches!(answer, Err(Error::Superseded(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_counts_at_a_master_whose_view_does_not_show_the_pod_yet() {
    let (store, first, second) = one_behind().await;
    first.take(start("aa", 1)).await.unwrap();
    let gone = second.take(down(start("aa", 2))).await.unwrap();
    assert!(!gone.unchanged);
    assert_eq!(stored(&store).await, None);
    // And the other way round: it shows a pod that another one replaced meanwhile.
    first.take(start("bb", 1)).await.unwrap();
    second.client.behind.send_replace(false);
    second.catch_up().await;
    second.client.behind.send_replace(true);
    first.take(start("cc", 1)).await.unwrap();
    second.take(down(start("cc", 2))).await.unwrap();
    assert_eq!(stored(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_that_overtakes_its_join_stands() {
    // In one master's queue the order is that in which they came, and the view is behind both.
    let (store, first, second) = one_behind().await;
    let (joined, gone) = tokio::join!(
        second.take(start("aa", 1)),
        second.take(down(start("aa", 2)))
    );
    joined.unwrap();
    gone.unwrap();
    assert_eq!(stored(&store).await, None);
    // The join is on its way at another master.
    second.client.stopped.send_replace(true);
    let (joined, ()) = tokio::join!(second.take(start("bb", 1)), async {
        sleep(Duration::from_millis(1)).await;
        first.take(down(start("bb", 2))).await.unwrap();
        second.client.stopped.send_replace(false);
    });
    assert_eq!(joined.unwrap().seq, 0);
    assert_eq!(stored(&store).await, None);
    // It is remembered once, however often it is said.
    let before = store.snapshot().await.unwrap().revision;
    first.take(down(start("bb", 3))).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().revision, before);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_incarnation_has_sent_locks_nobody_out_whoever_hears_it() {
    // How the dead one ended before the living one came.
    #[derive(Debug, Clone, Copy)]
    enum End {
        Down,
        Expired,
        Restart,
    }
    for ends in [
        &[End::Down][..],
        &[End::Expired],
        &[End::Restart],
        &[End::Restart, End::Restart],
        &[End::Down, End::Expired, End::Restart],
        &[End::Expired, End::Down],
    ] {
        let (store, first, behind) = one_behind().await;
        first.take(start("dead", 1)).await.unwrap();
        behind.client.behind.send_replace(false);
        behind.catch_up().await;
        behind.client.behind.send_replace(true);
        let mut nonce = "dead".to_owned();
        for (number, end) in ends.iter().enumerate() {
            match end {
                End::Down => drop(first.take(down(start(&nonce, 2))).await.unwrap()),
                End::Expired => expire(&store).await,
                End::Restart => {}
            }
            nonce = format!("living {number}");
            first.take(start(&nonce, 1)).await.unwrap();
        }
        let living = stored(&store).await.unwrap();
        let fresh = Master::on(&store).await;
        for master in [&first, &behind, &fresh] {
            superseded(master.take(start("dead", 9)).await);
            master.take(down(start("dead", 10))).await.unwrap();
            assert_eq!(stored(&store).await.as_ref(), Some(&living), "{ends:?}");
            let held = master.take(start(&nonce, 2)).await.unwrap();
            assert_eq!((held.seq, held.unchanged), (living.seq(), true), "{ends:?}");
        }
        // Nor does it come back once the living one has said goodbye.
        first.take(down(start(&nonce, 3))).await.unwrap();
        for master in [&first, &behind, &Master::on(&store).await] {
            superseded(master.take(start("dead", 11)).await);
            assert_eq!(master.take(start(&nonce, 2)).await.unwrap().seq, 0);
        }
        assert_eq!(stored(&store).await, None, "{ends:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_expired_and_lives_comes_back_as_a_new_one() {
    let (store, first, second) = one_behind().await;
    first.take(start("aa", 1)).await.unwrap();
    expire(&store).await;
    let back = second.take(start("aa", 7)).await.unwrap();
    assert_eq!(back.seq, 1);
    let tombstone = store.read(&[tombstone_key(report(1).key())]).await.unwrap();
    assert_eq!(tombstone.entries, [], "who joins takes it along");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_place_was_taken_comes_back_once_it_is_free() {
    let store = memory();
    let master = Master::on(&store).await;
    master.take(start("aa", 1)).await.unwrap();
    master.take(start("bb", 1)).await.unwrap();
    for beat in 2..5 {
        superseded(master.take(start("aa", beat)).await);
        sleep(Duration::from_secs(1)).await;
    }
    master.take(down(start("bb", 2))).await.unwrap();
    assert_eq!(master.take(start("aa", 5)).await.unwrap().seq, 1);
    superseded(
        master
            .take(start("bb", 1))
            .await
            .and(master.take(start("bb", 3)).await),
    );
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_whose_sender_is_gone_is_not_decided_anew() {
    let store = memory();
    let (first, second) = (Master::on(&store).await, Master::on(&store).await);
    first.client.stopped.send_replace(true);
    first.client.lossy.send_replace(true);
    {
        let dead = first.take(start("dead", 1));
        let gone = sleep(Duration::from_millis(10));
        tokio::select! {
            _ = dead => panic!("it waits for the store"),
            () = gone => {}
        }
    }
    second.take(start("living", 1)).await.unwrap();
    first.client.stopped.send_replace(false);
    // One at a time: this one is decided after that.
    first
        .take(Report {
            ip: IpAddr::from([10, 0, 0, 9]),
            ..report(9)
        })
        .await
        .unwrap();
    assert_eq!(stored(&store).await.unwrap().nonce(), "living");
    // A goodbye is the last word, and is.
    first.client.stopped.send_replace(true);
    first.client.lossy.send_replace(true);
    tokio::select! {
        _ = first.take(down(start("living", 2))) => panic!("it waits for the store"),
        () = sleep(Duration::from_millis(10)) => {}
    }
    first.client.stopped.send_replace(false);
    first
        .take(Report {
            ip: IpAddr::from([10, 0, 0, 10]),
            ..report(9)
        })
        .await
        .unwrap();
    assert_eq!(stored(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_held_against_the_store_once_and_then_costs_it_nothing() {
    let (store, first, second) = one_behind().await;
    first.take(start("aa", 1)).await.unwrap();
    first.take(start("bb", 1)).await.unwrap();
    superseded(first.take(start("aa", 2)).await);
    first.client.stopped.send_replace(true);
    superseded(first.take(start("aa", 3)).await);
    // A master that is behind refuses nobody who is in.
    second.client.behind.send_replace(false);
    second.catch_up().await;
    second.client.behind.send_replace(true);
    expire(&store).await;
    first.client.stopped.send_replace(false);
    for beat in 2..5 {
        superseded(first.take(start("aa", beat)).await);
        sleep(Duration::from_secs(1)).await;
    }
    first.take(start("aa", 6)).await.unwrap();
    assert!(second.take(start("aa", 7)).await.unwrap().unchanged);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_taken_back_at_a_master_that_is_behind_is_stored() {
    let (store, first, second) = one_behind().await;
    let say = |beat, payload: &str| Report {
        payload: json!(payload),
        ..start("aa", beat)
    };
    first.take(say(1, "a")).await.unwrap();
    second.client.behind.send_replace(false);
    second.catch_up().await;
    second.client.behind.send_replace(true);
    first.take(say(2, "b")).await.unwrap();
    let back = second.take(say(3, "a")).await.unwrap();
    assert!(!back.unchanged);
    assert_eq!(stored(&store).await.unwrap().payload(), &json!("a"));
    // And what nobody changed is read, not written.
    let before = store.snapshot().await.unwrap().revision;
    assert!(first.take(say(4, "a")).await.unwrap().unchanged);
    assert_eq!(store.snapshot().await.unwrap().revision, before);
}

#[test]
fn incarnations_of_one_pod_are_told_apart_by_nonce_and_pods_by_id() {
    assert_ne!(
        Incarnation::of(&start("a", 1)),
        Incarnation::of(&start("b", 1))
    );
    assert_ne!(Incarnation::of(&report(1)), Incarnation::of(&report(2)));
}
