//! Many at once: joins that are committed in groups, deaths and goodbyes in masses.

use kontrol_tests::{
    SLACK, SOON, cluster::Cluster, etcd::Etcd, fleet::Fleet, heavy, script::Recorder,
    wait::eventually,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_joins_at_once_are_committed_in_groups() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let before = etcd.revision().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(10), 0, 1000);
    let mut seqs: Vec<u64> = fleet.joined().await.into_values().collect();
    let transactions = etcd.revision().await - before;
    seqs.sort_unstable();
    assert_eq!(
        seqs,
        (0..1000).collect::<Vec<u64>>(),
        "each seq once, and none is lost"
    );
    // How many come together follows from how long etcd takes beside how fast they come; that those which wait for one
    // transaction are all in the next is a unit test of the master. One by one would be 1000 and more.
    assert!(
        transactions <= 750,
        "{transactions} transactions for 1000 joins"
    );
    let digest = cluster.handled(0, 1000).await.digest;
    for index in 1..3 {
        cluster
            .ensemble(index, "the same digest", |view| view.digest == digest)
            .await;
    }
    fleet.nobody_was_lost();
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_death_is_committed_in_groups_within_the_ttl_and_a_second() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    // Liveness alone is asked about here: with the safeguard against mass death they would stay, which `safeguard` asks about.
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .ttl(Duration::from_secs(6))
        .callback(&recorder)
        .set("safeguard", "0")
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(2), 0, 400);
    fleet.joined().await;
    cluster.handled(0, 400).await;
    let before = etcd.revision().await;
    (0..300).for_each(|index| fleet.silence(index));
    cluster.handled(0, 100).await;
    let records = fleet.records();
    let last = records[..300]
        .iter()
        .filter_map(|record| record.last)
        .max()
        .unwrap();
    let bound = cluster.spec.ttl + Duration::from_secs(1) + cluster.spec.damper + SLACK;
    assert!(
        last.elapsed() <= bound,
        "handled {:?} after the last keepalive",
        last.elapsed()
    );
    let transactions = etcd.revision().await - before;
    assert!(
        transactions <= 150,
        "{transactions} transactions for 300 deaths"
    );
    fleet.heard_again().await;
    fleet.nobody_was_lost();
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_end_in_the_roster_that_the_callback_saw_last() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    // As many fall silent as stay, which the safeguard may take for a mass death while the others leave; it is not asked
    // about here.
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .callback(&recorder)
        .set("safeguard", "0")
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 120);
    fleet.joined().await;
    for index in 0..40 {
        fleet.leave(index).await;
        fleet.change(index + 40, |pod| pod.payload(index.into()));
        fleet.silence(index + 80);
    }
    let view = cluster.handled(1, 40).await;
    let list = cluster.api(2).pods().await.unwrap();
    let ids: Vec<String> = list.pods.iter().map(|pod| pod.id.clone()).collect();
    let expected: Vec<String> = (40..80).map(|number| format!("pod-{number}")).collect();
    let mut sorted = ids.clone();
    sorted.sort_by_key(|id| id[4..].parse::<u32>().unwrap());
    assert_eq!(sorted, expected);
    let last = eventually(SOON, "last run", async || {
        let last = recorder.successes().pop().unwrap();
        anyhow::ensure!(last.hash == view.digest, "{last:?}");
        Ok(last)
    })
    .await;
    assert_eq!(last.read().ids, ids, "in the order of their seqs");
    recorder.check();
}
