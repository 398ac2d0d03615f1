//! What every store must do, one function per guarantee, run against each store by `conformance!`.
//!
//! A store is given empty, but its revisions may grow by what others write elsewhere: nothing here counts on the next
//! revision being the last one plus one.

use super::*;
use futures::future::BoxFuture;
use std::{any::Any, collections::BTreeMap, time::Instant};

/// An empty store under test.
pub(super) struct Bench {
    pub(super) store: SharedStore,
    /// Makes the store forget its history up to this revision.
    pub(super) forget: Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What must live as long as the store.
    pub(super) _keep: Box<dyn Any + Send + Sync>,
}

/// Instantiates the suite for the store that this expression makes: a future of `Option<Bench>`, none to skip.
macro_rules! conformance {
    ($bench:expr) => {
        $crate::store::conformance::conformance! { @each $bench =>
            a_transaction_happens_as_a_whole_or_not_at_all
            a_compare_holds_for_exactly_what_it_says
            a_conflict_reads_otherwise_at_one_revision
            a_transaction_that_changes_nothing_makes_no_revision
            a_key_that_comes_back_has_a_new_create_revision
            a_fence_holds_only_while_its_leader_key_is_there
            a_snapshot_has_every_key_in_order_at_one_revision
            a_snapshot_of_an_earlier_revision_shows_what_was_then
            a_read_gives_what_exists
            a_watch_gives_every_change_once_in_order_and_revisions_whole
            a_watch_goes_on_where_another_ended
            a_watch_that_is_not_polled_to_the_end_loses_nothing
            what_is_forgotten_is_compacted
            the_future_is_compacted
            revoking_a_lease_deletes_its_keys_in_one_revision
            a_lease_that_is_gone_is_told_everywhere
            a_key_is_bound_to_its_last_lease_only
            leases_end_by_themselves_only_where_that_is_said
            the_largest_transaction_is_taken_and_a_larger_one_refused
            large_values_in_large_numbers_come_back_whole
            concurrent_writers_lose_nothing
        }
    };
    (@each $bench:expr => $($name:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bench: Option<$crate::store::conformance::Bench> = $bench.await;
                let Some(bench) = bench else { return };
                let test = $crate::store::conformance::$name(&bench);
                tokio::time::timeout(std::time::Duration::from_secs(60), test)
                    .await
                    .expect("a guarantee is shown within a minute");
            }
        )+
    };
}
pub(super) use conformance;

pub(super) fn put(key: &str, value: &str) -> Op {
    Op::put(key, value.to_owned())
}

pub(super) fn delete(key: &str) -> Op {
    Op::Delete(key.to_owned())
}

fn bound(key: &str, lease: LeaseId) -> Op {
    Op::Put {
        key: key.to_owned(),
        value: Bytes::from_static(b"bound"),
        lease: Some(lease),
    }
}

pub(super) fn txn(compares: impl Into<Vec<Compare>>, ops: impl Into<Vec<Op>>) -> Txn {
    Txn {
        compares: compares.into(),
        ops: ops.into(),
        otherwise: Vec::new(),
    }
}

pub(super) async fn commit(store: &SharedStore, ops: impl Into<Vec<Op>>) -> Revision {
    committed(store.commit(txn([], ops)).await.unwrap())
}

pub(super) fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(snapshot) => panic!("a conflict: {snapshot:?}"),
    }
}

fn conflict(outcome: Outcome) -> Snapshot {
    match outcome {
        Outcome::Conflict(snapshot) => snapshot,
        Outcome::Committed(revision) => panic!("committed at {revision}"),
    }
}

pub(super) fn texts(snapshot: &Snapshot) -> Vec<(&str, &str)> {
    snapshot
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), str::from_utf8(&entry.value).unwrap()))
        .collect()
}

/// Reads a watch until it has covered this revision.
pub(super) async fn events_to(watch: &mut Box<dyn Watch>, revision: Revision) -> Vec<Event> {
    let mut all = Vec::new();
    let mut behind = 0;
    while behind < revision {
        let batch = watch.next().await.unwrap();
        assert!(batch.revision > behind, "{batch:?} comes after {behind}");
        behind = batch.revision;
        all.extend(batch.events);
    }
    all
}

