//! What was, and what comes: earlier revisions, watches, and what is no longer there.

use super::*;
use kontrol_core::kv::{Event, Op};

pub(in crate::cluster::store) async fn a_snapshot_of_an_earlier_revision_shows_what_was_then(
    bench: &Bench,
) {
    let store = &bench.store;
    let first = commit(
        store,
        [put("pods/a", "1"), put("pods/b", "1"), put("x", "1")],
    )
    .await;
    let second = commit(store, [put("pods/a", "2"), delete("pods/b")]).await;
    let third = commit(store, [put("pods/b", "3"), put("pods/c", "3")]).await;
    let cases = [
        (first, vec![("pods/a", "1"), ("pods/b", "1")]),
        (second, vec![("pods/a", "2")]),
        (
            third,
            vec![("pods/a", "2"), ("pods/b", "3"), ("pods/c", "3")],
        ),
    ];
    for (revision, expected) in cases {
        let snapshot = store.snapshot_at("pods/", revision).await.unwrap();
        assert_eq!(snapshot.revision, revision);
        assert_eq!(texts(&snapshot), expected);
    }
    let all = store.snapshot_at("", first).await.unwrap();
    assert_eq!(texts(&all), [("pods/a", "1"), ("pods/b", "1"), ("x", "1")]);
    assert_eq!(all.entries[0].mod_revision, first);
}

pub(in crate::cluster::store) async fn a_watch_gives_every_change_once_in_order_and_revisions_whole(
    bench: &Bench,
) {
    let store = &bench.store;
    let start = commit(store, [put("before", "1")]).await;
    let mut watch = store.watch(start).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            let mut sizes = BTreeMap::new();
            for n in 0..50 {
                let ops: Vec<Op> = (0..=n % 7)
                    .map(|k| put(&format!("k{k}"), &n.to_string()))
                    .collect();
                sizes.insert(commit(&store, ops).await, n % 7 + 1);
                if n % 10 == 9 {
                    sizes.insert(commit(&store, [delete("k0"), put("z", "1")]).await, 2);
                }
            }
            sizes
        }
    });
    let mut seen: BTreeMap<Revision, usize> = BTreeMap::new();
    let mut last = start;
    while seen.len() < 55 {
        let batch = watch.next().await.unwrap();
        assert!(!batch.events.is_empty());
        for (n, event) in batch.events.iter().enumerate() {
            let revision = revision_of(event);
            assert!(revision > last || (n > 0 && revision == last), "{event:?}");
            last = revision;
            *seen.entry(revision).or_default() += 1;
        }
        assert_eq!(batch.revision, last);
    }
    assert_eq!(seen, writer.await.unwrap());
}

pub(in crate::cluster::store) async fn a_watch_goes_on_where_another_ended(bench: &Bench) {
    let store = &bench.store;
    let first = commit(store, [put("a", "1")]).await;
    let second = commit(store, [put("a", "2"), put("b", "2")]).await;
    let third = commit(store, [delete("a")]).await;
    for (behind, expected) in [(first, vec![second, second, third]), (second, vec![third])] {
        let mut watch = store.watch(behind).await.unwrap();
        let events = events_to(&mut watch, third).await;
        assert_eq!(events.iter().map(revision_of).collect::<Vec<_>>(), expected);
    }
    let mut watch = store.watch(third).await.unwrap();
    let fourth = commit(store, [put("c", "4")]).await;
    let events = events_to(&mut watch, fourth).await;
    assert_eq!(events.len(), 1);
}

pub(in crate::cluster::store) async fn a_watch_that_is_not_polled_to_the_end_loses_nothing(
    bench: &Bench,
) {
    let store = &bench.store;
    let start = commit(store, [put("a", "0")]).await;
    let mut watch = store.watch(start).await.unwrap();
    let mut seen = Vec::new();
    let mut last = start;
    for n in 1..=20 {
        // A wait that is given up, at whatever point it has come to.
        let polled = tokio::time::timeout(Duration::from_micros(n * 50), watch.next()).await;
        if let Ok(batch) = polled {
            seen.extend(batch.unwrap().events);
        }
        last = commit(store, [put("a", &n.to_string())]).await;
    }
    while seen.last().map(revision_of) != Some(last) {
        seen.extend(watch.next().await.unwrap().events);
    }
    let values: Vec<String> = seen
        .iter()
        .map(|event| match event {
            Event::Put(entry) => String::from_utf8(entry.value.to_vec()).unwrap(),
            Event::Delete { .. } => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(values, (1..=20).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub(in crate::cluster::store) async fn what_is_forgotten_is_compacted(bench: &Bench) {
    let store = &bench.store;
    let first = commit(store, [put("a", "1")]).await;
    commit(store, [put("a", "2")]).await;
    let last = commit(store, [put("a", "3")]).await;
    (bench.forget)(last).await;
    let error = watch_error(store, first).await;
    assert!(matches!(error, StoreError::Compacted(_)), "{error}");
    let error = store.snapshot_at("", first).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted(r) if r == first),
        "{error}"
    );
    // What is left goes on.
    let snapshot = store.snapshot_at("", last).await.unwrap();
    assert_eq!(texts(&snapshot), [("a", "3")]);
    let mut watch = store.watch(last).await.unwrap();
    let next = commit(store, [put("a", "4")]).await;
    assert_eq!(events_to(&mut watch, next).await.len(), 1);
}

pub(in crate::cluster::store) async fn the_future_is_compacted(bench: &Bench) {
    let store = &bench.store;
    // A store that was set back: who comes from a later revision must take a snapshot, not wait.
    let future = commit(store, [put("a", "1")]).await + 1_000_000;
    let error = watch_error(store, future).await;
    assert!(
        matches!(error, StoreError::Compacted(r) if r == future),
        "{error}"
    );
    let error = store.snapshot_at("", future).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted(r) if r == future),
        "{error}"
    );
}
