//! How much a store takes, and gives back whole.

use super::*;
use kontrol_core::kv::{Compare, Event, Fence, MAX_TXN_BYTES, MAX_TXN_OPS, Op};

pub(in crate::cluster::store) async fn a_snapshot_has_every_key_in_order_at_one_revision(
    bench: &Bench,
) {
    let store = &bench.store;
    let empty = store.snapshot().await.unwrap();
    assert!(empty.entries.is_empty());
    // More than a page of any store.
    let mut expected = BTreeMap::new();
    for group in 0..10 {
        let ops: Vec<Op> = (0..100)
            .map(|n| put(&format!("pods/{n}-{group}"), &format!("{group}")))
            .collect();
        let revision = commit(store, ops).await;
        expected.extend((0..100).map(|n| (format!("pods/{n}-{group}"), revision)));
    }
    let last = commit(store, [put("seq", "1000")]).await;
    expected.insert("seq".into(), last);
    let snapshot = store.snapshot().await.unwrap();
    assert!(snapshot.revision >= last);
    let found: Vec<_> = snapshot
        .entries
        .into_iter()
        .map(|entry| (entry.key, entry.mod_revision))
        .collect();
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
}

pub(in crate::cluster::store) async fn the_largest_transaction_is_taken_and_a_larger_one_refused(
    bench: &Bench,
) {
    let store = &bench.store;
    let fence_at = commit(store, [put("leader", "me")]).await;
    let fence = Fence::new("leader", fence_at);
    let key = |n: usize| format!("pods/{n:03}");
    let size = MAX_TXN_BYTES / MAX_TXN_OPS;
    let of = |count: usize, size: usize| Txn {
        compares: (0..count).map(|n| Compare::Absent(key(n))).collect(),
        ops: (0..count)
            .map(|n| Op::put(key(n), vec![b'x'; size]))
            .collect(),
        otherwise: (0..count).map(key).collect(),
    };
    let largest = fence.guard(of(MAX_TXN_OPS, size));
    for refused in [
        of(MAX_TXN_OPS + 1, 1),
        of(2, MAX_TXN_BYTES),
        txn([], [put("twice", "1"), delete("twice")]),
    ] {
        let error = store.commit(refused).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
    }
    committed(store.commit(largest.clone()).await.unwrap());
    let read = conflict(store.commit(largest).await.unwrap());
    assert_eq!(read.entries.len(), MAX_TXN_OPS);
    assert!(read.entries.iter().all(|entry| entry.value.len() == size));
}

pub(in crate::cluster::store) async fn large_values_in_large_numbers_come_back_whole(
    bench: &Bench,
) {
    let store = &bench.store;
    let start = store.snapshot().await.unwrap().revision;
    // Above the 4 MiB that gRPC takes by itself, in a snapshot as in a watch.
    let value = |n: usize| vec![u8::try_from(n % 251).unwrap(); 64 * 1024];
    let mut last = 0;
    for group in 0..8 {
        let ops: Vec<Op> = (0..12)
            .map(|n| group * 12 + n)
            .map(|n| Op::put(format!("pods/{n:03}"), value(n)))
            .collect();
        last = commit(store, ops).await;
    }
    let mut watch = store.watch(start).await.unwrap();
    let watched = events_to(&mut watch, last).await;
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.entries.len(), 96);
    for (n, (entry, event)) in snapshot.entries.iter().zip(&watched).enumerate() {
        assert_eq!(entry.value, value(n));
        assert_eq!(event, &Event::Put(entry.clone()));
    }
}
