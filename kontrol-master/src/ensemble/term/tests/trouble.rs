//! The callback on a store that answers late, unclearly or not at all at each step of a run, and on one that somebody
//! edited; and what a panic leaves behind.

use super::{
    callback::{leader, record, state},
    stage::{Act, Acts},
    *,
};
use crate::cluster::store::double::{Call, Fault, Faulty, PATIENCE};
use kontrol_core::{
    model::Exact,
    view::{REMOVALS, STATE, StateRecord},
};

const LONG: Duration = Duration::from_secs(60);

/// What goes wrong with a call, and how often.
fn troubles() -> Vec<(Fault, usize)> {
    vec![
        (Fault::Late(3 * DAMPER), 1),
        (Fault::Unanswered, 1),
        (Fault::Overdue(Duration::from_millis(20)), 1),
        (Fault::Overdue(3 * DAMPER), 2),
        (Fault::Silent, 3),
        (Fault::Down, 7),
        (Fault::Refused, 2),
    ]
}

/// A leader with one pod that it has handled.
async fn settled(store: &Faulty) -> (Harness, Acts) {
    let (master, mut acts) = leader(store).await;
    master.ping(report(1)).await.unwrap();
    acts.next().await.succeeds(json!({"n": 1}));
    master.handled().await;
    (master, acts)
}

