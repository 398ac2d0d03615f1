//! What operators do to etcd by hand, and what Kontrol makes of it: a vanished key is a normal state.

use anyhow::ensure;
use kontrol_tests::{
    SOON, cluster::Cluster, etcd::Etcd, fleet::Fleet, pod::PodSpec, script::Recorder, small,
    wait::eventually,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_leader_key_means_another_election_and_nothing_else() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 10);
    fleet.joined().await;
    let before = cluster.handled(0, 10).await;
    assert!(etcd.delete(&format!("{}leader/", cluster.prefix())).await >= 1);
    let after = cluster
        .ensemble(0, "later epoch", |view| {
            view.epoch > before.epoch && view.leader.is_some()
        })
        .await;
    assert_eq!((&after.digest, after.pod_count), (&before.digest, 10));
    cluster.leader().await;
    fleet.change(3, |pod| pod.payload("changed".into()));
    cluster
        .ensemble(0, "handled change", |view| {
            view.digest != before.digest && view.handled_digest == view.digest
        })
        .await;
    assert_eq!(cluster.running().len(), 3, "no master gave up");
    fleet.nobody_was_lost();
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_hand_comes_back_as_a_new_one() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 3);
    let seqs = fleet.joined().await;
    let key = PodSpec::number(1).expected_key();
    assert_eq!(
        etcd.delete(&format!("{}pods/{key}", cluster.prefix()))
            .await,
        1
    );
    eventually(SOON, "new seq", async || {
        let now = fleet.seqs();
        ensure!(now[&key] > 2, "{now:?}");
        ensure!(
            now.iter()
                .all(|(other, seq)| *other == key || seqs[other] == *seq)
        );
        Ok(())
    })
    .await;
    cluster
        .ensemble(1, "three pods", |view| view.pod_count == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_master_key_comes_back() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    assert_eq!(
        etcd.delete(&format!("{}masters/", cluster.prefix())).await,
        2
    );
    for index in 0..2 {
        cluster
            .ensemble(index, "two masters", |view| view.masters.len() == 2)
            .await;
        assert_eq!(
            cluster
                .api(index)
                .ping(&PodSpec::number(0))
                .await
                .unwrap()
                .seq,
            0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_under_the_pods_breaks_no_master() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let prefix = cluster.prefix();
    let key = PodSpec::number(5).expected_key();
    for (name, value) in [
        (key.as_str(), "{"),
        ("not a key", "7"),
        ("deeper/key", "{}"),
    ] {
        etcd.put(&format!("{prefix}pods/{name}"), value).await;
    }
    etcd.put(&format!("{prefix}unknown"), "x").await;
    for index in 0..2 {
        let answer = cluster
            .api(index)
            .ping(&PodSpec::number(index as u32))
            .await
            .unwrap();
        assert_eq!(answer.seq, index as u64);
    }
    cluster
        .ensemble(0, "two pods", |view| view.pod_count == 2)
        .await;
    for master in &mut cluster.masters {
        assert!(master.stop().await.success());
    }
    cluster.restart(0).await;
    cluster.restart(1).await;
    eventually(SOON, "pods after the restart", async || {
        cluster.api(1).ping(&PodSpec::number(0)).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_is_borne() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 5);
    fleet.joined().await;
    etcd.compact().await;
    for round in 0..3 {
        fleet.change(round, |pod| pod.payload(round.into()));
        fleet.heard_again().await;
        etcd.compact().await;
    }
    let digest = cluster
        .ensemble(0, "five pods", |view| view.pod_count == 5)
        .await
        .digest;
    cluster
        .ensemble(1, "the same digest", |view| view.digest == digest)
        .await;
    fleet.nobody_was_lost();
}
