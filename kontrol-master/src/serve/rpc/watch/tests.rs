//! What a watch is told: by the batch, and across a store that was restored or begins anew.

use super::*;
use crate::cluster::store::{SharedStore, Store, StoreError, Watch, embedded::EmbeddedStore};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use kontrol_core::{
    kv::{Op, Outcome, Revision, Snapshot as Read, Txn},
    model::Pod,
    testing::report,
    view::pod_key,
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[test]
fn who_is_cut_off_within_a_batch_goes_on_from_before_all_of_it() {
    let batch = |behind, revision| Notices {
        behind,
        revision,
        notices: vec![Notice::Change(Change::Leader(None)); 3],
    };
    let revisions = |batch: Notices| -> Vec<i64> {
        let teller = Teller {
            tells_history: false,
            feed: Feed::default(),
        };
        let messages = teller.messages(&View::default(), &batch, 0);
        messages.iter().map(|message| message.revision).collect()
    };
    assert_eq!(revisions(batch(6, 7)), [6, 6, 7]);
    assert_eq!(
        revisions(batch(4, 9)),
        [4, 4, 9],
        "of revisions 5 to 9, the first may be of any"
    );
}

/// A store in whose place another can be put, as a restore from a backup does: that breaks its watches.
#[derive(Debug, Clone)]
struct Restorable(watch::Sender<SharedStore>);

struct Broken {
    watch: Box<dyn Watch>,
    replaced: watch::Receiver<SharedStore>,
}

#[async_trait]
impl Watch for Broken {
    async fn next(&mut self) -> Result<kontrol_core::kv::Events, StoreError> {
        tokio::select! {
            events = self.watch.next() => events,
            _ = self.replaced.changed() => Err(StoreError::Unavailable("restored".into())),
        }
    }
}

impl Restorable {
    fn now(&self) -> SharedStore {
        Arc::clone(&self.0.borrow())
    }
}

#[async_trait]
impl Store for Restorable {
    async fn snapshot(&self) -> Result<Read, StoreError> {
        self.now().snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Read, StoreError> {
        self.now().snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Read, StoreError> {
        self.now().read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.now().commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let replaced = self.0.subscribe();
        let watch = self.now().watch(behind).await?;
        Ok(Box::new(Broken { watch, replaced }))
    }
    async fn grant(
        &self,
        ttl: Duration,
    ) -> Result<(kontrol_core::kv::LeaseId, Duration), StoreError> {
        self.now().grant(ttl).await
    }
    async fn keep_alive(&self, lease: kontrol_core::kv::LeaseId) -> Result<Duration, StoreError> {
        self.now().keep_alive(lease).await
    }
    async fn revoke(&self, lease: kontrol_core::kv::LeaseId) -> Result<(), StoreError> {
        self.now().revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        false
    }
}

async fn commit(store: &SharedStore, ops: Vec<Op>) -> Revision {
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    match store.commit(txn).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(_) => panic!("nothing is compared"),
    }
}

async fn join(store: &SharedStore, host: u8) -> Revision {
    let pod = Pod::join(report(host), host.into(), 1);
    commit(store, vec![Op::put(pod_key(pod.key()), pod.encode())]).await
}

async fn leave(store: &SharedStore, host: u8) -> Revision {
    commit(store, vec![Op::Delete(pod_key(report(host).key()))]).await
}

/// A store with two pods, as at the time of the backup.
async fn backup() -> SharedStore {
    let store: SharedStore = Arc::new(EmbeddedStore::memory());
    for host in [1, 2] {
        join(&store, host).await;
    }
    store
}

struct Scene {
    store: Restorable,
    roster: Roster,
    token: CancellationToken,
}

impl Scene {
    async fn new(store: SharedStore) -> Self {
        let store = Restorable(watch::Sender::new(store));
        let (roster, mirror) = Roster::new(Arc::new(store.clone()));
        let token = CancellationToken::new();
        tokio::spawn(mirror.run(token.clone()));
        let scene = Self {
            store,
            roster,
            token,
        };
        scene.is_at(2).await;
        scene
    }

    /// Waits until the roster is at this very revision, and connected.
    async fn is_at(&self, revision: Revision) {
        let mut changes = self.roster.changes();
        tokio::time::timeout(Duration::from_secs(60), async {
            while self.roster.view().revision() != revision || !self.roster.connected() {
                assert!(changes.next().await);
            }
        })
        .await
        .expect("the roster follows the store");
    }

    async fn restore(&self, store: SharedStore) {
        let revision = store.snapshot().await.unwrap().revision;
        self.store.0.send_replace(store);
        self.is_at(revision).await;
    }

    fn watch(&self, revision: i64, history: Option<&str>) -> BoxStream<'static, WatchResponse> {
        let request = WatchRequest {
            revision,
            history: history.map(str::to_owned),
        };
        stream(&self.roster, Arc::default(), request)
            .map(|message| message.unwrap())
            .boxed()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

async fn next(watch: &mut BoxStream<'static, WatchResponse>) -> WatchResponse {
    tokio::time::timeout(Duration::from_secs(60), watch.next())
        .await
        .expect("there is something to tell")
        .unwrap()
}

/// The next message that tells of pods.
async fn next_pods(watch: &mut BoxStream<'static, WatchResponse>) -> WatchResponse {
    loop {
        let message = next(watch).await;
        if !matches!(message.event, Some(Event::DigestChanged(_))) {
            return message;
        }
    }
}

fn seqs(message: &WatchResponse) -> Vec<u64> {
    match &message.event {
        Some(Event::Snapshot(snapshot)) => snapshot.pods.iter().map(|pod| pod.seq).collect(),
        other => panic!("no snapshot: {other:?}"),
    }
}

fn joined(message: &WatchResponse) -> u64 {
    match &message.event {
        Some(Event::PodJoined(joined)) => joined.pod.as_ref().unwrap().seq,
        other => panic!("nobody joined: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_connected_watch_gets_a_snapshot_of_a_restored_store_and_misses_nothing_after_it() {
    let scene = Scene::new(backup().await).await;
    let mut early = scene.watch(0, None);
    assert_eq!(seqs(&next(&mut early).await), [1, 2]);
    let old = scene.store.now();
    leave(&old, 2).await;
    for _ in 0..20 {
        join(&old, 3).await;
    }
    scene.is_at(23).await;
    let mut late = scene.watch(0, None);
    assert_eq!(seqs(&next(&mut late).await), [1, 3]);

    let new = backup().await;
    scene.restore(Arc::clone(&new)).await;
    for watch in [&mut early, &mut late] {
        let snapshot = loop {
            let message = next(watch).await;
            if matches!(message.event, Some(Event::Snapshot(_))) {
                break message;
            }
        };
        assert_eq!((snapshot.revision, seqs(&snapshot)), (2, vec![1, 2]));
    }
    join(&new, 4).await;
    for watch in [&mut early, &mut late] {
        let message = next_pods(watch).await;
        assert_eq!((message.revision, joined(&message)), (3, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_restored_and_has_gone_on_beyond_what_was_known_is_noticed() {
    let scene = Scene::new(backup().await).await;
    let mut watch = scene.watch(0, None);
    assert_eq!(seqs(&next(&mut watch).await), [1, 2]);
    leave(&scene.store.now(), 1).await;
    scene.is_at(3).await;
    // What this master knew at revision 3 was never there.
    let new = backup().await;
    join(&new, 5).await;
    join(&new, 6).await;
    scene.restore(new).await;
    let snapshot = loop {
        let message = next(&mut watch).await;
        if matches!(message.event, Some(Event::Snapshot(_))) {
            break message;
        }
    };
    assert_eq!((snapshot.revision, seqs(&snapshot)), (4, vec![1, 2, 5, 6]));
}

#[tokio::test(start_paused = true)]
async fn who_was_away_goes_on_in_its_own_history_and_gets_a_snapshot_in_another() {
    let scene = Scene::new(backup().await).await;
    let old = scene.store.now();
    let mut watch = scene.watch(0, Some(""));
    next(&mut watch).await;
    for host in 3..8 {
        let revision = join(&old, host).await;
        scene.is_at(revision).await;
    }
    let mut away = Vec::new();
    while away.len() < 5 {
        let message = next(&mut watch).await;
        if matches!(message.event, Some(Event::PodJoined(_))) {
            away.push((message.revision, message.history.unwrap()));
        }
    }
    let (revision, history) = away[2].clone();
    assert_eq!(revision, 5);
    // It goes on, with its history and without.
    for history in [Some(history.as_str()), Some(""), None] {
        let message = next(&mut scene.watch(revision, history)).await;
        assert_eq!((message.revision, joined(&message)), (6, 6));
    }
    for wrong in ["0123456789abcdef", "nonsense"] {
        let message = next(&mut scene.watch(revision, Some(wrong))).await;
        assert_eq!(seqs(&message).len(), 7, "{wrong}");
    }

    let new = backup().await;
    scene.restore(Arc::clone(&new)).await;
    for _ in 0..10 {
        join(&new, 9).await;
    }
    scene.is_at(12).await;
    for (revision, history) in &away {
        let message = next(&mut scene.watch(*revision, Some(history))).await;
        assert_eq!(seqs(&message), [1, 2, 9], "{revision}");
    }
    // A bare number may be of either, as long as the other reached it.
    let message = next(&mut scene.watch(7, None)).await;
    assert_eq!(seqs(&message), [1, 2, 9]);
    let message = next(&mut scene.watch(8, None)).await;
    assert!(
        !matches!(message.event, Some(Event::Snapshot(_))),
        "{message:?}"
    );

    // The same of a master that never saw the old history.
    let fresh = Scene::new(backup().await).await;
    let store = fresh.store.now();
    for _ in 0..10 {
        join(&store, 9).await;
    }
    fresh.is_at(12).await;
    for (revision, history) in &away {
        let message = next(&mut fresh.watch(*revision, Some(history))).await;
        assert_eq!(seqs(&message), [1, 2, 9], "{revision}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_master_goes_on_where_another_ended() {
    let scene = Scene::new(backup().await).await;
    let (other, mirror) = Roster::new(Arc::new(scene.store.clone()));
    tokio::spawn(mirror.run(scene.token.clone()));
    assert!(other.caught_up(2, Duration::from_secs(60)).await);
    let mut watch = scene.watch(0, Some(""));
    next(&mut watch).await;
    join(&scene.store.now(), 3).await;
    let seen = next_pods(&mut watch).await;
    join(&scene.store.now(), 4).await;
    assert!(other.caught_up(4, Duration::from_secs(60)).await);
    let request = WatchRequest {
        revision: seen.revision,
        history: seen.history,
    };
    let mut going_on = stream(&other, Arc::default(), request).boxed();
    let message = going_on.next().await.unwrap().unwrap();
    assert_eq!((message.revision, joined(&message)), (4, 4));
}
