//! Two masters on one store, of which one is cut off from it; the slave and the dispatcher are played by the test, under
//! virtual time.

mod scene;
mod way;

use super::*;
use crate::cluster::store::Store;
use kontrol_core::{
    kv::{Compare, Fence, Op, Txn},
    model::{Pod, action::Outcome},
    testing::report,
    view::pod_key,
};
use kontrol_proto::v1::attach_response::Order as Ordered;
use scene::{CANCELLED, Channel, Dispatched, EXITED, LONG, Master, pod, store_with_a_pod};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::Code;
use way::{LEASE, Locking, WRITE, Way};

/// A master that leads, another one that carries an action, and the slave that runs it, attached there.
async fn carried(detach: bool) -> (Master, Master, Dispatched, Channel) {
    let store = store_with_a_pod().await;
    let leader = Master::start(&store, 1).await;
    leader
        .until("a leader", || leader.election.leads().is_some())
        .await;
    let carrier = Master::start(&store, 2).await;
    let mut slave = carrier.attach(1).await;
    let mut dispatched = carrier.dispatch(detach);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    slave.started(&dispatched.action).await;
    (leader, carrier, dispatched, slave)
}

#[tokio::test(start_paused = true)]
async fn a_carrier_whose_lease_stands_tells_an_end_in_a_moment_though_the_store_is_away() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    carrier.cut.send_replace(true);
    slave.finished(&dispatched.action, EXITED).await;
    let took = dispatched.finished().await;
    assert!(took < Duration::from_millis(1500), "{took:?}");
    carrier.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(carrier.recorded(&dispatched.action).await, Outcome::Exited);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_told_of_one_of_few_targets_is_recorded_though_the_others_go_on() {
    let store = store_with_a_pod().await;
    // It is not attached, and so looked for a while.
    let other = Pod::join(report(2), 1, 0);
    let txn = Txn {
        ops: vec![Op::put(pod_key(other.key()), other.encode())],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    let master = Master::start(&store, 1).await;
    let mut slave = master.attach(1).await;
    let mut dispatched = master.dispatch(false);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    slave.finished(&dispatched.action, EXITED).await;
    dispatched.finished().await;
    assert_eq!(dispatched.ends, [i32::from(EXITED)]);
    let id = dispatched.action.parse().unwrap();
    let (record, _) = master.history.read(&id).await.unwrap().unwrap();
    assert_eq!(record.head.state, State::Running);
    let ends = record.results.iter().map(|result| result.outcome);
    assert_eq!(ends.collect::<Vec<_>>(), [Some(Outcome::Exited), None]);
    dispatched.read_out().await.unwrap();
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_was_cut_off_and_lost_its_action_tells_no_end_but_who_has_it() {
    for detach in [false, true] {
        let (leader, carrier, mut dispatched, slave) = carried(detach).await;
        let action = dispatched.action.clone();
        // The slave finds another master; what it says there is the truth.
        slave.leave().await;
        let mut moved = leader.attach(2).await;
        carrier.isolate().await;
        moved
            .until(|order| matches!(order, Ordered::Resume(_)))
            .await;
        // Far longer than a slave may be gone.
        sleep(LONG / 3).await;
        carrier.cut.send_replace(false);
        let outcome = if detach { EXITED } else { CANCELLED };
        moved.finished(&action, outcome).await;
        let end = dispatched.read_out().await.unwrap_err();
        assert_eq!(end.code(), Code::Unavailable);
        assert!(dispatched.ends.is_empty(), "{:?}", dispatched.ends);
        let recorded = leader.recorded(&action).await;
        assert_eq!(recorded == Outcome::Exited, detach, "{recorded:?}");
        for master in [leader, carrier] {
            master.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_behind_the_lease_is_held_back_until_it_is_known_who_carries_the_action()
{
    for taken in [false, true] {
        let (leader, carrier, mut dispatched, slave) = carried(false).await;
        let action = dispatched.action.clone();
        if taken {
            carrier.isolate().await;
            // It asks in vain: the slave is where it can't be reached.
            leader
                .until("a master that takes over", || {
                    let id = action.parse().unwrap();
                    leader.roster.view().action(&id).unwrap().head.master == "m1"
                })
                .await;
        } else {
            carrier.cut.send_replace(true);
            sleep(LEASE).await;
        }
        slave.finished(&action, EXITED).await;
        let early = timeout(Duration::from_secs(5), dispatched.finished()).await;
        assert!(early.is_err(), "{:?}", dispatched.ends);
        carrier.cut.send_replace(false);
        let end = dispatched.read_out().await;
        if taken {
            let end = end.unwrap_err();
            assert_eq!(end.code(), Code::Unavailable);
            assert!(end.message().contains("m1, carries it now"), "{end:?}");
            assert!(end.message().contains(&format!("actions show {action}")));
            assert!(dispatched.ends.is_empty());
        } else {
            end.unwrap();
            assert_eq!(dispatched.ends, [i32::from(EXITED)]);
            assert_eq!(carrier.recorded(&action).await, Outcome::Exited);
        }
        for master in [leader, carrier] {
            master.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_does_not_wait_for_ever_for_a_store_that_stays_away() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    carrier.cut.send_replace(true);
    sleep(2 * LEASE).await;
    slave.finished(&dispatched.action, EXITED).await;
    let start = Instant::now();
    let end = dispatched.read_out().await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("out of touch"), "{end:?}");
    assert!(dispatched.ends.is_empty());
    carrier.cut.send_replace(false);
    assert_eq!(carrier.recorded(&dispatched.action).await, Outcome::Exited);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_record_nobody_can_take_an_action_over_so_that_its_end_is_told() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    master.cut.send_replace(true);
    sleep(2 * LEASE).await;
    let mut slave = master.attach(1).await;
    let mut dispatched = master.dispatch(false);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    slave.started(&dispatched.action).await;
    slave.finished(&dispatched.action, EXITED).await;
    dispatched.finished().await;
    assert_eq!(dispatched.ends, [i32::from(EXITED)]);
    master.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(master.recorded(&dispatched.action).await, Outcome::Exited);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_carrier_decided_itself_is_told_once_it_is_recorded() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    let action = dispatched.action.clone();
    carrier.cut.send_replace(true);
    // Of an end that was not run to, a slave keeps nothing that another master could ask for.
    slave.finished(&action, CANCELLED).await;
    let early = timeout(Duration::from_secs(2), dispatched.finished()).await;
    assert!(early.is_err());
    carrier.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(dispatched.ends, [i32::from(CANCELLED)]);
    assert_eq!(carrier.recorded(&action).await, Outcome::Cancelled);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_takes_nothing_and_a_master_whose_lease_stands_loses_nothing() {
    let (leader, carrier, dispatched, slave) = carried(true).await;
    let id: ActionId = dispatched.action.parse().unwrap();
    let known = leader.roster.view().action(&id).cloned().unwrap();
    assert_eq!(
        known.head.lease,
        carrier.election.seat().unwrap().to_string()
    );
    // What a look at a stale roster would lead to: the carrier is there after all.
    assert!(leader.history.orphan(&known).await.unwrap().is_none());
    let fence = leader.election.leads().unwrap();
    let (record, revision) = carrier.history.read(&id).await.unwrap().unwrap();
    let lease = carrier.election.seat().unwrap();
    let absence = || vec![Compare::Absent(format!("leader/{lease}"))];
    let take = |fence: Fence| Taking {
        revision,
        fence: Some(fence),
        absence: absence(),
    };
    let mut mine = record.clone();
    mine.head.instance = "theirs".into();
    let taken = leader.history.take(mine.clone(), take(fence.clone())).await;
    assert!(taken.is_err(), "the carrier's candidacy stands");
    carrier.isolate().await;
    let deposed = Fence::new(fence.key(), fence.epoch() + 1);
    let taken = leader.history.take(mine.clone(), take(deposed)).await;
    assert!(taken.is_err(), "not the leader");
    assert_eq!(leader.history.read(&id).await.unwrap().unwrap().1, revision);
    leader.history.take(mine, take(fence)).await.unwrap();
    drop(slave);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_names_a_master_which_does_not_carry_it_is_taken_up_again() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    let (_, record) = {
        let (leader, carrier, dispatched, _) = carried(true).await;
        let id: ActionId = dispatched.action.parse().unwrap();
        let (record, _) = carrier.history.read(&id).await.unwrap().unwrap();
        for master in [leader, carrier] {
            master.stop().await;
        }
        (id, record)
    };
    let mut slave = master.attach(1).await;
    let mut mine = record.clone();
    mine.head.master = "m1".into();
    mine.head.instance = kontrol_core::liveness::Instance(1).to_string();
    master.history.save(mine, 0).await.unwrap();
    slave
        .until(|order| matches!(order, Ordered::Resume(_)))
        .await;
    let action = record.head.id.to_string();
    slave.finished(&action, EXITED).await;
    assert_eq!(master.recorded(&action).await, Outcome::Exited);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_under_way_holds_up_no_other_write_while_the_master_stops() {
    let store = store_with_a_pod().await;
    let way = Way {
        store: store.clone(),
        cut: watch::Sender::new(false),
    };
    let locking = Arc::new(Locking {
        way: way.clone(),
        lock: tokio::sync::Mutex::default(),
    });
    let master = Master::on(locking.clone(), &store, way.cut, 1).await;
    let mut slave = master.attach(1).await;
    let mut dispatched = master.dispatch(false);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    // It does not end; its record is written again lest it goes away.
    master
        .switchboard
        .cancel(dispatched.action.parse().unwrap())
        .await;
    slave
        .until(|order| matches!(order, Ordered::Cancel(_)))
        .await;
    let start = Instant::now();
    while locking.lock.try_lock().is_ok() {
        assert!(
            start.elapsed() < 2 * master.history.refresh(),
            "no record is written"
        );
        sleep(WRITE / 3).await;
    }
    master.token.cancel();
    // A goodbye.
    let start = Instant::now();
    let goodbye = Txn {
        ops: vec![Op::Delete(pod_key(pod().key()))],
        ..Txn::default()
    };
    locking.commit(goodbye).await.unwrap();
    assert!(start.elapsed() <= 3 * WRITE, "{:?}", start.elapsed());
    drop(slave);
    master.tasks.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_dispatch_stops_the_master_and_is_named() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    drop(master.dispatches.tasks.spawn(async {
        assert!(std::hint::black_box(false), "on purpose");
    }));
    let failure = timeout(LONG, master.tasks)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let failure = failure.to_string();
    assert!(
        failure.contains("an action's dispatch panicked"),
        "{failure}"
    );
}
