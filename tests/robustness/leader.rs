//! The leader dies, leaves, is paused or cut off: another takes over in time, and the old one changes nothing.

use crate::scene::Scene;
use anyhow::ensure;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    etcd::Etcd,
    fault::{Proxy, Weather},
    heavy,
    process::alive,
    script::{Plan, Recorder, Run},
    wait::{eventually, throughout},
};
use std::time::Duration;
use tokio::time::Instant;

/// Makes the callback last, and waits until a run has begun.
async fn long_run(scene: &Scene, takes: Duration) -> Run {
    let plan = Plan {
        takes,
        children: 1,
        ..Plan::default()
    };
    run_of(scene, &plan).await
}

/// Waits until a run by this plan has begun.
async fn run_of(scene: &Scene, plan: &Plan) -> Run {
    let runs = scene.recorder.runs().len();
    scene.recorder.plan(plan);
    scene.fleet.change(1, |pod| pod.payload("long run".into()));
    eventually(SOON, "long run", async || {
        let mut now = scene.recorder.runs();
        ensure!(now.len() > runs && now.last().unwrap().read.is_some());
        Ok(now.pop().unwrap())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_within_its_lease_and_a_second() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let old = scene.cluster.leader().await;
    scene.cluster.masters[old].kill();
    let killed = Instant::now();
    let bound = scene.cluster.spec.fover + Duration::from_secs(1) + SLACK;
    let rest = scene.others(old);
    let new = scene.cluster.leader_among(&rest, SOON).await;
    let took = killed.elapsed();
    assert!(took <= bound, "another leader after {took:?}");
    let view = scene.cluster.api(new).ensemble().await.unwrap();
    assert!(view.epoch > scene.before.epoch);
    scene.is_unharmed().await;
    scene.cluster.restart(old).await;
    scene.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_resigns_at_once() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let fover = Duration::from_secs(15);
    let mut scene = Scene::with(&etcd, |builder| builder.set("fover", "15s")).await;
    let old = scene.cluster.leader().await;
    assert!(scene.cluster.masters[old].stop().await.success());
    let stopped = Instant::now();
    let rest = scene.others(old);
    scene.cluster.leader_among(&rest, SOON).await;
    let took = stopped.elapsed();
    assert!(took < fover / 3, "another leader after {took:?}");
    let masters = etcd
        .read(&format!("{}masters/", scene.cluster.prefix()))
        .await;
    assert_eq!(masters.len(), 2, "it took its key along: {masters:?}");
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_beyond_its_lease_changes_nothing_when_it_wakes() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let old = scene.cluster.leader().await;
    scene.cluster.masters[old].pause();
    let rest = scene.others(old);
    let new = scene.cluster.leader_among(&rest, SOON).await;
    // Longer than the TTL, so that to the sleeper every pod looks dead.
    tokio::time::sleep(scene.cluster.spec.ttl * 2).await;
    let epoch = scene.cluster.api(new).ensemble().await.unwrap().epoch;
    scene.cluster.masters[old].resume();
    scene
        .cluster
        .ensemble(old, "the old leader follows", |view| view.epoch == epoch)
        .await;
    scene.is_unharmed().await;
    let view = scene.cluster.api(new).ensemble().await.unwrap();
    assert_eq!(view.epoch, epoch, "and it leads nobody astray");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_paused_in_the_middle_of_a_long_callback_never_makes_two_run() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let old = scene.cluster.leader().await;
    let run = long_run(&scene, Duration::from_secs(12)).await;
    scene.cluster.masters[old].pause();
    scene.recorder.plan(&Plan {
        takes: Duration::from_secs(2),
        ..Plan::default()
    });
    let rest = scene.others(old);
    let new = scene.cluster.leader_among(&rest, SOON).await;
    eventually(SOON, "end of the first run and its child", async || {
        ensure!(!alive(run.pid) && !alive(run.read().children[0]));
        Ok(())
    })
    .await;
    let view = scene
        .cluster
        .ensemble(new, "second run", |view| {
            view.handled_digest == view.digest && view.digest != scene.before.digest
        })
        .await;
    scene.recorder.check();
    let state = scene.cluster.api(new).state().await.unwrap();
    scene.cluster.masters[old].resume();
    scene
        .cluster
        .ensemble(old, "the old leader follows", |now| now.epoch == view.epoch)
        .await;
    scene.fleet.heard_again().await;
    let after = scene.cluster.api(new).state().await.unwrap();
    assert_eq!(after, state, "the woken one wrote nothing");
    scene.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_in_the_middle_of_a_callback_never_makes_two_run() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let old = scene.cluster.leader().await;
    let run = long_run(&scene, Duration::from_secs(12)).await;
    scene.cluster.masters[old].kill();
    scene.recorder.plan(&Plan::default());
    eventually(SOON, "end of the first run and its child", async || {
        ensure!(!alive(run.pid) && !alive(run.read().children[0]));
        Ok(())
    })
    .await;
    scene.still_works().await;
    let last = scene.recorder.runs().pop().unwrap();
    assert!(last.read().epoch > run.read().epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_key_is_deleted_in_the_middle_of_a_callback_never_makes_two_run() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    // Without a damper nothing but the masters' own care keeps the next leader's run from the one that is being stopped.
    let mut scene = Scene::with(&etcd, |builder| builder.damper(Duration::ZERO)).await;
    let old = scene.cluster.leader().await;
    let plan = Plan {
        takes: Duration::from_secs(12),
        stubborn: true,
        ..Plan::default()
    };
    let run = run_of(&scene, &plan).await;
    let epoch = scene.cluster.api(old).ensemble().await.unwrap().epoch;
    let keys = etcd
        .read(&format!("{}leader/", scene.cluster.prefix()))
        .await;
    let id = scene.cluster.masters[old].id().to_owned();
    let (key, _) = keys.iter().find(|(_, value)| value.contains(&id)).unwrap();
    etcd.delete(key).await;
    scene.recorder.plan(&Plan::default());
    eventually(SOON, "end of the first run", async || {
        ensure!(!alive(run.pid));
        Ok(())
    })
    .await;
    scene.still_works().await;
    let last = scene.recorder.runs().pop().unwrap();
    assert!(last.read().epoch > epoch);
    scene.recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_from_etcd_in_the_middle_of_a_callback_never_makes_two_run() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    for weather in [Weather::Silent, Weather::Cut] {
        let recorder = Recorder::python();
        let mut cluster = Cluster::on("etcd://")
            .masters(3)
            .callback(&recorder)
            .build();
        let mut proxies = Vec::new();
        for master in &mut cluster.masters {
            let proxy = Proxy::start(&etcd.endpoints()[0]).await;
            master.set("store", &format!("etcd://{}", proxy.address()));
            master.start().await;
            proxies.push(proxy);
        }
        cluster.ready().await;
        let mut scene = Scene::of(cluster, recorder).await;
        let old = scene.cluster.leader().await;
        let run = long_run(&scene, Duration::from_secs(12)).await;
        proxies[old].weather(weather);
        scene.recorder.plan(&Plan::default());
        let rest = scene.others(old);
        let new = scene.cluster.leader_among(&rest, SOON).await;
        scene
            .cluster
            .ensemble(new, "second run", |view| {
                view.handled_digest == view.digest && view.digest != scene.before.digest
            })
            .await;
        scene.recorder.check();
        assert!(!alive(run.pid), "the first run is over");
        eventually(SOON, "the one cut off says so", async || {
            let answer = scene.cluster.api(old).http("GET", "/readyz", None).await;
            ensure!(answer.status == 503, "{}", answer.status);
            Ok(())
        })
        .await;
        proxies[old].weather(Weather::Fair);
        scene.still_works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stays_cut_off_from_etcd_costs_no_pod_its_place() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on("etcd://")
        .masters(3)
        .callback(&recorder)
        .build();
    let mut proxies = Vec::new();
    for master in &mut cluster.masters {
        let proxy = Proxy::start(&etcd.endpoints()[0]).await;
        master.set("store", &format!("etcd://{}", proxy.address()));
        master.start().await;
        proxies.push(proxy);
    }
    cluster.ready().await;
    let mut scene = Scene::of(cluster, recorder).await;
    let old = scene.cluster.leader().await;
    // A third of the pods report to it, and would stay there for as long as it accepts them.
    proxies[old].weather(Weather::Silent);
    let rest = scene.others(old);
    let new = scene.cluster.leader_among(&rest, SOON).await;
    let calm = scene.cluster.spec.ttl * 2;
    let api = scene.cluster.api(new);
    throughout(calm, "the same roster", async || {
        let view = api.ensemble().await?;
        ensure!(view.digest == scene.before.digest, "{view:#?}");
        Ok(())
    })
    .await;
    // Followers that were cut off earlier and lose sight of their leader are no different.
    proxies[old].weather(Weather::Fair);
    scene.cluster.ready().await;
    let follower = scene.others(new)[0];
    proxies[follower].weather(Weather::Silent);
    tokio::time::sleep(scene.cluster.spec.fover).await;
    proxies[new].weather(Weather::Silent);
    let last = scene.others(new)[1];
    scene.cluster.leader_among(&[last], SOON).await;
    let api = scene.cluster.api(last);
    throughout(calm, "the same roster", async || {
        let view = api.ensemble().await?;
        ensure!(view.digest == scene.before.digest, "{view:#?}");
        Ok(())
    })
    .await;
    for proxy in &proxies {
        proxy.weather(Weather::Fair);
    }
    scene.cluster.ready().await;
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_etcd_costs_nobody_a_place() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let proxy = Proxy::start(&etcd.endpoints()[0]).await;
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&format!("etcd://{}", proxy.address()))
        .masters(3)
        .callback(&recorder)
        .build();
    for master in &mut cluster.masters {
        master.start().await;
    }
    cluster.ready().await;
    let mut scene = Scene::of(cluster, recorder).await;
    proxy.weather(Weather::Slow(Duration::from_millis(200)));
    tokio::time::sleep(scene.cluster.spec.ttl * 2).await;
    proxy.weather(Weather::Fair);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_in_which_every_master_slept_is_held_against_nobody() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    for time in [scene.cluster.spec.fover / 2, scene.cluster.spec.ttl * 2] {
        for master in &mut scene.cluster.masters {
            master.pause();
        }
        tokio::time::sleep(time).await;
        for master in &mut scene.cluster.masters {
            master.resume();
        }
        scene.cluster.leader().await;
        scene.fleet.heard_again().await;
        scene.fleet.nobody_was_lost();
    }
    scene.is_unharmed().await;
}
