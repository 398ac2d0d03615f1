//! The safeguard and the operator's hand, on a leader under a clock that the test moves.

use super::{
    callback::{leader, record},
    *,
};
use crate::{
    cluster::store::double::{Call, Fault, Faulty},
    ensemble::operate::{self, Asked},
};
use kontrol_core::view::OPERATE;

const POLICY: Policy = Policy {
    percent: 50,
    min: 10,
    max: Duration::from_secs(600),
};

fn guarded(store: &Faulty, number: u64) -> Harness {
    let store = Arc::new(store.clone());
    Harness::guarded(store, number, Clock::of_runtime(), None, POLICY)
}

fn asked(reason: &str) -> Asked {
    Asked::new("op@desk".to_owned(), reason.to_owned()).unwrap()
}

fn is_frozen(view: &View) -> bool {
    view.operate().0.safeguard.is_some()
}

impl Harness {
    /// Asks for a run.
    async fn ask(&self, again: bool) -> Result<operate::Asking, Error> {
        let (view, status) = (self.roster.view(), self.status.now());
        operate::run(&self.store, &view, &status, asked(""), again).await
    }

    /// Has these pods report for so long.
    async fn alive_for(&self, hosts: &[u8], time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for host in hosts {
                self.ping(report(*host)).await.unwrap();
            }
            sleep(TTL / 5).await;
        }
    }
}

