//! The Redis set of the story: two masters with the callback on a real etcd, and its pods as processes, each with a Redis
//! and a slave of its own.

use super::{
    redis::{self, Reply, info},
    writer::{Written, key},
};
use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use kontrol_tests::{
    SOON,
    client::Api,
    cluster::Cluster,
    crew,
    etcd::Etcd,
    house::project,
    node, ports,
    process::{Process, descendants},
    skip,
    wait::eventually,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    process::Command,
    time::Duration,
};

/// A folder of the example.
pub(super) fn example() -> PathBuf {
    project().join("deploy/examples/healing")
}

/// Whether there is a Redis here. If not, the test is skipped, aloud.
pub(super) fn is_redis_here() -> bool {
    let here = |program| Command::new(program).arg("--version").output().is_ok();
    let all = here("redis-server") && here("redis-cli");
    if !all {
        skip("Redis is not installed: apt-get install redis-server");
    }
    all
}

/// One pod.
pub(super) struct Pod {
    number: usize,
    port: u16,
    dir: PathBuf,
    process: Option<Process>,
}

impl Pod {
    /// `ip:port` of its Redis.
    pub(super) fn address(&self) -> String {
        format!("127.40.0.{}:{}", self.number + 1, self.port)
    }

    /// The key of the pod.
    pub(super) fn key(&self) -> String {
        kontrol_tests::pod::key_of(&format!("127.40.0.{}", self.number + 1))
    }

    fn start(&mut self, masters: &str) {
        let id = format!("redis-{}", self.number);
        let programs = node::program("kontrol-slave").parent().unwrap().to_owned();
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([programs].into_iter().chain(env::split_paths(&path))).unwrap();
        let mut command = Command::new(example().join("pod"));
        command
            .arg("start")
            .env_clear()
            .env("PATH", path)
            .env("POD_IP", format!("127.40.0.{}", self.number + 1))
            .env("POD_PORT", self.port.to_string())
            .env("POD_DIR", &self.dir)
            .env("KONTROL_MASTER", masters)
            .env("KONTROL_INSECURE", "true")
            .env("KONTROL_ID", &id)
            .env("KONTROL_LABELS", r#"{"app":"healing","role":"redis"}"#);
        fs::create_dir_all(&self.dir).unwrap();
        let log = self.dir.join("pod.log");
        self.process = Some(Process::spawn(&id, &mut command, &log));
    }

    /// The pid of its Redis, or of its slave; nothing unless that runs below this pod.
    pub(super) fn pid(&self, of: &str) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join(format!("{of}.pid"))).ok()?;
        let pid = text.trim().parse().ok()?;
        let root = self.process.as_ref()?.pid();
        let ours = descendants(root).iter().any(|(other, _)| *other == pid);
        ours.then_some(pid)
    }

    /// Sends its Redis, or its slave, a signal.
    pub(super) fn signal(&self, of: &str, signal: Signal) {
        let pid = self.pid(of).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Kills (SIGKILL) everything of it, as if its machine had died; its disk stays.
    pub(super) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill();
    }

    /// Cuts its Redis off from the primary, as the network might.
    pub(super) async fn cut_off(&self) {
        let words = ["REPLICAOF", "127.0.0.1", "1"];
        redis::ask(&self.address(), &words).await.unwrap();
    }
}

/// The masters and the pods.
pub(super) struct Set {
    pub(super) cluster: Cluster,
    pub(super) pods: Vec<Pod>,
    endpoints: String,
    _etcd: Etcd,
}

impl Set {
    /// Starts it, and waits until it is whole. None, said aloud, where Redis or etcd is missing.
    pub(super) async fn start(size: usize) -> Option<Self> {
        if !is_redis_here() {
            return None;
        }
        let etcd = Etcd::start().await?;
        let cluster = Cluster::on(&etcd.store())
            .masters(2)
            .ttl(Duration::from_secs(5))
            .damper(Duration::from_millis(200))
            // A machine that is busy can keep a leader from its lease for seconds.
            .fover(Duration::from_secs(4))
            .set("lost", "2s")
            .set("callback", example().join("callback").to_str().unwrap())
            .start()
            .await;
        let endpoints = crew::masters(&cluster);
        let dir = cluster.dir.path().to_owned();
        let pods = (0..size).map(|number| Pod {
            number,
            port: ports::free(),
            dir: dir.join(format!("pod-{number}")),
            process: None,
        });
        let mut set = Self {
            pods: pods.collect(),
            cluster,
            endpoints,
            _etcd: etcd,
        };
        // The first one is the oldest.
        for number in 0..size {
            set.launch(number);
            if number == 0 {
                let joined = set.cluster.ensemble(0, "a pod", |view| view.pod_count == 1);
                joined.await;
            }
        }
        set.is_whole().await;
        Some(set)
    }

    /// Starts a pod, or starts it again on its disk.
    pub(super) fn launch(&mut self, number: usize) {
        let endpoints = self.endpoints.clone();
        self.pods[number].start(&endpoints);
    }

    /// Clients of all masters.
    pub(super) fn apis(&self) -> Vec<Api> {
        (0..self.cluster.masters.len())
            .map(|index| self.cluster.api(index))
            .collect()
    }

