//! What operators are answered by a master whose view is late, and by a store that others write to as well.

use super::*;
use crate::cluster::store::double::{Call, Fault, Faulty};

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
async fn a_hold_that_was_ended_elsewhere_refuses_no_run() {
    let faulty = Faulty::new();
    let store = shared(&faulty);
    let (held, _) = hold(&store, &View::default(), asked("work"), None)
        .await
        .unwrap();
    let snapshot = store.snapshot().await.unwrap();
    let (late, _) = View::default().replace(&snapshot, tokio::time::Instant::now());
    assert_eq!(late.operate().0.hold, Some(held));
    resume(&store, &View::default(), &asked("")).await.unwrap();
    let status = CallbackStatus {
        configured: true,
        ..CallbackStatus::default()
    };
    run(&store, &late, &status, asked(""), true).await.unwrap();
    assert!(record(&faulty).await.run.is_some());
}
