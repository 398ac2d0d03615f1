//! Two masters on a store whose leases end: what a lapse, a suspension, a resignation and a deleted key do to the
//! leader and to its callback.

use super::{
    callback::{leader, record, state},
    stage::{Acts, GRACE},
    *,
};
use crate::cluster::store::{
    Store,
    double::{Call, Fault, Faulty},
};
use kontrol_core::view::LEADER;

/// A second master beside a leader.
fn second(store: &Faulty, acts: &Acts) -> (Harness, Faulty) {
    let (client, clock) = (store.client(), Clock::of_runtime());
    let player = Some(acts.player(&clock));
    let master = Harness::begin(Arc::new(client.clone()), 2, clock, player);
    (master, client)
}

async fn deposed(master: &Harness) {
    let mut lead = master.election.changes();
    lead.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_lapses_ends_the_run_before_another_master_leads() {
    let store = Faulty::new();
    let (one, mut acts) = leader(&store).await;
    let (two, _) = second(&store, &acts);
    one.ping(report(1)).await.unwrap();
    let act = acts.next().await;
    let (epoch, lapse) = (act.input.epoch, Instant::now());
    store.fault(Call::KeepAlive, Fault::Silent, usize::MAX);
    deposed(&one).await;
    assert!(lapse.elapsed() < TTL && one.election.leads().is_none());
    assert_eq!(acts.running(), 0, "the guard goes by the same lease");
    let fence = two.elected().await;
    assert!(lapse.elapsed() <= TTL && fence.epoch() > epoch);
    assert_eq!(record(&store).await, None, "nothing of it is kept");
    drop(act);
    two.alive(&[1], async {
        let act = acts.next().await;
        assert_eq!(act.input.epoch, fence.epoch());
        act.succeeds(json!(2));
        two.handled().await;
    })
    .await;
    assert_eq!(acts.most(), 1);
    store.heal();
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_suspended_does_not_believe_in_a_lease_that_is_over() {
    let store = Faulty::new();
    let (one, mut acts) = leader(&store).await;
    one.ping(report(1)).await.unwrap();
    let act = acts.next().await;
    assert!(one.election.leads().is_some() && one.election.in_touch());
    // Nothing of the process has run since; its timers know nothing of it.
    store.fault(Call::KeepAlive, Fault::Silent, usize::MAX);
    one.clock.suspend(TTL);
    assert_eq!(one.election.leads(), None);
    assert!(!one.election.in_touch());
    let woke = Instant::now();
    deposed(&one).await;
    assert!(
        woke.elapsed() <= Duration::from_millis(200),
        "at the next look"
    );
    assert!(
        act.at.elapsed() < TTL / 2,
        "its own timers say that all is well"
    );
    sleep(2 * GRACE).await;
    assert_eq!(acts.running(), 0);
    store.heal();
    one.elected().await;
    one.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_stops_ends_its_run_then_resigns_and_leaves_nothing_behind() {
    let store = Faulty::new();
    let (one, mut acts) = leader(&store).await;
    let (two, _) = second(&store, &acts);
    two.until(|view| view.masters().count() == 2).await;
    one.ping(report(1)).await.unwrap();
    let act = acts.next().await;
    let stopped = Instant::now();
    let resigned = tokio::spawn(one.stop());
    let fence = two.elected().await;
    let took = stopped.elapsed();
    assert!(
        took >= GRACE && took < GRACE + Duration::from_secs(1),
        "{took:?}"
    );
    assert_eq!(acts.running(), 0);
    resigned.await.unwrap();
    two.until(|view| view.masters().count() == 1).await;
    assert_eq!(store.leases(), 1);
    drop(act);
    two.alive(&[1], async {
        let act = acts.next().await;
        assert_eq!(act.input.epoch, fence.epoch());
        act.succeeds(json!(2));
        two.handled().await;
    })
    .await;
    assert_eq!((acts.most(), state(&store).await), (1, Some(json!(2))));
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_run_waits_while_the_leader_before_still_lives() {
    let store = Faulty::new();
    let (one, mut acts) = leader(&store).await;
    let (two, _) = second(&store, &acts);
    two.until(|view| view.masters().count() == 2).await;
    one.ping(report(1)).await.unwrap();
    let act = acts.next().await;
    // The first does not see for a while that its key is gone.
    store.held.send_replace(true);
    let key = one.election.leads().unwrap();
    let delete = Txn {
        ops: vec![Op::Delete(key.key().to_owned())],
        ..Txn::default()
    };
    store.inner.commit(delete).await.unwrap();
    two.elected().await;
    let elected = Instant::now();
    let release = async {
        sleep(Duration::from_secs(1)).await;
        store.held.send_replace(false);
    };
    let ((), next) = tokio::join!(release, two.alive(&[1], acts.next()));
    assert_eq!(next.at - elected, QUARANTINE);
    assert_eq!(acts.most(), 1);
    drop(act);
    next.succeeds(json!(1));
    two.handled().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_stops_while_it_becomes_a_candidate_leaves_no_candidacy() {
    for fault in [
        Fault::Late(Duration::from_millis(300)),
        Fault::Unanswered,
        Fault::Overdue(Duration::from_millis(300)),
        Fault::Silent,
    ] {
        for patience in [0, 200, 2100] {
            let store = Faulty::new();
            store.fault(Call::Commit(LEADER), fault, 1);
            let master = Harness::begin(Arc::new(store.clone()), 1, Clock::of_runtime(), None);
            sleep(Duration::from_millis(patience)).await;
            master.stop().await;
            assert_eq!(store.leases(), 0, "{fault:?}");
            sleep(Duration::from_secs(1)).await;
            assert!(!store.holds(LEADER).await && !store.holds(MASTERS).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_could_not_be_given_back_is_given_back_later() {
    let store = Faulty::new();
    // The candidacy is stored late, and its lease can't be revoked at first: it would lead and do nothing.
    store.least_lease(Duration::from_secs(600));
    let late = Fault::Overdue(Duration::from_millis(20));
    store.fault(Call::Commit(LEADER), late, 1);
    store.fault(Call::Revoke, Fault::Down, 1);
    let master = Harness::begin(Arc::new(store.clone()), 1, Clock::of_runtime(), None);
    let start = Instant::now();
    let fence = master.elected().await;
    assert!(start.elapsed() < TTL, "{:?}", start.elapsed());
    assert_eq!(master.roster.view().leader().unwrap().key, fence.key());
    assert_eq!(store.leases(), 1);
    master.stop().await;
    assert_eq!(store.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_longer_lease_than_asked_for_is_told() {
    let store = Faulty::new();
    let master = Harness::on(Arc::new(store.clone())).await;
    assert_eq!(master.election.longer_lease(), None);
    master.stop().await;
    store.least_lease(3 * TTL);
    let master = Harness::on(Arc::new(store.clone())).await;
    assert_eq!(master.election.longer_lease(), Some(3 * TTL));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_master_leads_while_another_candidate_is_elected() {
    let store = Faulty::new();
    // As `etcdctl elect` does: any words, under a lease.
    let (lease, _) = store.grant(TTL).await.unwrap();
    let put = Op::Put {
        key: format!("{LEADER}{lease}"),
        value: "maintenance".into(),
        lease: Some(lease),
    };
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    store.inner.commit(txn).await.unwrap();
    let master = Harness::begin(Arc::new(store.clone()), 1, Clock::of_runtime(), None);
    master.until(|view| view.masters().count() == 1).await;
    sleep(TTL / 2).await;
    assert_eq!(master.election.leads(), None);
    assert!(master.roster.view().leader().unwrap().master.is_stranger());
    store.revoke(lease).await.unwrap();
    master.elected().await;
    master.stop().await;
}
