//! What a transaction is: all or nothing, under exactly the compares it names, and never lost to another.

use super::*;
use kontrol_core::kv::{Compare, Fence, MAX_TXN_OPS};

pub(in crate::cluster::store) async fn a_transaction_happens_as_a_whole_or_not_at_all(
    bench: &Bench,
) {
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

pub(in crate::cluster::store) async fn a_compare_holds_for_exactly_what_it_says(bench: &Bench) {
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

pub(in crate::cluster::store) async fn a_conflict_reads_otherwise_at_one_revision(bench: &Bench) {
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

pub(in crate::cluster::store) async fn nothing_newer_under_a_prefix_can_be_compared_and_read_back(
    bench: &Bench,
) {
    let store = &bench.store;
    // The neighbours of the prefix, in the order of keys, are none of its keys.
    let first = commit(store, [put("relay/a", "1"), put("relay", "x")]).await;
    let second = commit(store, [put("relay/b", "2"), put("relay/a", "2")]).await;
    let last = commit(store, [put("relay.", "x"), put("relay0", "x")]).await;
    let not_newer = |prefix: &str, revision| Compare::NotNewer {
        prefix: prefix.to_owned(),
        revision,
    };
    let cases = [
        (not_newer("relay/", 0), false),
        (not_newer("relay/", first), false),
        (not_newer("relay/", second - 1), false),
        (not_newer("relay/", second), true),
        (not_newer("relay/", last), true),
        (not_newer("relay/", last + 1_000_000), true),
        (not_newer("relay/c", 0), true),
        (not_newer("nothing/", 0), true),
    ];
    for (compare, holds) in cases {
        let shown = format!("{compare:?}");
        let outcome = store.commit(txn([compare], [])).await.unwrap();
        assert_eq!(matches!(outcome, Outcome::Committed(_)), holds, "{shown}");
    }
    let remove = || Txn {
        compares: vec![not_newer("relay/", second)],
        ops: vec![put("removed", "1")],
        otherwise: vec!["relay/".into(), "relay0".into(), "relay/a".into()],
    };
    committed(store.commit(remove()).await.unwrap());
    let third = commit(store, [put("relay/a", "3")]).await;
    let read = conflict(store.commit(remove()).await.unwrap());
    let expected = [("relay/a", "3"), ("relay/b", "2"), ("relay0", "x")];
    assert_eq!(texts(&read), expected);
    assert_eq!(read.entries[0].mod_revision, third);
    assert_eq!(
        texts(&store.read(&remove().otherwise).await.unwrap()),
        expected
    );
    // What goes away is not newer than anything.
    commit(store, [delete("relay/a"), delete("relay/b")]).await;
    let compare = not_newer("relay/", 0);
    committed(store.commit(txn([compare], [])).await.unwrap());
}

pub(in crate::cluster::store) async fn a_transaction_that_changes_nothing_makes_no_revision(
    bench: &Bench,
) {
    let store = &bench.store;
    let first = commit(store, [put("a", "1")]).await;
    assert!(commit(store, [delete("nothing")]).await >= first);
    assert!(commit(store, []).await >= first);
    let last = commit(store, [put("a", "2")]).await;
    let mut watch = store.watch(first).await.unwrap();
    let events = events_to(&mut watch, last).await;
    assert_eq!(events.iter().map(revision_of).collect::<Vec<_>>(), [last]);
}

pub(in crate::cluster::store) async fn a_key_that_comes_back_has_a_new_create_revision(
    bench: &Bench,
) {
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

pub(in crate::cluster::store) async fn a_fence_holds_only_while_its_leader_key_is_there(
    bench: &Bench,
) {
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

pub(in crate::cluster::store) async fn a_read_gives_what_exists(bench: &Bench) {
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

pub(in crate::cluster::store) async fn concurrent_writers_lose_nothing(bench: &Bench) {
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