fn revision_of(event: &Event) -> Revision {
    match event {
        Event::Put(entry) => entry.mod_revision,
        Event::Delete { revision, .. } => *revision,
    }
}

/// The error that a watch meets, at its opening or with its first batch.
async fn watch_error(store: &SharedStore, behind: Revision) -> StoreError {
    match store.watch(behind).await {
        Ok(mut watch) => watch.next().await.unwrap_err(),
        Err(error) => error,
    }
}

pub(super) async fn a_transaction_happens_as_a_whole_or_not_at_all(bench: &Bench) {
    let store = &bench.store;
    let first = commit(store, [put("a", "1"), put("b", "1")]).await;
    let compares = [Compare::Absent("c".into()), Compare::Absent("a".into())];
    let refused = store
        .commit(txn(compares, [put("c", "2"), delete("b"), put("a", "2")]))
        .await
        .unwrap();
    assert!(conflict(refused).entries.is_empty());
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("a", "1"), ("b", "1")]);
    let compares = [
        Compare::ModRevision("a".into(), first),
        Compare::Absent("c".into()),
    ];
    let second = committed(
        store
            .commit(txn(compares, [put("c", "2"), delete("b"), put("a", "2")]))
            .await
            .unwrap(),
    );
    assert!(second > first);
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("a", "2"), ("c", "2")]);
    let revisions: Vec<_> = snapshot
        .entries
        .iter()
        .map(|entry| (entry.create_revision, entry.mod_revision))
        .collect();
    assert_eq!(revisions, [(first, second), (second, second)]);
}

pub(super) async fn a_compare_holds_for_exactly_what_it_says(bench: &Bench) {
    let store = &bench.store;
    let created = commit(store, [put("k", "1")]).await;
    let modified = commit(store, [put("k", "2")]).await;
    let k = || "k".to_owned();
    let cases = [
        (Compare::Absent(k()), false),
        (Compare::Absent("other".into()), true),
        (Compare::ModRevision(k(), created), false),
        (Compare::ModRevision(k(), modified), true),
        (Compare::ModRevision("other".into(), created), false),
        (Compare::CreateRevision(k(), created), true),
        (Compare::CreateRevision(k(), modified), false),
        (Compare::CreateRevision("other".into(), created), false),
    ];
    for (compare, holds) in cases {
        let shown = format!("{compare:?}");
        let outcome = store.commit(txn([compare], [])).await.unwrap();
        assert_eq!(matches!(outcome, Outcome::Committed(_)), holds, "{shown}");
    }
}

pub(super) async fn a_conflict_reads_otherwise_at_one_revision(bench: &Bench) {
    let store = &bench.store;
    commit(store, [put("a", "1"), put("b", "2"), put("c", "3")]).await;
    let last = commit(store, [delete("c")]).await;
    let outcome = store
        .commit(Txn {
            compares: vec![Compare::Absent("a".into())],
            ops: vec![put("a", "x")],
            otherwise: vec!["b".into(), "c".into(), "a".into(), "nothing".into()],
        })
        .await
        .unwrap();
    let snapshot = conflict(outcome);
    assert_eq!(texts(&snapshot), [("a", "1"), ("b", "2")]);
    assert!(snapshot.revision >= last);
}

pub(super) async fn a_transaction_that_changes_nothing_makes_no_revision(bench: &Bench) {
    let store = &bench.store;
    let first = commit(store, [put("a", "1")]).await;
    assert!(commit(store, [delete("nothing")]).await >= first);
    assert!(commit(store, []).await >= first);
    let last = commit(store, [put("a", "2")]).await;
    let mut watch = store.watch(first).await.unwrap();
    let events = events_to(&mut watch, last).await;
    assert_eq!(events.iter().map(revision_of).collect::<Vec<_>>(), [last]);
}

