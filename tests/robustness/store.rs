//! etcd stops, is killed, is paused, loses a member: known pods stay known, new ones are told to try again, nobody
//! expires, and all is well when it is back.

use crate::scene::{PODS, Scene};
use anyhow::{bail, ensure};
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    fleet::Fleet,
    heavy,
    pod::PodSpec,
    wait::{eventually, throughout},
};
use std::time::Duration;
use tonic::Code;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outage {
    Stopped,
    Killed,
    Paused,
}

async fn outage_of_two_ttl(kind: Outage) {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    match kind {
        Outage::Stopped => etcd.stop().await,
        Outage::Killed => etcd.kill(),
        Outage::Paused => etcd.pause(),
    }
    let api = scene.cluster.api(0);
    // A paused etcd may carry out what it was asked when it wakes, so only the others refuse for sure.
    if kind != Outage::Paused {
        eventually(SOON, "refusal of a new pod", async || {
            match api.ping(&PodSpec::number(1000)).await {
                Err(status) if status.code() == Code::Unavailable => Ok(()),
                other => bail!("{other:?}"),
            }
        })
        .await;
    }
    // No master sees the store, and none claims to lead: the keepalives of known pods count on each of them.
    for index in 0..3 {
        let api = scene.cluster.api(index);
        let known = PodSpec::number(0);
        eventually(SOON, "a known pod's keepalive", async || {
            Ok(api.ping(&known).await?)
        })
        .await;
    }
    throughout(scene.cluster.spec.ttl * 2, "the same roster", async || {
        let list = api.pods().await?;
        ensure!(list.pods.len() == PODS as usize, "{} pods", list.pods.len());
        Ok(())
    })
    .await;
    match kind {
        Outage::Stopped | Outage::Killed => etcd.restart().await,
        Outage::Paused => etcd.resume(),
    }
    scene.cluster.ready().await;
    scene.is_unharmed().await;
    // The one that was refused, if it ever joined, did so by its own keepalive after the outage.
    let seq = eventually(SOON, "new pod", async || {
        Ok(api.ping(&PodSpec::number(1000)).await?.seq)
    })
    .await;
    assert_eq!(seq, u64::from(PODS));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_expires_while_etcd_is_stopped() {
    outage_of_two_ttl(Outage::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_expires_while_etcd_is_dead() {
    outage_of_two_ttl(Outage::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_expires_while_etcd_does_not_answer() {
    outage_of_two_ttl(Outage::Paused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_restart_of_etcd_harms_nobody() {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    for _ in 0..3 {
        etcd.kill();
        etcd.restart().await;
        scene.fleet.heard_again().await;
    }
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_minority_of_etcd_loses_nothing_that_was_told() {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start_three().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let leading = etcd.leading_member().await;
    // In the middle of joins, whose every answer must hold.
    let more = Fleet::numbered(&scene.cluster.urls(), Duration::from_secs(1), 500, 200);
    eventually(SOON, "some joins", async || {
        ensure!(!more.seqs().is_empty());
        Ok(())
    })
    .await;
    etcd.kill_member(leading);
    more.joined().await;
    more.heard_again().await;
    more.nobody_was_lost();
    scene.fleet.heard_again().await;
    scene.fleet.nobody_was_lost();
    let leader = scene.cluster.leader().await;
    scene
        .cluster
        .ensemble(leader, "everybody", |view| view.pod_count == PODS + 200)
        .await;
    etcd.restart().await;
    let other = (leading + 1) % 3;
    etcd.kill_member(other);
    more.heard_again().await;
    more.nobody_was_lost();
    scene.fleet.nobody_was_lost();
    scene.recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_died_while_nobody_could_see_it_leaves_when_a_leader_is_back() {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 10);
    fleet.joined().await;
    cluster
        .ensemble(0, "ten pods", |view| view.pod_count == 10)
        .await;
    etcd.kill();
    for master in &mut cluster.masters {
        master.kill();
    }
    for index in 0..4 {
        fleet.silence(index);
    }
    etcd.restart().await;
    cluster.restart(0).await;
    cluster.restart(1).await;
    cluster
        .ensemble(1, "the six that live", |view| view.pod_count == 6)
        .await;
    fleet.heard_again().await;
    fleet.nobody_was_lost();
}