/// Somebody puts a state, as PutState does.
async fn put(store: &Faulty, state: serde_json::Value) {
    let record = StateRecord {
        state: Some(Exact::of(&state).unwrap()),
        ..record(store).await.unwrap()
    };
    store
        .edit(STATE, serde_json::to_vec(&record).unwrap())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_succeeded_is_stored_and_not_run_again_whatever_the_store_does() {
    for (fault, times) in troubles() {
        for output in [Some(json!({"n": 2})), None] {
            let store = Faulty::new();
            let (master, mut acts) = settled(&store).await;
            master.ping(report(2)).await.unwrap();
            master
                .alive(&[1, 2], async {
                    let act = acts.next().await;
                    put(&store, json!("put meanwhile")).await;
                    store.fault(Call::Commit(STATE), fault, times);
                    let (revision, epoch) = (master.roster.view().revision(), act.input.epoch);
                    act.ends(Ok(output.clone()));
                    acts.none_for(LONG).await;
                    let now = master.status.now();
                    assert_eq!((now.failures, now.error.as_str()), (0, ""), "{fault:?}");
                    let record = record(&store).await.unwrap();
                    assert_eq!(record.digest, master.roster.view().digest().to_string());
                    assert!(record.revision <= revision && record.epoch == epoch);
                    let kept = output.clone().unwrap_or(json!("put meanwhile"));
                    assert_eq!(state(&store).await, Some(kept), "{fault:?}");
                })
                .await;
            master.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_until_it_can_read_the_state_and_loses_no_put() {
    for (fault, times) in troubles() {
        let store = Faulty::new();
        let (master, mut acts) = settled(&store).await;
        master.ping(report(2)).await.unwrap();
        // The roster does not show the state that was put.
        store.held.send_replace(true);
        put(&store, json!({"n": "put"})).await;
        store.fault(Call::Read(STATE), fault, times);
        master
            .alive(&[1, 2], async {
                if !matches!(fault, Fault::Late(_)) {
                    let now = master.told(|now| !now.error.is_empty()).await;
                    assert_eq!((now.failures, now.running), (0, None));
                    assert!(now.last_run.unwrap().error.is_none(), "{fault:?}");
                    assert_eq!(acts.running(), 0);
                }
                let act = acts.next().await;
                assert_eq!(act.state(), Some(json!({"n": "put"})), "{fault:?}");
                master.told(|now| now.error.is_empty()).await;
                act.ends(Ok(None));
                master.handled().await;
            })
            .await;
        assert_eq!(state(&store).await, Some(json!({"n": "put"})));
        store.held.send_replace(false);
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_that_cannot_read_what_was_handled_does_not_call_every_pod_new() {
    for (fault, times) in troubles() {
        let store = Faulty::new();
        let (one, mut acts) = settled(&store).await;
        one.stop().await;
        let (clock, client) = (Clock::of_runtime(), store.client());
        let player = Some(acts.player(&clock));
        let two = Harness::begin(Arc::new(client.clone()), 2, clock, player);
        two.elected().await;
        client.fault(Call::SnapshotAt, fault, times);
        two.ping(report(2)).await.unwrap();
        two.alive(&[1, 2], async {
            let act = acts.next().await;
            let two = report(2).id;
            assert_eq!(
                (act.pods().len(), act.joined()),
                (2, vec![two]),
                "{fault:?}"
            );
            act.ends(Ok(None));
        })
        .await;
        two.stop().await;
    }
}

/// A run has succeeded, and the store is away for as long as the lease is not confirmed.
async fn unstored(store: &Faulty, lease: Fault) -> (Harness, Acts, i64) {
    let (master, mut acts) = settled(store).await;
    master.ping(report(2)).await.unwrap();
    let act: Act = master.alive(&[1], acts.next()).await;
    let epoch = act.input.epoch;
    store.fault(Call::Commit(STATE), Fault::Down, usize::MAX);
    store.fault(Call::KeepAlive, lease, usize::MAX);
    act.succeeds(json!({"n": 2}));
    let told = master.told(|now| now.error.contains("stored"));
    let mut lead = master.election.changes();
    let lost = lead.wait_for(Option::is_none);
    let _ = master
        .alive(&[1, 2], async { tokio::join!(told, lost) })
        .await;
    (master, acts, epoch)
}

#[tokio::test(start_paused = true)]
async fn what_a_run_left_is_stored_once_the_lease_is_confirmed_again() {
    let store = Faulty::new();
    let (master, mut acts, epoch) = unstored(&store, Fault::Unanswered).await;
    sleep(Duration::from_secs(3)).await;
    store.heal();
    assert_eq!(master.elected().await.epoch(), epoch, "its lease lived on");
    master
        .alive(&[1, 2], async {
            master.handled().await;
            acts.none_for(LONG).await;
        })
        .await;
    let record = record(&store).await.unwrap();
    assert_eq!(record.epoch, epoch);
    assert_eq!(state(&store).await, Some(json!({"n": 2})));
    assert_eq!(record.digest, master.roster.view().digest().to_string());
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_run_left_is_not_stored_by_another_epoch() {
    let store = Faulty::new();
    let (master, mut acts, epoch) = unstored(&store, Fault::Silent).await;
    sleep(TTL).await;
    store.heal();
    assert!(master.elected().await.epoch() > epoch);
    master
        .alive(&[1, 2], async {
            let act = acts.next().await;
            assert_eq!(act.state(), Some(json!({"n": 1})));
            assert!(act.input.epoch > epoch);
            act.succeeds(json!({"n": 3}));
            master.handled().await;
            acts.none_for(LONG).await;
        })
        .await;
    assert_eq!(state(&store).await, Some(json!({"n": 3})));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_digest_waits_until_the_result_of_the_run_before_is_stored() {
    let store = Faulty::new();
    let (master, mut acts) = settled(&store).await;
    master.ping(report(2)).await.unwrap();
    let act = acts.next().await;
    let digest = act.input.digest;
    store.fault(Call::Commit(STATE), Fault::Down, usize::MAX);
    act.succeeds(json!({"n": 2}));
    master
        .alive(&[1, 2, 3], async {
            acts.none_for(LONG).await;
            store.heal();
            let act = acts.next().await;
            let record = record(&store).await.unwrap();
            assert_eq!(record.digest, digest.to_string());
            assert_eq!((act.pods().len(), act.state()), (3, Some(json!({"n": 2}))));
            act.ends(Ok(None));
            master.handled().await;
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_over_a_state_that_cannot_be_read_until_it_is_repaired() {
    // When somebody breaks the record: before the change, or while the callback runs.
    for during in [false, true] {
        let store = Faulty::new();
        let (master, mut acts) = settled(&store).await;
        let good = record(&store).await.unwrap();
        let broken = "{\"state\":";
        if !during {
            store.edit(STATE, broken).await;
        }
        master.ping(report(2)).await.unwrap();
        master
            .alive(&[1, 2], async {
                if during {
                    let act = acts.next().await;
                    store.edit(STATE, broken).await;
                    act.succeeds(json!({"n": 2}));
                }
                let now = master.told(|now| now.error.contains("can't be read")).await;
                assert_eq!(now.failures, 0);
                acts.none_for(LONG).await;
                assert!(master.roster.view().state().is_err());
                let found = store.inner.read(&[STATE.to_owned()]).await.unwrap();
                assert_eq!(found.entries[0].value, broken);
                store.edit(STATE, serde_json::to_vec(&good).unwrap()).await;
                if !during {
                    let act = acts.next().await;
                    assert_eq!(act.state(), Some(json!({"n": 1})));
                    act.succeeds(json!({"n": 2}));
                }
                master.told(|now| now.error.is_empty()).await;
                acts.none_for(LONG).await;
                assert_eq!(state(&store).await, Some(json!({"n": 2})));
            })
            .await;
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_starts_nothing_over_a_state_that_cannot_be_read() {
    let store = Faulty::new();
    let (one, mut acts) = settled(&store).await;
    let good = record(&store).await.unwrap();
    one.stop().await;
    store.edit(STATE, "[]").await;
    let (two, mut others) = leader(&store.client()).await;
    two.alive(&[1], async {
        two.told(|now| !now.error.is_empty()).await;
        others.none_for(LONG).await;
        store.edit(STATE, serde_json::to_vec(&good).unwrap()).await;
        two.told(|now| now.error.is_empty()).await;
        // This digest is handled, as the record says again.
        others.none_for(LONG).await;
    })
    .await;
    acts.none_for(Duration::ZERO).await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_is_told_and_the_next_waits_until_its_callback_is_gone() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master.ping(report(1)).await.unwrap();
    master
        .alive(&[1], async {
            let act = acts.next().await;
            act.breaks();
            let broke = Instant::now();
            let now = master.told(|now| now.failures == 1).await;
            assert!(now.last_run.unwrap().error.unwrap().contains("bug"));
            let act = acts.next().await;
            assert_eq!(act.at - broke, QUARANTINE);
            act.succeeds(json!(1));
            master.handled().await;
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_term_that_panics_ends_its_callback_before_another_master_can_lead() {
    let store = Faulty::new();
    let (one, mut acts) = leader(&store).await;
    let (clock, client) = (Clock::of_runtime(), store.client());
    let player = Some(acts.player(&clock));
    let two = Harness::begin(Arc::new(client), 2, clock, player);
    one.ping(report(1)).await.unwrap();
    let act = acts.next().await;
    store.fault(Call::Commit(REMOVALS), Fault::Panic, 1);
    let fence = two.elected().await;
    assert_eq!(acts.running(), 0, "nothing of it is left");
    drop(act);
    let failure = one.tasks.await.unwrap().unwrap_err();
    assert!(
        failure.to_string().starts_with("term panicked"),
        "{failure}"
    );
    two.alive(&[2], async {
        let act = acts.next().await;
        assert_eq!(act.input.epoch, fence.epoch());
        act.ends(Ok(None));
    })
    .await;
    assert!(acts.most() == 1 && PATIENCE < QUARANTINE);
    two.stop().await;
}