pub(super) async fn a_key_that_comes_back_has_a_new_create_revision(bench: &Bench) {
    let store = &bench.store;
    let first = commit(store, [put("k", "1")]).await;
    commit(store, [put("k", "2")]).await;
    commit(store, [delete("k")]).await;
    let again = commit(store, [put("k", "3")]).await;
    let entry = store.read(&["k".into()]).await.unwrap().entries.remove(0);
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));
    let outcome = store
        .commit(txn([Compare::CreateRevision("k".into(), first)], []))
        .await;
    conflict(outcome.unwrap());
}

pub(super) async fn a_fence_holds_only_while_its_leader_key_is_there(bench: &Bench) {
    let store = &bench.store;
    let (lease, _) = store.grant(Duration::from_secs(30)).await.unwrap();
    let key = format!("leader/{lease}");
    let epoch = commit(store, [bound(&key, lease)]).await;
    let fence = Fence::new(key.clone(), epoch);
    let write = || fence.guard(txn([], [put("state", "mine")]));
    committed(store.commit(write()).await.unwrap());
    // The leader may write its own key anew without losing its right.
    commit(store, [bound(&key, lease)]).await;
    committed(store.commit(write()).await.unwrap());
    store.revoke(lease).await.unwrap();
    conflict(store.commit(write()).await.unwrap());
    // Nor does a key of the same name give it back.
    commit(store, [put(&key, "another")]).await;
    conflict(store.commit(write()).await.unwrap());
}

pub(super) async fn a_snapshot_has_every_key_in_order_at_one_revision(bench: &Bench) {
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

pub(super) async fn a_snapshot_of_an_earlier_revision_shows_what_was_then(bench: &Bench) {
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

pub(super) async fn a_read_gives_what_exists(bench: &Bench) {
    let store = &bench.store;
    let last = commit(store, [put("a", "1"), put("b", "2"), put("bb", "3")]).await;
    let keys = ["b", "nothing", "a", "b"].map(str::to_owned);
    let snapshot = store.read(&keys).await.unwrap();
    assert!(snapshot.revision >= last);
    assert_eq!(texts(&snapshot), [("a", "1"), ("b", "2")]);
    assert!(store.read(&[]).await.unwrap().entries.is_empty());
    let many: Vec<String> = (0..=MAX_TXN_OPS).map(|n| n.to_string()).collect();
    assert!(store.read(&many[1..]).await.is_ok());
    let refused = store.read(&many).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused}");
}

pub(super) async fn a_watch_gives_every_change_once_in_order_and_revisions_whole(bench: &Bench) {
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

pub(super) async fn a_watch_goes_on_where_another_ended(bench: &Bench) {
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

pub(super) async fn a_watch_that_is_not_polled_to_the_end_loses_nothing(bench: &Bench) {
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

pub(super) async fn what_is_forgotten_is_compacted(bench: &Bench) {
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

pub(super) async fn the_future_is_compacted(bench: &Bench) {
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

pub(super) async fn revoking_a_lease_deletes_its_keys_in_one_revision(bench: &Bench) {
    let store = &bench.store;
    let (lease, ttl) = store.grant(Duration::from_secs(30)).await.unwrap();
    assert!(ttl >= Duration::from_secs(30));
    let (other, _) = store.grant(Duration::from_secs(30)).await.unwrap();
    let last = commit(
        store,
        [
            bound("a", lease),
            bound("b", lease),
            bound("c", other),
            put("d", "4"),
        ],
    )
    .await;
    assert_eq!(store.keep_alive(lease).await.unwrap(), ttl);
    store.revoke(lease).await.unwrap();
    store.revoke(lease).await.unwrap();
    let mut watch = store.watch(last).await.unwrap();
    let batch = watch.next().await.unwrap();
    let deleted = |key: &str| Event::Delete {
        key: key.to_owned(),
        revision: batch.revision,
    };
    assert_eq!(batch.events, [deleted("a"), deleted("b")]);
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("c", "bound"), ("d", "4")]);
}

pub(super) async fn a_lease_that_is_gone_is_told_everywhere(bench: &Bench) {
    let store = &bench.store;
    let (lease, _) = store.grant(Duration::from_secs(30)).await.unwrap();
    store.revoke(lease).await.unwrap();
    for lease in [lease, LeaseId(0x1234_5678)] {
        let error = store.keep_alive(lease).await.unwrap_err();
        assert!(
            matches!(error, StoreError::LeaseGone(l) if l == lease),
            "{error}"
        );
        let error = store
            .commit(txn([], [put("a", "1"), bound("b", lease)]))
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::LeaseGone(l) if l == lease),
            "{error}"
        );
        store.revoke(lease).await.unwrap();
    }
    assert!(store.snapshot().await.unwrap().entries.is_empty());
}

pub(super) async fn a_key_is_bound_to_its_last_lease_only(bench: &Bench) {
    let store = &bench.store;
    let (first, _) = store.grant(Duration::from_secs(30)).await.unwrap();
    let (second, _) = store.grant(Duration::from_secs(30)).await.unwrap();
    commit(store, [bound("moved", first), bound("freed", first)]).await;
    commit(store, [bound("moved", second), put("freed", "free")]).await;
    store.revoke(first).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("freed", "free"), ("moved", "bound")]);
    store.revoke(second).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("freed", "free")]);
}

