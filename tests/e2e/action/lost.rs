//! What an attached slave is worth to liveness: its death is seen at once, and nothing else is taken for it.

use super::tier;
use anyhow::ensure;
use kontrol_proto::v1::LeaveReason;
use kontrol_tests::{
    SLACK, SOON,
    action::{all, argv},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    fault::{Proxy, Weather},
    heavy, small,
    wait::{eventually, throughout},
};
use rustix::process::Signal;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

const LOST: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_is_killed_leaves_in_three_seconds_from_whichever_master() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let (cluster, mut crew) = tier(&etcd, 9).await;
    let mut watch = cluster.api(1).watch(0).await.unwrap();
    for index in 0..3 {
        crew.slaves[index].kill();
        let killed = Instant::now();
        let (left, reason) = watch.left(SOON, &crew::key(index)).await;
        assert_eq!(reason, LeaveReason::Lost);
        let took = left - killed;
        assert!(
            took >= LOST - Duration::from_millis(50) && took <= LOST + SLACK,
            "{took:?}"
        );
    }
    let view = cluster.api(0).explain(&crew::key(0)).await.unwrap();
    assert_eq!(view.removal.unwrap().reason(), LeaveReason::Lost);
    assert_eq!(cluster.api(2).pods().await.unwrap().pods.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_comes_back_in_time_never_leaves_and_keeps_its_channel() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let proxy = Proxy::start(&cluster.masters[0].address()).await;
    let mut slave = crew::launch(&cluster, 0, &proxy.address(), &[]);
    crew::attached(&mut cluster, 1).await;
    let api = cluster.api(0);
    let seq = api.pod(&crew::key(0)).await.unwrap().seq;
    let mut watch = api.watch(0).await.unwrap();
    for _ in 0..3 {
        proxy.weather(Weather::Cut);
        eventually(SOON, "broken channel", async || {
            ensure!(crew::attached_to(&cluster.masters[0].url()).await? == 0);
            Ok(())
        })
        .await;
        proxy.weather(Weather::Fair);
        crew::attached(&mut cluster, 1).await;
    }
    throughout(LOST + Duration::from_secs(1), "the pod", async || {
        ensure!(api.pod(&crew::key(0)).await?.seq == seq);
        Ok(())
    })
    .await;
    let told = api.run(argv(all(), &["true"])).await;
    assert_eq!(told.summary.unwrap().succeeded, 1);
    slave.stop(SOON).await;
    let (_, reason) = watch.left(SOON, &crew::key(0)).await;
    assert_eq!(reason, LeaveReason::Down);
    assert_eq!(watch.departed(), [crew::key(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_no_death_the_ttl_decides() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let proxy = Proxy::start(&cluster.masters[0].address()).await;
    let _slave = crew::launch(&cluster, 0, &proxy.address(), &[]);
    crew::attached(&mut cluster, 1).await;
    proxy.weather(Weather::Silent);
    // The master notices by its pings, after fifteen seconds at the most, and gives the connection up.
    eventually(SOON, "channel that was given up", async || {
        ensure!(crew::attached_to(&cluster.masters[0].url()).await? == 0);
        Ok(())
    })
    .await;
    let api = cluster.api(0);
    throughout(LOST + Duration::from_secs(1), "the pod", async || {
        api.pod(&crew::key(0)).await?;
        Ok(())
    })
    .await;
    proxy.weather(Weather::Fair);
    crew::attached(&mut cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_dies_takes_no_pods_with_it_and_its_slaves_attach_elsewhere() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    const SIZE: usize = 12;
    let (mut cluster, _crew) = tier(&etcd, SIZE).await;
    let seqs = async |api: &kontrol_tests::client::Api| -> BTreeSet<(String, u64)> {
        let pods = api.pods().await.unwrap().pods;
        pods.into_iter().map(|pod| (pod.key, pod.seq)).collect()
    };
    let before = seqs(&cluster.api(0)).await;
    let follower = cluster.follower().await;
    cluster.masters[follower].kill();
    crew::attached(&mut cluster, SIZE).await;
    let leader = cluster.leader().await;
    cluster.masters[leader].kill();
    crew::attached(&mut cluster, SIZE).await;
    let left = cluster.leader().await;
    let api = cluster.api(left);
    throughout(LOST + Duration::from_secs(2), "the roster", async || {
        ensure!(seqs(&api).await == before);
        Ok(())
    })
    .await;
    let told = api.run(argv(all(), &["true"])).await;
    assert_eq!(told.summary.unwrap().succeeded as usize, SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_paused_takes_nobody_for_dead() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let _crew = Crew::start(&mut cluster, 3).await;
    cluster.masters[0].pause();
    // Longer than slaves wait for a master: they have given their connections up by then.
    tokio::time::sleep(Duration::from_secs(20)).await;
    cluster.masters[0].resume();
    let api = cluster.api(0);
    throughout(LOST + Duration::from_secs(2), "the roster", async || {
        ensure!(api.pods().await?.pods.len() == 3);
        Ok(())
    })
    .await;
    crew::attached(&mut cluster, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_slave_lives_for_its_ttl() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let mut crew = Crew::start(&mut cluster, 1).await;
    crew.slaves[0].process().signal(Signal::STOP);
    let api = cluster.api(0);
    throughout(LOST + Duration::from_secs(2), "the pod", async || {
        api.pod(&crew::key(0)).await?;
        Ok(())
    })
    .await;
    crew.slaves[0].process().signal(Signal::CONT);
    crew::attached(&mut cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_leaves_it_to_the_ttl() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:")
        .ttl(Duration::from_secs(8))
        .set("lost", "0")
        .start()
        .await;
    let mut crew = Crew::start(&mut cluster, 1).await;
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    crew.slaves[0].kill();
    let killed = Instant::now();
    let (left, reason) = watch.left(SOON, &crew::key(0)).await;
    assert_eq!(reason, LeaveReason::Expired);
    assert!(left - killed > LOST + SLACK);
}
