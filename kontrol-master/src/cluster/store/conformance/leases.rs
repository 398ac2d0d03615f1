//! What a lease is: its keys live as long as it does, and no longer.

use super::*;
use kontrol_core::kv::Event;

pub(in crate::cluster::store) async fn revoking_a_lease_deletes_its_keys_in_one_revision(
    bench: &Bench,
) {
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

pub(in crate::cluster::store) async fn a_lease_that_is_gone_is_told_everywhere(bench: &Bench) {
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

pub(in crate::cluster::store) async fn a_key_is_bound_to_its_last_lease_only(bench: &Bench) {
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

pub(in crate::cluster::store) async fn leases_end_by_themselves_only_where_that_is_said(
    bench: &Bench,
) {
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