pub(super) async fn leases_end_by_themselves_only_where_that_is_said(bench: &Bench) {
    let store = &bench.store;
    // Not a whole number of seconds: what is given is never less than what was asked for.
    let (lease, ttl) = store.grant(Duration::from_millis(1100)).await.unwrap();
    assert!(ttl >= Duration::from_millis(1100));
    let last = commit(store, [bound("k", lease)]).await;
    let mut watch = store.watch(last).await.unwrap();
    if !store.leases_expire() {
        let waited = tokio::time::timeout(ttl + Duration::from_millis(200), watch.next()).await;
        assert!(waited.is_err(), "{waited:?}");
        assert_eq!(store.keep_alive(lease).await.unwrap(), ttl);
        return;
    }
    // Beats carry it beyond its time.
    let until = Instant::now() + ttl + ttl / 2;
    while Instant::now() < until {
        assert_eq!(store.keep_alive(lease).await.unwrap(), ttl);
        let quiet = tokio::time::timeout(ttl / 4, watch.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
    let batch = watch.next().await.unwrap();
    assert!(
        matches!(&batch.events[..], [Event::Delete { key, .. }] if key == "k"),
        "{batch:?}"
    );
    let error = store.keep_alive(lease).await.unwrap_err();
    assert!(
        matches!(error, StoreError::LeaseGone(l) if l == lease),
        "{error}"
    );
}

pub(super) async fn the_largest_transaction_is_taken_and_a_larger_one_refused(bench: &Bench) {
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

pub(super) async fn large_values_in_large_numbers_come_back_whole(bench: &Bench) {
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

pub(super) async fn concurrent_writers_lose_nothing(bench: &Bench) {
    const WRITERS: usize = 8;
    const EACH: usize = 15;
    let count = |store: SharedStore| async move {
        let key = || "counter".to_owned();
        let mut done = 0;
        while done < EACH {
            let found = store.read(&[key()]).await.unwrap();
            let (compare, value) = match found.entries.first() {
                Some(entry) => {
                    let text = str::from_utf8(&entry.value).unwrap();
                    (
                        Compare::ModRevision(key(), entry.mod_revision),
                        text.parse::<usize>().unwrap(),
                    )
                }
                None => (Compare::Absent(key()), 0),
            };
            let next = (value + 1).to_string();
            let outcome = store.commit(txn([compare], [put("counter", &next)])).await;
            if matches!(outcome.unwrap(), Outcome::Committed(_)) {
                done += 1;
            }
        }
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(count(bench.store.clone())))
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let snapshot = bench.store.snapshot().await.unwrap();
    let total = (WRITERS * EACH).to_string();
    assert_eq!(texts(&snapshot), [("counter", total.as_str())]);
}
