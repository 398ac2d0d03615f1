//! What operators are answered by a master whose view is late, and by a store that others write to as well.

use super::*;
use crate::cluster::store::double::{Call, Fault, Faulty};
use kontrol_core::testing::report;
use tokio::time::Instant;

fn asked(reason: &str) -> Asked {
    Asked::new("op@desk".to_owned(), reason.to_owned()).unwrap()
}

fn shared(store: &Faulty) -> SharedStore {
    Arc::new(store.clone())
}

async fn record(store: &Faulty) -> OperateRecord {
    let found = store.inner.read(&[OPERATE.to_owned()]).await.unwrap();
    OperateRecord::find(&found).0
}

async fn freeze(store: &Faulty) {
    let record = OperateRecord {
        safeguard: Some(Freeze {
            since_ms: 1,
            until_ms: 2,
            silent: 12,
            pods: 20,
            released: None,
        }),
        ..OperateRecord::default()
    };
    store.edit(OPERATE, record.encode()).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_late_view_does_not_show_is_ended_and_released_all_the_same() {
    let (faulty, late) = (Faulty::new(), View::default());
    let store = shared(&faulty);
    hold(&store, &late, asked("work"), None).await.unwrap();
    let (ended, revision) = resume(&store, &late, &asked("")).await.unwrap();
    assert_eq!(ended.unwrap().reason, "work");
    assert_eq!(revision, store.snapshot().await.unwrap().revision);
    assert_eq!(record(&faulty).await.hold, None);
    freeze(&faulty).await;
    let (released, _) = release(&store, &late, asked("dead")).await.unwrap();
    assert_eq!(released.unwrap().silent, 12);
    let freeze = record(&faulty).await.safeguard.unwrap();
    assert_eq!(freeze.released.unwrap().reason, "dead");
}

#[tokio::test(start_paused = true)]
async fn that_there_is_nothing_to_do_is_what_the_store_says() {
    let (faulty, view) = (Faulty::new(), View::default());
    let store = shared(&faulty);
    let before = store.snapshot().await.unwrap().revision;
    assert_eq!(resume(&store, &view, &asked("")).await.unwrap().0, None);
    assert_eq!(release(&store, &view, asked("")).await.unwrap().0, None);
    assert_eq!(store.snapshot().await.unwrap().revision, before);
    faulty.fault(Call::Read(OPERATE), Fault::Down, 1);
    let unknown = resume(&store, &view, &asked("")).await.unwrap_err();
    assert!(matches!(unknown, Error::Unavailable(_)), "{unknown}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_roster_needs_no_run_before_the_first_time() {
    let (store, view) = (shared(&Faulty::new()), View::default());
    let status = CallbackStatus {
        configured: true,
        ..CallbackStatus::default()
    };
    for again in [false, true] {
        let asking = run(&store, &view, &status, asked(""), again).await;
        assert_eq!(asking.unwrap().handled, !again);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_was_ended_elsewhere_refuses_no_run() {
    let faulty = Faulty::new();
    let store = shared(&faulty);
    let (held, _) = hold(&store, &View::default(), asked("work"), None)
        .await
        .unwrap();
    let snapshot = store.snapshot().await.unwrap();
    let (late, _) = View::default().replace(&snapshot, Instant::now());
    assert_eq!(late.operate().0.hold, Some(held));
    resume(&store, &View::default(), &asked("")).await.unwrap();
    let status = CallbackStatus {
        configured: true,
        ..CallbackStatus::default()
    };
    run(&store, &late, &status, asked(""), true).await.unwrap();
    assert!(record(&faulty).await.run.is_some());
}

fn pod(seq: u64) -> Pod {
    Pod::join(report(1), seq, 0)
}

/// The view of a roster of one pod, which the store has as well.
async fn one_pod(faulty: &Faulty) -> View {
    let key = report(1).key();
    faulty.edit(&pod_key(key), pod(7).encode()).await;
    let snapshot = shared(faulty).snapshot().await.unwrap();
    View::default().replace(&snapshot, Instant::now()).0
}

/// What becomes of a pod before its eviction is written: it leaves for this reason, and somebody may join in its place.
async fn leaves(faulty: &Faulty, reason: Reason, joins: bool) {
    let key = report(1).key();
    let tombstone = RemovalRecord::of(&pod(7), reason, Duration::ZERO, 1, "m2");
    let joined = pod(8).after(tombstone.predecessors());
    let ops = if joins {
        vec![Op::put(pod_key(key), joined.encode())]
    } else {
        let mut ops = RemovalRecord::writes(&[tombstone]);
        ops.push(Op::Delete(pod_key(key)));
        ops
    };
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    faulty.inner.commit(txn).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_left_by_itself_was_not_evicted() {
    for joins in [false, true] {
        for (reason, evicts) in [
            (Reason::Expired, false),
            (Reason::Down, false),
            (Reason::Evicted, true),
        ] {
            let faulty = Faulty::new();
            let late = one_pod(&faulty).await;
            leaves(&faulty, reason, joins).await;
            let before = all_of(&faulty).await;
            let (store, key) = (shared(&faulty), report(1).key());
            let answer = evict(&store, &late, key, &asked(""), "m1").await;
            match answer {
                Ok((pod, revision)) => {
                    assert!(evicts, "{reason:?} {joins}");
                    assert_eq!((pod.seq(), revision), (7, before.revision));
                }
                Err(Error::NotFound(told)) => assert!(!evicts, "{reason:?} {joins}: {told}"),
                Err(error) => panic!("{error}"),
            }
            assert_eq!(all_of(&faulty).await, before, "it changed nothing");
        }
    }
}

async fn all_of(faulty: &Faulty) -> Snapshot {
    faulty.inner.snapshot().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_eviction_without_a_clear_answer_is_read_back() {
    for fault in [Fault::Unanswered, Fault::Silent] {
        let faulty = Faulty::new();
        let view = one_pod(&faulty).await;
        faulty.fault(Call::Commit("pods/"), fault, 1);
        let (store, key) = (shared(&faulty), report(1).key());
        let (pod, _) = evict(&store, &view, key, &asked(""), "m1").await.unwrap();
        assert_eq!(pod.seq(), 7);
        assert!(!faulty.holds("pods/").await);
    }
}
