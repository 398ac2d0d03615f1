//! A leader that another master reaches through the store alone.

use super::*;
use crate::cluster::store::double::Faulty;
use kontrol_core::view::{RELAY, RelayRecord, RelayedSign, pod_key};

/// The other master.
struct Peer {
    store: SharedStore,
    batch: u64,
}

impl Peer {
    fn of(store: &SharedStore) -> Self {
        Self {
            store: store.clone(),
            batch: 0,
        }
    }

    /// Passes on that it heard the pod just now; or that the pod's channel ended.
    async fn passes_on(&mut self, master: &Harness, detached: bool) {
        let view = master.roster.view();
        let key = report(1).key();
        self.writes(vec![RelayedSign {
            key: key.to_string(),
            age_ms: 0,
            revision: view.member(key).unwrap().mod_revision,
            beat: 0,
            attachment: 1,
            detached,
        }])
        .await;
    }

    async fn writes(&mut self, signs: Vec<RelayedSign>) {
        self.batch += 1;
        let record = RelayRecord {
            instance: Instance(2).to_string(),
            batch: self.batch,
            signs,
        };
        let value = serde_json::to_vec(&record).unwrap();
        let txn = Txn {
            ops: vec![Op::put(format!("{RELAY}m2"), value)],
            ..Txn::default()
        };
        self.store.commit(txn).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_heard_through_the_store_alone_lives_until_it_is_silent() {
    let master = Harness::start().await;
    let mut peer = Peer::of(&master.store);
    master.ping(report(1)).await.unwrap();
    for _ in 0..10 {
        sleep(TTL / 2).await;
        peer.passes_on(&master, false).await;
    }
    let silent = master.until(View::is_empty).await;
    assert!(
        silent >= TTL && silent <= TTL + Duration::from_secs(1),
        "{silent:?}"
    );
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_channel_is_heard_through_the_store_as_well() {
    let master = Harness::start().await;
    let mut peer = Peer::of(&master.store);
    master.ping(report(1)).await.unwrap();
    peer.passes_on(&master, false).await;
    sleep(Duration::from_secs(1)).await;
    peer.passes_on(&master, true).await;
    let took = master.until(View::is_empty).await;
    assert!(took >= LOST && took < LOST + TICK, "{took:?}");
    let view = master.roster.view();
    assert_eq!(view.removal(report(1).key()).unwrap().reason, Reason::Lost);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_pod_is_removed_over_a_batch_in_the_store_that_the_leader_has_not_seen() {
    let store = Faulty::new();
    let master = Harness::on(Arc::new(store.clone())).await;
    let mut peer = Peer::of(&store.inner);
    master.ping(report(1)).await.unwrap();
    sleep(TTL / 2).await;
    store.held.send_replace(true);
    peer.passes_on(&master, false).await;
    // Its time is over by what the leader knows.
    sleep(TTL).await;
    let read = store.inner.read(&[pod_key(report(1).key())]).await.unwrap();
    assert_eq!(read.entries.len(), 1);
    store.held.send_replace(false);
    sleep(TICK).await;
    assert_eq!(master.roster.view().len(), 1);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_time_of_which_the_leader_missed_batches_is_held_against_nobody() {
    let store = Faulty::new();
    let master = Harness::on(Arc::new(store.clone())).await;
    let mut peer = Peer::of(&store.inner);
    master.ping(report(1)).await.unwrap();
    peer.passes_on(&master, false).await;
    sleep(TTL / 5).await;
    store.held.send_replace(true);
    sleep(TTL / 5).await;
    peer.passes_on(&master, false).await;
    // It takes the place of that one, and the watch can't go on where it was.
    peer.writes(Vec::new()).await;
    for number in 0..11_000 {
        let txn = Txn {
            ops: vec![Op::put("filler", number.to_string())],
            ..Txn::default()
        };
        store.inner.commit(txn).await.unwrap();
    }
    sleep(TTL / 2).await;
    store.held.send_replace(false);
    sleep(TTL / 2).await;
    assert_eq!(master.roster.view().len(), 1);
    master.until(View::is_empty).await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_master_that_is_gone_left_in_the_store_is_deleted() {
    let master = Harness::start().await;
    let mut peer = Peer::of(&master.store);
    master.ping(report(1)).await.unwrap();
    peer.passes_on(&master, false).await;
    let key = [format!("{RELAY}m2")];
    let left = Instant::now();
    while !master.store.read(&key).await.unwrap().entries.is_empty() {
        assert!(left.elapsed() < 5 * TTL, "it stays");
        sleep(TICK).await;
    }
    assert!(
        left.elapsed() >= 2 * TTL,
        "it may have been read by nobody yet"
    );
    master.stop().await;
}
