//! Actions while things break: each target has the promised outcome, once, and nothing runs twice. Every command appends a
//! line to a file when it starts; the lines are counted.

mod carrier;

use anyhow::ensure;
use kontrol_proto::v1::{Action, ActionState, DispatchRequest, Outcome};
use kontrol_tests::{
    SOON,
    action::{Dispatch, all, argv, ids, shell, span},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    fault::{Proxy, Weather},
    heavy,
    process::alive,
    wait::{eventually, throughout},
};
use rustix::process::Signal;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

/// How many slaves there are.
const SIZE: usize = 12;

/// Three masters, their slaves, and a command that runs until a gate opens.
struct Scene {
    // Dropped first, so that its logs can be shown: they are in the folder of the cluster.
    crew: Crew,
    cluster: Cluster,
    log: PathBuf,
    gate: PathBuf,
}

impl Scene {
    async fn on(etcd: &Etcd) -> Self {
        let mut cluster = Cluster::on(&etcd.store())
            .masters(3)
            .patient()
            .start()
            .await;
        let crew = Crew::start(&mut cluster, SIZE).await;
        let log = cluster.dir.path().join("runs");
        let gate = cluster.dir.path().join("gate");
        Self {
            crew,
            cluster,
            log,
            gate,
        }
    }

    /// Says something, waits for the gate, says something else.
    fn request(&self) -> DispatchRequest {
        let text = format!(
            "echo $KONTROL_ID $$ >> {}; echo before; until [ -e {} ]; do sleep 0.05; done; echo after; exit 3",
            self.log.display(),
            self.gate.display()
        );
        DispatchRequest {
            timeout: span(Duration::from_secs(90)),
            ..shell(all(), &text)
        }
    }

    async fn dispatch(&self, index: usize, detach: bool) -> Dispatch {
        let request = DispatchRequest {
            detach,
            ..self.request()
        };
        let mut dispatch = self.cluster.api(index).dispatch(request).await.unwrap();
        dispatch
            .until(SOON, "output of all", |told| told.stdout.len() == SIZE)
            .await;
        dispatch
    }

