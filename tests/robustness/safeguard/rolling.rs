//! Slaves that are replaced in good order: each says goodbye, and that is no silence, however many do.

use super::{TTL, frozen, seqs};
use anyhow::ensure;
use kontrol_proto::v1::{LeaveReason, WatchResponse, watch_response::Event};
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    heavy,
    node::Slave,
    wait::eventually,
};
use rustix::process::Signal;
use std::ops::Range;

/// How many slaves there are.
const SIZE: usize = 40;
/// How many are replaced at a time.
const BATCH: usize = 10;

/// Stops slaves as an operator would, together, and waits for their ends.
async fn stop(slaves: &mut [Slave]) {
    for slave in &mut *slaves {
        slave.process().signal(Signal::TERM);
    }
    for slave in slaves {
        assert!(slave.process().ended(SOON).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_of_all_pods_never_freezes() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(3).ttl(TTL).start().await;
    let mut crew = Crew::start(&mut cluster, SIZE).await;
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    let first = seqs(&cluster.api(0)).await.unwrap();
    // A deployment: new ones at new addresses come first, then as many old ones go.
    for batch in (0..SIZE).step_by(BATCH) {
        let all = crew::masters(&cluster);
        for index in batch + SIZE..batch + SIZE + BATCH {
            crew.slaves.push(crew::launch(&cluster, index, &all, &[]));
        }
        crew::attached(&mut cluster, SIZE + BATCH).await;
        stop(&mut crew.slaves[batch..batch + BATCH]).await;
        crew::attached(&mut cluster, SIZE).await;
    }
    // All at once, and back at the same addresses.
    let replaced: Range<usize> = SIZE..SIZE * 2;
    stop(&mut crew.slaves[replaced.clone()]).await;
    crew.start_again(&cluster, replaced);
    crew::attached(&mut cluster, SIZE).await;
    let api = cluster.api(0);
    let last = eventually(SOON, "the last roster", async || {
        let view = api.ensemble().await?;
        ensure!(view.pod_count as usize == SIZE, "{} pods", view.pod_count);
        assert_eq!(view.safeguard, None);
        Ok(view)
    })
    .await;
    let now = seqs(&api).await.unwrap();
    assert!(now.keys().all(|id| !first.contains_key(id)), "{now:?}");
    // Every change so far, and nothing of a safeguard in between.
    watch
        .until(SOON, "the last roster", |message| match &message.event {
            Some(Event::DigestChanged(changed)) => (changed.digest == last.digest).then_some(()),
            _ => None,
        })
        .await;
    let mut left = 0;
    for (_, message) in &watch.seen {
        assert_eq!(frozen(message), None);
        left += usize::from(goodbye(message));
    }
    assert_eq!(left, SIZE * 2);
}

/// Whether somebody left, which must be by a goodbye.
fn goodbye(message: &WatchResponse) -> bool {
    let Some(Event::PodLeft(gone)) = &message.event else {
        return false;
    };
    assert_eq!(gone.reason(), LeaveReason::Down, "{gone:?}");
    true
}
