//! When the callback runs, and what becomes of a run that fails or that the roster overtakes.

use super::{stage::Acts, *};
use crate::{
    cluster::{
        status::{CallbackStatus, Run},
        store::double::Faulty,
    },
    ensemble::{callback::Failure, preview::preview},
};
use kontrol_core::{
    model::Exact,
    view::{STATE, StateRecord},
};
use serde_json::Value;

/// A master on a store whose leases end, with a callback that the test plays.
pub(super) async fn leader(store: &Faulty) -> (Harness, Acts) {
    let (clock, acts) = (Clock::of_runtime(), Acts::new());
    let player = Some(acts.player(&clock));
    let master = Harness::begin(Arc::new(store.clone()), 1, clock, player);
    master.elected().await;
    (master, acts)
}

/// The record of the callback's state, as the store has it.
pub(super) async fn record(store: &Faulty) -> Option<StateRecord> {
    let snapshot = store.inner.read(&[STATE.to_owned()]).await.unwrap();
    let entry = snapshot.entries.first()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

pub(super) async fn state(store: &Faulty) -> Option<Value> {
    let record = record(store).await?;
    record.state.as_ref().map(Exact::to_value)
}

impl Harness {
    pub(super) async fn down(&self, host: u8) {
        let beat = u64::MAX;
        let down = Report {
            down: true,
            beat,
            ..report(host)
        };
        self.ping(down).await.unwrap();
    }

    /// Keeps these pods alive until the work is done.
    pub(super) async fn alive<T>(&self, hosts: &[u8], work: impl Future<Output = T>) -> T {
        let pings = async {
            loop {
                for host in hosts {
                    // The store may be away; the roster is held still then.
                    let _ = self.ping(report(*host)).await;
                }
                sleep(TTL / 5).await;
            }
        };
        tokio::select! { done = work => done, () = pings => unreachable!() }
    }

    /// Waits until the callback's status looks like that.
    pub(super) async fn told(&self, what: impl Fn(&CallbackStatus) -> bool) -> CallbackStatus {
        let mut status = self.status.follow();
        let told = timeout(10 * TTL, status.wait_for(what)).await;
        told.expect("it is never told").unwrap().clone()
    }

    /// Waits until a run was handled.
    pub(super) async fn handled(&self) {
        let handled = |run: &Run| run.error.is_none();
        self.told(|now| now.last_run.as_ref().is_some_and(handled) && now.running.is_none())
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_handled_once_and_its_state_is_handed_to_the_next_run() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    acts.none_for(Duration::from_secs(10)).await;
    let joined = Instant::now();
    master.ping(report(1)).await.unwrap();
    master
        .alive(&[1, 2], async {
            let act = acts.next().await;
            assert_eq!(act.at - joined, DAMPER);
            assert_eq!((act.pods().len(), act.state()), (2, None));
            assert_eq!(act.input.epoch, master.election.leads().unwrap().epoch());
            act.succeeds(json!({"n": 1}));
            master.handled().await;
            let record = record(&store).await.unwrap();
            assert_eq!(state(&store).await, Some(json!({"n": 1})));
            assert_eq!(record.digest, master.roster.view().digest().to_string());
            acts.none_for(Duration::from_secs(60)).await;
            master.down(2).await;
            let act = acts.next().await;
            assert_eq!(act.state(), Some(json!({"n": 1})));
            assert!(act.joined().is_empty());
            // Nothing on standard output leaves the state as it is.
            act.ends(Ok(None));
            master.handled().await;
            assert_eq!(state(&store).await, Some(json!({"n": 1})));
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_is_tried_again_later_and_later_and_keeps_nothing() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master.ping(report(1)).await.unwrap();
    master
        .alive(&[1], async {
            let (mut before, mut gaps) = (None, Vec::new());
            for count in 1..=4 {
                let act = acts.next().await;
                gaps.extend(before.map(|before: Instant| (act.at - before).as_secs()));
                before = Some(act.at);
                act.fails();
                let now = master.told(|now| now.failures == count).await;
                assert!(now.retry_at.is_some());
                assert_eq!(
                    now.last_run.unwrap().error,
                    Some(Failure::Exit(3).to_string())
                );
                assert_eq!(record(&store).await, None);
            }
            assert_eq!(gaps, [1, 2, 4]);
            acts.next().await.succeeds(json!(1));
            let now = master.told(|now| now.failures == 0).await;
            assert_eq!(now.retry_at, None);
            acts.none_for(Duration::from_secs(120)).await;
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_digest_replaces_one_that_failed_after_its_own_damper() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master.ping(report(1)).await.unwrap();
    master
        .alive(&[1], async {
            for _ in 1..=3 {
                acts.next().await.fails();
            }
            master.told(|now| now.failures == 3).await;
        })
        .await;
    let joined = Instant::now();
    master.ping(report(2)).await.unwrap();
    master
        .alive(&[1, 2], async {
            let act = acts.next().await;
            assert_eq!(act.at - joined, DAMPER);
            assert_eq!(act.pods().len(), 2);
            assert_eq!(act.joined().len(), 2, "neither was ever handled");
            act.fails();
            let now = master.told(|now| now.failures > 0 && now.running.is_none());
            assert_eq!(now.await.failures, 1, "it is counted anew");
            acts.next().await.succeeds(json!(2));
            master.handled().await;
        })
        .await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_and_changes_back_during_a_run_needs_no_other() {
    for (fails, stays) in [(false, false), (false, true), (true, false), (true, true)] {
        let store = Faulty::new();
        let (master, mut acts) = leader(&store).await;
        master.ping(report(1)).await.unwrap();
        master
            .alive(&[1], async {
                let act = acts.next().await;
                let digest = act.input.digest;
                master.ping(report(2)).await.unwrap();
                sleep(2 * DAMPER).await;
                if !stays {
                    master.down(2).await;
                    sleep(2 * DAMPER).await;
                }
                assert_eq!(acts.running(), 1);
                if fails {
                    act.fails();
                } else {
                    act.succeeds(json!(1));
                }
                if fails || stays {
                    let act = acts.next().await;
                    assert_eq!(act.input.digest == digest, !stays);
                    assert_eq!(act.pods().len(), if stays { 2 } else { 1 });
                    act.succeeds(json!(2));
                    master.handled().await;
                }
                if !stays {
                    acts.none_for(Duration::from_secs(60)).await;
                }
            })
            .await;
        assert_eq!(acts.most(), 1);
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_time_that_the_damper_is_put_off_is_told_and_stays_as_it_was_told() {
    let store = Faulty::new();
    let (master, _acts) = leader(&store).await;
    master.ping(report(1)).await.unwrap();
    let first = master.told(|now| now.due.is_some()).await;
    sleep(DAMPER / 50).await;
    master.ping(report(2)).await.unwrap();
    let second = master.told(|now| now.due != first.due).await;
    assert_eq!(second.pending_since, first.pending_since);
    sleep(DAMPER / 2).await;
    assert_eq!(master.status.now(), second);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_preview_is_of_what_the_leader_remembers_and_elsewhere_of_what_the_store_does() {
    let store = Faulty::new();
    let (master, mut acts) = leader(&store).await;
    master.ping(report(1)).await.unwrap();
    acts.next().await.succeeds(json!(1));
    master.handled().await;
    master.ping(report(2)).await.unwrap();
    let elsewhere = Memory::default();
    let joined = async |memory: &Memory| {
        let (view, status) = (master.roster.view(), master.status.now());
        let preview = preview(&master.store, &view, &status, memory).await?;
        let input: Value = serde_json::from_slice(&preview.input).unwrap();
        Ok::<_, Error>(input["changes"]["joined"].as_array().unwrap().len())
    };
    for memory in [&master.memory, &elsewhere] {
        assert_eq!(joined(memory).await.unwrap(), 1);
    }
    // A revision that the store does not have is like one that it has forgotten.
    let forgotten = StateRecord {
        revision: 1_000_000,
        ..record(&store).await.unwrap()
    };
    let forgotten = serde_json::to_vec(&forgotten).unwrap();
    store.edit(STATE, forgotten).await;
    master
        .until(|view| view.state().unwrap().0.revision == 1_000_000)
        .await;
    assert_eq!(joined(&master.memory).await.unwrap(), 1);
    let refused = joined(&elsewhere).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Unavailable(text) if text.ends_with("ask the leader, 127.0.0.1:1")),
        "{refused}"
    );
    // Whoever leads next remembers no more than the store, and its run is told so.
    let memory = master.memory.clone();
    master.stop().await;
    assert!(memory.now().is_none());
    let (next, _acts) = leader(&store).await;
    next.told(|status| status.configured).await;
    let (view, status) = (next.roster.view(), next.status.now());
    let preview = preview(&next.store, &view, &status, &next.memory).await;
    let input: Value = serde_json::from_slice(&preview.unwrap().input).unwrap();
    assert_eq!(input["changes"]["joined"].as_array().unwrap().len(), 2);
    next.stop().await;
}
