//! The leader reaches etcd, but its peers don't reach the leader: keepalives go through the store, and none is refused.

use crate::scene::Scene;
use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    fault::{Proxy, Weather},
    fleet::Fleet,
    heavy,
    script::Recorder,
    wait::eventually,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_its_peers_do_not_reach_hears_every_pod_through_the_store() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .callback(&recorder)
        .build();
    let mut proxies = Vec::new();
    for master in &mut cluster.masters {
        let proxy = Proxy::start(&master.address()).await;
        master.set("advertise", &proxy.address());
        master.start().await;
        proxies.push(proxy);
    }
    cluster.ready().await;
    let mut scene = Scene::of(cluster, recorder).await;
    let leader = scene.cluster.leader().await;
    let relay = format!("{}relay/", scene.cluster.prefix());
    assert!(etcd.read(&relay).await.is_empty(), "nothing to pass on");
    for weather in [Weather::Silent, Weather::Cut] {
        proxies[leader].weather(weather);
        // A third of the pods report to the leader itself, all others are heard by those that it doesn't hear.
        let extra = Fleet::numbered(
            &[scene.cluster.urls()[scene.others(leader)[0]].clone()],
            Duration::from_secs(1),
            100,
            2,
        );
        extra.joined().await;
        eventually(SOON, "batches in the store", async || {
            ensure!(!etcd.read(&relay).await.is_empty());
            Ok(())
        })
        .await;
        let refused = |fleet: &Fleet| fleet.records().iter().map(|one| one.refused).sum::<u64>();
        let before = refused(&scene.fleet) + refused(&extra);
        tokio::time::sleep(scene.cluster.spec.ttl * 2).await;
        extra.heard_again().await;
        extra.nobody_was_lost();
        assert_eq!(refused(&scene.fleet) + refused(&extra), before);
        assert_eq!(scene.cluster.leader().await, leader);
        for index in scene.others(leader) {
            scene.cluster.masters[index].ready().await;
        }
        // The dead are still told from the living: one of each kind.
        extra.silence(0);
        extra.leave(1).await;
        let api = scene.cluster.api(leader);
        eventually(SOON, "both gone, nobody else", async || {
            let pods = api.pods().await?.pods.len();
            ensure!(pods == scene.seqs.len(), "{pods} pods");
            Ok(())
        })
        .await;
        proxies[leader].weather(Weather::Fair);
        eventually(SOON, "the store without batches", async || {
            let left = etcd.read(&relay).await;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await;
    }
    scene.fleet.heard_again().await;
    assert_eq!(scene.fleet.seqs(), scene.seqs);
    scene.fleet.nobody_was_lost();
    scene.still_works().await;
}