/// A leader with twenty pods of which twelve have fallen silent, and are kept.
async fn frozen(store: &Faulty) -> Harness {
    let master = guarded(store, 1);
    master.elected().await;
    let all: Vec<u8> = (1..=20).collect();
    master.alive_for(&all, TTL).await;
    master.alive_for(&all[12..], 2 * TTL).await;
    let view = master.roster.view();
    assert_eq!(view.len(), 20, "nobody left");
    let (record, _) = view.operate();
    let freeze = record.safeguard.clone().unwrap();
    assert_eq!((freeze.silent, freeze.pods), (12, 20));
    master
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_keeps_its_seq_and_the_rest_leaves_once_most_are_back() {
    let master = frozen(&Faulty::new()).await;
    let seqs = |view: &View| -> Vec<u64> { view.order().keys().copied().collect() };
    let before = seqs(&master.roster.view());
    // Who says goodbye leaves at once, and who joins is there.
    let down = Report {
        down: true,
        ..report(20)
    };
    master.ping(down).await.unwrap();
    master.until(|view| view.len() == 19).await;
    master.ping(report(21)).await.unwrap();
    master.until(|view| view.len() == 20).await;
    assert!(is_frozen(&master.roster.view()));
    let back: Vec<u8> = (5..=19).chain([21]).collect();
    master.alive_for(&back, TTL).await;
    let view = master.roster.view();
    assert!(!is_frozen(&view));
    assert_eq!(view.len(), 20, "the last may be on their way back");
    let back: Vec<u8> = (4..=19).chain([21]).collect();
    master.alive_for(&back, 2 * TTL).await;
    assert_eq!(master.roster.view().len(), 17);
    let after = seqs(&master.roster.view());
    assert!(after[..16].iter().all(|seq| before.contains(seq)));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_lets_the_silent_leave_and_guards_the_rest() {
    let store = Faulty::new();
    let master = frozen(&store).await;
    let view = master.roster.view();
    let released = operate::release(&master.store, &view, asked("they are dead")).await;
    assert_eq!(released.unwrap().0.unwrap().silent, 12);
    master.alive_for(&(13..=20).collect::<Vec<_>>(), TTL).await;
    assert!(!is_frozen(&master.roster.view()));
    assert_eq!(master.roster.view().len(), 8);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_is_of_the_freeze_that_it_was_asked_for() {
    let store = Faulty::new();
    let master = frozen(&store).await;
    // The leader can't write that the first is over.
    store.fault(Call::Commit(OPERATE), Fault::Down, usize::MAX);
    let view = master.roster.view();
    operate::release(&store.inner, &view, asked("they are dead"))
        .await
        .unwrap();
    let living: Vec<u8> = (13..=20).collect();
    master.alive_for(&living, TTL).await;
    assert_eq!(master.roster.view().len(), 8);
    master.alive_for(&(13..=32).collect::<Vec<_>>(), TTL).await;
    master.alive_for(&living, 3 * TTL).await;
    assert_eq!(master.roster.view().len(), 20, "nobody released that one");
    store.heal();
    master.alive_for(&living, TTL).await;
    let view = master.roster.view();
    let freeze = view.operate().0.safeguard.as_ref().unwrap();
    assert_eq!((freeze.silent, &freeze.released), (12, &None));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_leader_keeps_what_is_frozen_beyond_its_grace() {
    let store = Faulty::new();
    let one = frozen(&store).await;
    let two = guarded(&store.client(), 2);
    one.stop().await;
    two.elected().await;
    let living: Vec<u8> = (13..=20).collect();
    two.alive_for(&living, 3 * TTL).await;
    let view = two.roster.view();
    assert!(is_frozen(&view) && view.len() == 20, "{} pods", view.len());
    let released = operate::release(&two.store, &view, asked(""))
        .await
        .unwrap();
    assert!(released.0.is_some());
    two.alive_for(&living, TTL).await;
    assert_eq!(two.roster.view().len(), 8);
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_ends_it() {
    let master = frozen(&Faulty::new()).await;
    let living: Vec<u8> = (13..=20).collect();
    let half = POLICY.max / 2;
    master.alive_for(&living, half).await;
    assert_eq!(master.roster.view().len(), 20);
    master.alive_for(&living, half).await;
    assert_eq!(master.roster.view().len(), 8);
    assert!(!is_frozen(&master.roster.view()));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_while_it_is_held_and_one_run_follows() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    let view = master.roster.view();
    let hour = Duration::from_secs(3600);
    let held = operate::hold(&master.store, &view, asked("work"), Some(hour)).await;
    assert_eq!(held.unwrap().0.by, "op@desk");
    master
        .alive(&[1, 2], async {
            acts.none_for(20 * DAMPER).await;
            let view = master.roster.view();
            let refused = master.ask(true).await.unwrap_err();
            assert!(refused.to_string().contains("op@desk"), "{refused}");
            let (ended, _) = operate::resume(&master.store, &view, &asked(""))
                .await
                .unwrap();
            assert_eq!(ended.unwrap().reason, "work");
            acts.next().await.succeeds(json!(1));
            master.handled().await;
            acts.none_for(20 * DAMPER).await;
            // A run that is asked for starts, and once only.
            assert!(master.ask(false).await.unwrap().handled);
            assert!(!master.ask(true).await.unwrap().handled);
            acts.next().await.succeeds(json!(2));
            master.handled().await;
            acts.none_for(20 * DAMPER).await;
        })
        .await;
    assert!(record(&store).await.is_some());
    let view = master.roster.view();
    assert_eq!(
        **view.operate().0,
        kontrol_core::view::OperateRecord::default()
    );
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_by_itself() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    let view = master.roster.view();
    let start = Instant::now();
    let ten = Duration::from_secs(10);
    operate::hold(&master.store, &view, asked("work"), Some(ten))
        .await
        .unwrap();
    master
        .alive(&[1], async {
            acts.next().await.succeeds(json!(1));
            // What passed of it before the leader read of it is real time, and the rest is that of the test.
            assert!(start.elapsed() > ten / 2 && start.elapsed() < ten + Duration::from_secs(2));
            master.until(|view| view.operate().0.hold.is_none()).await;
            master.handled().await;
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_is_over_once_its_key_is_deleted_by_hand_and_a_freeze_is_not() {
    let gone = Txn {
        ops: vec![Op::Delete(OPERATE.to_owned())],
        ..Txn::default()
    };
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master
        .alive(&[1], async {
            acts.next().await.succeeds(json!(1));
            master.handled().await;
            // The leader writes that the run has started.
            master.ask(true).await.unwrap();
            acts.next().await.succeeds(json!(2));
            master.until(|view| view.operate().0.run.is_none()).await;
            let view = master.roster.view();
            let held = operate::hold(&master.store, &view, asked("work"), None).await;
            held.unwrap();
            master.ping(report(2)).await.unwrap();
            acts.none_for(3 * DAMPER).await;
            store.inner.commit(gone.clone()).await.unwrap();
            acts.next().await.succeeds(json!(3));
        })
        .await;
    master.stop().await;
    let store = Faulty::new();
    let master = frozen(&store).await;
    store.inner.commit(gone).await.unwrap();
    let living: Vec<u8> = (13..=20).collect();
    master.alive_for(&living, TTL).await;
    assert!(is_frozen(&master.roster.view()));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_comes_while_the_leader_waits_for_the_store_holds_the_run_that_is_due() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master.ping(report(2)).await.unwrap();
    let silent = Instant::now();
    master
        .alive(&[1], async {
            acts.next().await.succeeds(json!(1));
            master.handled().await;
            sleep_until(silent + TTL - DAMPER / 2).await;
            master.ping(report(3)).await.unwrap();
            // The removal of the silent one is on its way when the damper is over.
            store.fault(Call::Commit("pods/"), Fault::Silent, 1);
            sleep_until(silent + TTL + DAMPER * 2 / 5).await;
            let view = master.roster.view();
            let held = operate::hold(&master.store, &view, asked("work"), None).await;
            held.unwrap();
            acts.none_for(5 * DAMPER).await;
        })
        .await;
    master.stop().await;
}