    /// The pods that run.
    pub(super) fn running(&self) -> Vec<&Pod> {
        let pods = self.pods.iter();
        pods.filter(|pod| pod.process.is_some()).collect()
    }

    /// The pod at this address.
    pub(super) fn number_of(&self, address: &str) -> usize {
        let mut pods = self.pods.iter();
        pods.position(|pod| pod.address() == address).unwrap()
    }

    /// The callback's state, digit for digit, by way of any master that answers.
    pub(super) async fn state(&self) -> Result<Value> {
        for api in self.apis() {
            if let Ok(answer) = api.state().await {
                return Ok(kontrol_tests::pod::from_proto(answer.state.as_ref()));
            }
        }
        anyhow::bail!("no master answers")
    }

    /// What each Redis that runs says of itself, by address.
    pub(super) async fn infos(&self) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
        let infos = self.running().into_iter().map(|pod| async {
            let address = pod.address();
            anyhow::Ok((
                address.clone(),
                info(&address).await.with_context(|| address)?,
            ))
        });
        join_all(infos).await.into_iter().collect()
    }

    /// Waits until there is exactly one primary, which the state names; all others replicate it; and the state knows them,
    /// and nobody else. Tells the number of the primary.
    pub(super) async fn is_whole(&self) -> usize {
        let primary = eventually(SOON * 2, "a whole set", async || {
            let state = self.state().await?;
            let primary = state["primary"]["address"].as_str().context("no primary")?;
            let infos = self.infos().await?;
            let mut known = BTreeSet::new();
            for (address, info) in &infos {
                let said = |name: &str| info.get(name).map_or("", String::as_str);
                ensure!(
                    said("master_replid") == state["history"],
                    "{address} {state}"
                );
                if address == primary {
                    ensure!(said("role") == "master", "{address} does not lead");
                    continue;
                }
                let of = format!("{}:{}", said("master_host"), said("master_port"));
                ensure!(said("role") == "slave" && of == primary, "{address}: {of}");
                ensure!(said("master_link_status") == "up", "{address} has no link");
                known.insert((said("run_id").to_owned(), address.clone()));
            }
            let members = state["members"].as_object().context("no members")?;
            let members: BTreeSet<_> = members
                .iter()
                .map(|(run, address)| (run.clone(), address.as_str().unwrap().to_owned()))
                .collect();
            ensure!(members == known && infos.contains_key(primary), "{state}");
            Ok(primary.to_owned())
        });
        self.number_of(&primary.await)
    }

    /// Holds the callback, and waits until none runs.
    pub(super) async fn hold(&self) {
        let api = self.cluster.api(0);
        api.hold("a test", Duration::from_secs(60)).await.unwrap();
        let view = self.cluster.ensemble(0, "no run", |view| {
            let status = view.callback.clone().unwrap_or_default();
            view.hold.is_some() && status.running_since.is_none()
        });
        view.await;
    }

    /// All pods but the primary, the oldest first.
    pub(super) async fn replicas(&self, primary: usize) -> Vec<usize> {
        let pods = self.cluster.api(0).pods().await.unwrap().pods;
        // In the order of their seqs.
        let numbers = pods.iter().map(|pod| {
            let mut ours = self.pods.iter();
            ours.position(|ours| ours.key() == pod.key).unwrap()
        });
        numbers.filter(|number| *number != primary).collect()
    }

    /// Waits until the callback fails for a roster of so many pods.
    pub(super) async fn refuses(&self, pods: u32) {
        let what = format!("a refusal with {pods} pods");
        let refusal = self.cluster.ensemble(0, &what, |view| {
            let run = view.callback.clone().unwrap_or_default().last_run;
            let failed = run.is_some_and(|run| run.digest == view.digest && run.exit_code == 1);
            view.pod_count == pods && failed
        });
        refusal.await;
        let log: String = self.cluster.masters.iter().map(|m| m.log()).collect();
        assert!(log.contains("refused: "), "{log}");
    }

    /// Panics unless every acknowledged write is on every Redis, and all of them have the same.
    pub(super) async fn has_all(&self, written: &Written) {
        let keys: Vec<String> = (0..written.sent).map(key).collect();
        let mut words = vec!["MGET"];
        words.extend(keys.iter().map(String::as_str));
        // What the primary took last may be on its way to the others.
        let data = eventually(SOON, "the same data everywhere", async || {
            let mut all = Vec::new();
            for pod in self.running() {
                all.push(redis::ask(&pod.address(), &words).await?);
            }
            ensure!(all.windows(2).all(|two| two[0] == two[1]), "they differ");
            all.pop().context("nobody")
        });
        let Reply::List(data) = data.await else {
            panic!("MGET gives a list");
        };
        let lost = |(number, _): &&(u64, _)| {
            data[usize::try_from(*number).unwrap()] != Reply::Text(number.to_string())
        };
        let lost: Vec<u64> = written
            .acknowledged
            .iter()
            .filter(lost)
            .map(|(number, _)| *number)
            .collect();
        eprintln!(
            "{} writes, {} acknowledged by two, {} of these lost; longest pauses: {:.1?}",
            written.sent,
            written.acknowledged.len(),
            lost.len(),
            written.pauses()
        );
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}
