//! The master that carries an action dies, stops, or stands still.

use super::{SIZE, Scene, outcomes};
use anyhow::ensure;
use kontrol_proto::v1::{ActionState, DispatchRequest, Outcome};
use kontrol_tests::{
    SOON,
    action::{all, ids, shell},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    heavy,
    process::alive,
    wait::eventually,
};
use std::{collections::BTreeMap, fs};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_dispatching_master_dies_and_what_runs_is_cancelled_once() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let leader = scene.cluster.leader().await;
    // The leader itself, and a master that does not lead.
    for dispatcher in [(leader + 1) % 3, leader] {
        fs::remove_file(&scene.log).ok();
        let dispatch = scene.dispatch(dispatcher, false).await;
        let action = dispatch.told.action.clone();
        scene.cluster.masters[dispatcher].kill();
        drop(dispatch);
        let left = scene.cluster.running()[0];
        let action = scene.recorded(left, &action).await;
        assert_eq!(
            outcomes(&action),
            BTreeMap::from([(Outcome::Cancelled, SIZE)])
        );
        scene.ran_once();
        scene.all_dead().await;
        scene.cluster.restart(dispatcher).await;
        crew::attached(&mut scene.cluster, SIZE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dispatching_master_dies_and_a_detached_action_goes_on_to_its_end() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let leader = scene.cluster.leader().await;
    let dispatcher = (leader + 1) % 3;
    let dispatch = scene.dispatch(dispatcher, true).await;
    let action = dispatch.told.action.clone();
    scene.cluster.masters[dispatcher].kill();
    drop(dispatch);
    let api = scene.cluster.api(leader);
    eventually(SOON * 2, "another master that carries it", async || {
        let action = api.action(&action).await?;
        ensure!(action.master == format!("master-{leader}"), "{action:?}");
        ensure!(action.state() == ActionState::Running, "{action:?}");
        Ok(())
    })
    .await;
    scene.open();
    let action = scene.recorded(leader, &action).await;
    assert_eq!(outcomes(&action), BTreeMap::from([(Outcome::Exited, SIZE)]));
    for result in &action.results {
        assert_eq!(result.exit_code, 3);
        assert!(result.stdout_tail.ends_with(b"after\n"), "{result:?}");
    }
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_stops_cancels_what_it_carries_and_hands_over_what_is_detached() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let attached = scene.dispatch(0, false).await;
    let detached = scene.dispatch(0, true).await;
    let (one, other) = (attached.told.action.clone(), detached.told.action.clone());
    let status = scene.cluster.masters[0].stop().await;
    assert!(status.success(), "{status:?}");
    drop((attached, detached));
    let action = scene.recorded(1, &one).await;
    assert_eq!(
        outcomes(&action),
        BTreeMap::from([(Outcome::Cancelled, SIZE)])
    );
    crew::attached(&mut scene.cluster, SIZE).await;
    scene.open();
    let action = scene.recorded(2, &other).await;
    assert_eq!(outcomes(&action), BTreeMap::from([(Outcome::Exited, SIZE)]));
    assert!(
        scene.runs().values().all(|pids| pids.len() == 2),
        "{:?}",
        scene.runs()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_restarts_on_a_file_ends_what_it_carried() {
    let _permit = heavy().await;
    let dir = tempfile::tempdir().unwrap();
    for store in [
        format!("file:{}", dir.path().join("store").display()),
        "memory:".to_owned(),
    ] {
        let mut cluster = Cluster::on(&store).patient().start().await;
        let _crew = Crew::start(&mut cluster, 2).await;
        let log = cluster.dir.path().join("runs");
        let text = format!("echo $$ >> {}; echo up; sleep 600", log.display());
        let mut dispatch = cluster.api(0).dispatch(shell(all(), &text)).await.unwrap();
        dispatch
            .until(SOON, "commands that are up", |told| told.stdout.len() == 2)
            .await;
        let action = dispatch.told.action.clone();
        cluster.masters[0].kill();
        drop(dispatch);
        cluster.restart(0).await;
        let pids: Vec<i32> = fs::read_to_string(&log)
            .unwrap()
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        assert_eq!(pids.len(), 2);
        eventually(SOON * 2, "end of the commands", async || {
            ensure!(!pids.iter().any(|pid| alive(*pid)), "they run");
            Ok(())
        })
        .await;
        if store.starts_with("file:") {
            let api = cluster.api(0);
            eventually(SOON, "record of the end", async || {
                let summary = api.action(&action).await?.summary.unwrap();
                ensure!(summary.cancelled == 2, "{summary:?}");
                Ok(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_dispatching_master_loses_its_action_to_the_leader_and_lets_go() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let leader = scene.cluster.leader().await;
    let dispatcher = (leader + 1) % 3;
    let mut dispatch = scene.dispatch(dispatcher, true).await;
    let action = dispatch.told.action.clone();
    scene.cluster.masters[dispatcher].pause();
    let api = scene.cluster.api(leader);
    eventually(SOON * 2, "another master that carries it", async || {
        let action = api.action(&action).await?;
        ensure!(action.master == format!("master-{leader}"), "{action:?}");
        Ok(())
    })
    .await;
    scene.cluster.masters[dispatcher].resume();
    // Nobody has ended, and it learns at once that it has no say any more.
    let cut = loop {
        match dispatch.next(SOON).await {
            Ok(true) => {}
            Ok(false) => panic!("no reason: {:?}", dispatch.told),
            Err(status) => break status,
        }
    };
    assert_eq!(cut.code(), Code::Unavailable, "{cut:?}");
    assert!(
        cut.message().contains("another master took over"),
        "{cut:?}"
    );
    crew::attached(&mut scene.cluster, SIZE).await;
    scene.open();
    let action = scene.recorded(leader, &action).await;
    assert_eq!(outcomes(&action), BTreeMap::from([(Outcome::Exited, SIZE)]));
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_alone_that_stops_ends_what_it_carries_first() {
    let _permit = heavy().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let _crew = Crew::start(&mut cluster, 2).await;
    let log = cluster.dir.path().join("runs");
    let text = format!("echo $$ >> {}; sleep 600", log.display());
    let mut dispatch = cluster.api(0).dispatch(shell(all(), &text)).await.unwrap();
    let pids = eventually(SOON, "start", async || {
        let text = fs::read_to_string(&log)?;
        let pids: Vec<i32> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(pids.len() == 2);
        Ok(pids)
    })
    .await;
    let status = cluster.masters[0].stop().await;
    assert!(status.success(), "{status:?}");
    while let Ok(true) = dispatch.next(SOON).await {}
    assert_eq!(dispatch.told.count(Outcome::Cancelled), 2);
    assert!(dispatch.told.summary.is_some());
    assert!(!pids.iter().any(|pid| alive(*pid)), "they run");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_death_of_its_master_a_detached_action_ends_on_names_that_nobody_has_too() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let id = crew::id(0);
    let text = format!(
        "until [ -e {} ]; do sleep 0.05; done; head -c 500000 /dev/zero | tr '\\0' x; exit 3",
        scene.gate.display()
    );
    let request = DispatchRequest {
        detach: true,
        concurrency: 1,
        ..shell(ids(&[&id, "nobody"]), &text)
    };
    let dispatcher = scene.other_follower(0).await;
    let mut dispatch = scene
        .cluster
        .api(dispatcher)
        .dispatch(request)
        .await
        .unwrap();
    dispatch
        .until(SOON, "start", |told| told.started.len() == 1)
        .await;
    let action = dispatch.told.action.clone();
    scene.cluster.masters[dispatcher].kill();
    drop(dispatch);
    scene.open();
    let leader = scene.cluster.leader().await;
    let action = scene.recorded(leader, &action).await;
    let expected = [(Outcome::Exited, 1), (Outcome::Unreachable, 1)];
    assert_eq!(outcomes(&action), BTreeMap::from(expected));
    let ran = action
        .results
        .iter()
        .find(|result| result.id == id)
        .unwrap();
    assert_eq!((ran.exit_code, ran.stdout_bytes), (3, 500_000), "{ran:?}");
}
