//! What every store must do, one function per guarantee, run against each store by `conformance!`.
//!
//! A store is given empty, but its revisions may grow by what others write elsewhere: nothing here counts on the next
//! revision being the last one plus one.

mod history;
mod leases;
mod sizes;
mod transactions;

pub(super) use self::{history::*, leases::*, sizes::*, transactions::*};
use super::*;
use bytes::Bytes;
use futures::future::BoxFuture;
use kontrol_core::kv::{Compare, Event, Op};
use std::{any::Any, collections::BTreeMap, time::Instant};

/// An empty store under test.
pub(super) struct Bench {
    pub(super) store: SharedStore,
    /// Makes the store forget its history up to this revision.
    pub(super) forget: Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What must live as long as the store.
    pub(super) _keep: Box<dyn Any + Send + Sync>,
}

/// Instantiates the suite for the stores that these expressions make: futures of `Option<Bench>`, none to skip. The first
/// may share a server; the second may not, because it is told to forget what others still need.
macro_rules! conformance {
    ($bench:expr, $forgetful:expr) => {
        $crate::cluster::store::conformance::conformance! { @each $bench =>
            a_transaction_happens_as_a_whole_or_not_at_all
            a_compare_holds_for_exactly_what_it_says
            a_conflict_reads_otherwise_at_one_revision
            nothing_newer_under_a_prefix_can_be_compared_and_read_back
            a_transaction_that_changes_nothing_makes_no_revision
            a_key_that_comes_back_has_a_new_create_revision
            a_fence_holds_only_while_its_leader_key_is_there
            a_snapshot_has_every_key_in_order_at_one_revision
            a_snapshot_of_an_earlier_revision_shows_what_was_then
            a_read_gives_what_exists
            a_watch_gives_every_change_once_in_order_and_revisions_whole
            a_watch_goes_on_where_another_ended
            a_watch_that_is_not_polled_to_the_end_loses_nothing
            the_future_is_compacted
            revoking_a_lease_deletes_its_keys_in_one_revision
            a_lease_that_is_gone_is_told_everywhere
            a_key_is_bound_to_its_last_lease_only
            leases_end_by_themselves_only_where_that_is_said
            the_largest_transaction_is_taken_and_a_larger_one_refused
            large_values_in_large_numbers_come_back_whole
            concurrent_writers_lose_nothing
        }
        $crate::cluster::store::conformance::conformance! { @each $forgetful => what_is_forgotten_is_compacted }
    };
    (@each $bench:expr => $($name:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bench: Option<$crate::cluster::store::conformance::Bench> = $bench.await;
                let Some(bench) = bench else { return };
                let test = $crate::cluster::store::conformance::$name(&bench);
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