    fn open(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    /// How often each slave ran the command, and the pids.
    fn runs(&self) -> BTreeMap<String, Vec<i32>> {
        let mut runs: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for line in fs::read_to_string(&self.log).unwrap_or_default().lines() {
            let (id, pid) = line.split_once(' ').unwrap();
            runs.entry(id.to_owned())
                .or_default()
                .push(pid.parse().unwrap());
        }
        runs
    }

    /// Panics unless every slave ran it once.
    fn ran_once(&self) {
        let runs = self.runs();
        assert_eq!(runs.len(), SIZE, "{runs:?}");
        assert!(runs.values().all(|pids| pids.len() == 1), "{runs:?}");
    }

    /// Waits until the history, asked of a master, says that an action is over.
    async fn recorded(&self, index: usize, action: &str) -> Action {
        let api = self.cluster.api(index);
        eventually(SOON * 3, "end in the history", async || {
            let action = api.action(action).await?;
            ensure!(action.state() == ActionState::Finished, "{action:#?}");
            Ok(action)
        })
        .await
    }

    async fn all_dead(&self) {
        let runs = self.runs();
        eventually(SOON, "end of the commands", async || {
            for pid in runs.values().flatten() {
                ensure!(!alive(*pid), "{pid} runs");
            }
            Ok(())
        })
        .await;
    }

    /// A master that neither leads nor is this one.
    async fn other_follower(&mut self, not: usize) -> usize {
        let leader = self.cluster.leader().await;
        (0..3).find(|index| ![leader, not].contains(index)).unwrap()
    }
}

fn outcomes(action: &Action) -> BTreeMap<Outcome, usize> {
    let mut outcomes = BTreeMap::new();
    for result in &action.results {
        *outcomes.entry(result.outcome()).or_default() += 1;
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_that_slaves_are_attached_to_dies_and_the_action_goes_on() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let dispatcher = scene.cluster.leader().await;
    let dispatch = scene.dispatch(dispatcher, false).await;
    let victim = scene.other_follower(dispatcher).await;
    scene.cluster.masters[victim].kill();
    crew::attached(&mut scene.cluster, SIZE).await;
    scene.open();
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.count(Outcome::Exited), SIZE, "{told:?}");
    for result in told.finished.values() {
        assert_eq!((result.exit_code, result.truncated), (3, false));
        assert_eq!(
            told.stdout[&result.key], b"before\nafter\n",
            "whole and in order"
        );
    }
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_dies_and_the_action_goes_on() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let leader = scene.cluster.leader().await;
    let dispatcher = (leader + 1) % 3;
    let dispatch = scene.dispatch(dispatcher, false).await;
    scene.cluster.masters[leader].kill();
    let new = scene.cluster.leader().await;
    crew::attached(&mut scene.cluster, SIZE).await;
    scene.open();
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.count(Outcome::Exited), SIZE, "{told:?}");
    scene.ran_once();
    let action = scene.recorded(new, &told.action).await;
    assert_eq!(outcomes(&action), BTreeMap::from([(Outcome::Exited, SIZE)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_dies_and_only_its_target_is_lost() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let mut dispatch = scene.dispatch(0, false).await;
    scene.crew.slaves[5].kill();
    let key = crew::key(5);
    dispatch
        .until(SOON, "end of the one that died", |told| {
            told.finished.contains_key(&key)
        })
        .await;
    assert_eq!(dispatch.told.finished[&key].outcome(), Outcome::Lost);
    scene.open();
    let told = dispatch.finish(SOON).await;
    assert_eq!(
        (told.count(Outcome::Lost), told.count(Outcome::Exited)),
        (1, SIZE - 1)
    );
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_starts_again_does_not_run_it_again() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let mut dispatch = scene.dispatch(1, false).await;
    scene.crew.slaves[3].kill();
    let masters = scene.cluster.masters.iter();
    let masters: Vec<String> = masters.map(kontrol_tests::node::Master::address).collect();
    let again = crew::launch(&scene.cluster, 3, &masters.join("|"), &[]);
    scene.crew.slaves.push(again);
    let key = crew::key(3);
    dispatch
        .until(SOON, "end of the one that died", |told| {
            told.finished.contains_key(&key)
        })
        .await;
    assert_eq!(dispatch.told.finished[&key].outcome(), Outcome::Lost);
    scene.open();
    dispatch.finish(SOON).await;
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_breaks_again_and_again_loses_no_byte_and_runs_nothing_twice() {
    let _permit = heavy().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let proxy = Proxy::start(&cluster.masters[0].address()).await;
    let _slave = crew::launch(&cluster, 0, &proxy.address(), &[]);
    crew::attached(&mut cluster, 1).await;
    let log = cluster.dir.path().join("runs");
    let text = format!(
        "echo + >> {}; for i in $(seq 2000); do echo line $i; sleep 0.005; done",
        log.display()
    );
    let mut request = shell(all(), &text);
    request.timeout = span(Duration::from_secs(90));
    let mut dispatch = cluster.api(0).dispatch(request).await.unwrap();
    for lines in [100, 500, 1000] {
        let enough = format!("line {lines}\n");
        dispatch
            .until(SOON * 3, &enough, |told| {
                let out = told.stdout.values().next();
                out.is_some_and(|out| String::from_utf8_lossy(out).contains(&enough))
            })
            .await;
        proxy.weather(Weather::Cut);
        eventually(SOON, "broken channel", async || {
            ensure!(crew::attached_to(&cluster.masters[0].url()).await? == 0);
            Ok(())
        })
        .await;
        proxy.weather(Weather::Fair);
    }
    let told = dispatch.finish(SOON * 3).await;
    let expected: String = (1..=2000).map(|line| format!("line {line}\n")).collect();
    assert_eq!(told.text(), expected);
    assert_eq!((told.only().exit_code, told.only().truncated), (0, false));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_actions_run_and_are_recorded_once_it_is_back() {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    etcd.kill();
    for index in 0..3 {
        let api = scene.cluster.api(index);
        let told = api.run(argv(all(), &["true"])).await;
        assert_eq!(
            told.summary.as_ref().unwrap().succeeded as usize,
            SIZE,
            "{told:?}"
        );
    }
    let dispatch = scene.dispatch(1, false).await;
    etcd.restart().await;
    scene.cluster.ready().await;
    scene.open();
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.count(Outcome::Exited), SIZE, "{told:?}");
    let action = scene.recorded(2, &told.action).await;
    assert_eq!(outcomes(&action), BTreeMap::from([(Outcome::Exited, SIZE)]));
    scene.ran_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_slave_is_waited_for_as_long_as_its_pod_lives() {
    let _permit = heavy().await;
    let mut cluster = Cluster::on("memory:")
        .ttl(Duration::from_secs(6))
        .start()
        .await;
    let mut crew = Crew::start(&mut cluster, 2).await;
    let api = cluster.api(0);
    let mut dispatch = api
        .dispatch(shell(ids(&["slave-0"]), "sleep 1; echo done"))
        .await
        .unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    crew.slaves[0].process().signal(Signal::STOP);
    throughout(Duration::from_secs(3), "the target", async || {
        ensure!(api.pods().await?.pods.len() == 2);
        Ok(())
    })
    .await;
    crew.slaves[0].process().signal(Signal::CONT);
    let told = dispatch.finish(SOON).await;
    assert_eq!(told.text(), "done\n");

    let mut dispatch = api
        .dispatch(shell(ids(&["slave-1"]), "sleep 600"))
        .await
        .unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    crew.slaves[1].process().signal(Signal::STOP);
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.only().outcome(), Outcome::Lost, "{told:?}");
    crew.slaves[1].process().signal(Signal::CONT);
    crew::attached(&mut cluster, 2).await;
}
