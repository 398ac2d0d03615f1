//! Who lives and who doesn't: silence, goodbyes, and that steady keepalives cost the store nothing.

use anyhow::ensure;
use kontrol_proto::v1::LeaveReason;
use kontrol_tests::{
    SLACK, SOON, cluster::Cluster, etcd::Etcd, fleet::Fleet, pod::PodSpec, small, wait,
};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_pod_leaves_within_ttl_and_a_second_whichever_master_heard_it() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(3).start().await;
    let ttl = cluster.spec.ttl;
    let leader = cluster.leader().await;
    for index in 0..3 {
        let api = cluster.api(index);
        let pod = PodSpec::number(index as u32);
        let mut watch = cluster.api(leader).watch(0).await.unwrap();
        // A join, and then refreshes, which travel another way.
        for beat in 1..4 {
            api.ping(&pod.clone().beat(beat)).await.unwrap();
            tokio::time::sleep(ttl / 6).await;
        }
        let sent = Instant::now();
        api.ping(&pod.clone().beat(4)).await.unwrap();
        let accepted = Instant::now();
        let (left, reason) = watch.left(SOON, &pod.expected_key()).await;
        assert_eq!(reason, LeaveReason::Expired);
        let (least, most) = (left - sent, left - accepted);
        assert!(least >= ttl, "removed {least:?} after a keepalive was sent");
        let bound = ttl + Duration::from_secs(1) + SLACK;
        assert!(
            most <= bound,
            "removed {most:?} after its last keepalive, heard by master {index}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_is_obeyed_at_once_whichever_master_hears_it() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .ttl(Duration::from_secs(60))
        .start()
        .await;
    for index in 0..3 {
        let pod = PodSpec::number(index as u32);
        cluster.api(0).ping(&pod).await.unwrap();
        let mut watch = cluster.api((index + 1) % 3).watch(0).await.unwrap();
        cluster.api(index).ping(&pod.clone().down()).await.unwrap();
        let said = Instant::now();
        let (left, reason) = watch.left(SOON, &pod.expected_key()).await;
        assert_eq!(reason, LeaveReason::Down);
        assert!(
            left - said < SLACK,
            "removed {:?} after its goodbye",
            left - said
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_keepalives_write_nothing_to_etcd() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(3).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 50);
    fleet.joined().await;
    cluster
        .ensemble(0, "fifty pods", |view| view.pod_count == 50)
        .await;
    fleet.heard_again().await;

    let accepted = |fleet: &Fleet| {
        fleet
            .records()
            .iter()
            .map(|record| record.accepted)
            .sum::<u64>()
    };
    let api = cluster.api(1);
    let records = async || {
        let mut all = etcd.read("/").await;
        all.retain(|key, _| !key.contains("/relay/"));
        all
    };
    // On a busy machine the leader may be late for a moment, and then some keepalives take the store.
    let mut written = Vec::new();
    let unchanged = records().await;
    for _ in 0..5 {
        let (before, heard) = (etcd.revision().await, accepted(&fleet));
        wait::throughout(cluster.spec.ttl * 2, "a roster of fifty", async || {
            ensure!(api.ensemble().await?.pod_count == 50);
            Ok(())
        })
        .await;
        assert!(accepted(&fleet) - heard >= 200, "the pods did report");
        let now = etcd.revision().await;
        if now == before {
            fleet.nobody_was_lost();
            return;
        }
        written.push(now - before);
    }
    assert_eq!(records().await, unchanged);
    assert!(
        written.iter().all(|writes| *writes <= 6),
        "written in five times of two TTLs: {written:?}"
    );
    fleet.nobody_was_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_keepalives_go_to_all_masters_in_turn_lives() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(3).start().await;
    let pod = PodSpec::number(0);
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    let start = Instant::now();
    let mut beat = 0;
    while start.elapsed() < cluster.spec.ttl * 3 {
        beat += 1;
        let api = cluster.api(beat as usize % 3);
        assert_eq!(api.ping(&pod.clone().beat(beat)).await.unwrap().seq, 0);
        tokio::time::sleep(cluster.spec.ttl / 3).await;
    }
    let other = PodSpec::number(1);
    cluster.api(0).ping(&other).await.unwrap();
    cluster.api(0).ping(&other.clone().down()).await.unwrap();
    watch.left(SOON, &other.expected_key()).await;
    assert_eq!(watch.departed(), [other.expected_key()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_why_a_pod_is_in_and_why_it_is_out() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let follower = cluster.follower().await;
    let pod = PodSpec::number(0);
    cluster.api(follower).ping(&pod).await.unwrap();
    let api = cluster.api(0);
    let alive = wait::eventually(SOON, "explanation of a live pod", async || {
        let answer = api.explain(&pod.expected_key()).await?;
        ensure!(answer.live && answer.views.len() == 2, "{answer:#?}");
        Ok(answer)
    })
    .await;
    assert_eq!(alive.views.iter().filter(|view| view.leads).count(), 1);
    assert!(
        alive
            .views
            .iter()
            .any(|view| view.leads && view.expires_in.is_some()),
        "{alive:#?}"
    );
    let dead = wait::eventually(SOON, "explanation of a dead pod", async || {
        let answer = api.explain(&pod.expected_key()).await?;
        ensure!(!answer.live, "{answer:#?}");
        Ok(answer)
    })
    .await;
    let removal = dead.removal.expect("the removal is remembered");
    assert_eq!(removal.reason(), LeaveReason::Expired);
    let silence = removal.silence.unwrap();
    assert!((3..5).contains(&silence.seconds), "{silence:?}");
    assert!(removal.time.is_some() && removal.master.starts_with("master-"));
    assert!(!dead.summary.is_empty());
    let over_http = api
        .http(
            "GET",
            &format!("/v1/pods/{}:explain", pod.expected_key()),
            None,
        )
        .await
        .ok();
    assert_eq!(over_http["removal"]["reason"], "LEAVE_REASON_EXPIRED");
}
