//! The machines of a storm: members of etcd, masters, slaves, each on a host of its own.

use super::Shared;
use anyhow::{Context, bail, ensure};
use futures::future::join_all;
use kontrol_tests::{
    SOON,
    client::{Api, exchange},
    net::Network,
    node::program,
    pod::key_of,
    process::Process,
    script::{Recorder, now},
    storm::record::Slave,
    wait::eventually,
};
use rustix::process::Signal;
use std::{
    env,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub(super) const MASTERS: usize = 3;
pub(super) const MEMBERS: usize = 3;
pub(super) const TTL: Duration = Duration::from_secs(4);
pub(super) const PREFIX: &str = "/kontrol/storm/web/";
/// The networks of slaves and of the pods over HTTP, which this test plays.
pub(super) const SLAVES: &str = "10.88.3.0/24";
pub(super) const PODS: &str = "10.88.4.0/24";

pub(super) fn member(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 1, index as u8 + 1)
}

pub(super) fn master(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 2, index as u8 + 1)
}

fn slave(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 3, index as u8 + 1)
}

pub(super) fn pod(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 4, index as u8 + 1)
}

pub(super) fn members() -> Vec<String> {
    (0..MEMBERS)
        .map(|index| format!("{}:2379", member(index)))
        .collect()
}

pub(super) fn url(index: usize) -> String {
    format!("http://{}:8000", master(index))
}

/// A program on a host, started any number of times.
struct Node {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Node {
    fn new(name: String, program: PathBuf, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        Self {
            name,
            program,
            arguments,
            process: None,
        }
    }

    fn launch(&mut self, network: &Network, dir: &Path) {
        if self
            .process
            .as_mut()
            .is_some_and(|process| process.status().is_none())
        {
            return;
        }
        let mut command: Command = network.command(&self.name, &self.program);
        let path = env::var_os("PATH").unwrap_or_default();
        command.args(&self.arguments).env_clear().env("PATH", path);
        let log = dir.join(format!("{}.log", self.name));
        self.process = Some(Process::spawn(&self.name, &mut command, &log).quiet());
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(process) = &mut self.process {
            process.signal(signal);
        }
    }

    fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }
}

pub(super) struct World {
    members: Vec<Node>,
    masters: Vec<Node>,
    slaves: Vec<Node>,
    /// Before everything else ends, so that it can be looked at.
    pub(super) network: Network,
    pub(super) dir: PathBuf,
    shared: Shared,
}

impl World {
    pub(super) async fn start(
        dir: &Path,
        recorder: &Recorder,
        slaves: usize,
        pods: usize,
        seed: u64,
        shared: Shared,
    ) -> Self {
        // What etcd does by default since 3.5. Without it a member that was cut off unseats the leader when it is back,
        // again and again, so that all of etcd is away for seconds: that is worth a storm as well.
        let pre_vote = format!("--pre-vote={}", seed % 2 == 1);
        let own: Vec<Ipv4Addr> = [Ipv4Addr::new(10, 88, 0, 1)]
            .into_iter()
            .chain((0..pods).map(pod))
            .collect();
        let mut hosts = Vec::new();
        hosts.extend((0..MEMBERS).map(|index| (format!("e{index}"), member(index))));
        hosts.extend((0..MASTERS).map(|index| (format!("m{index}"), master(index))));
        hosts.extend((0..slaves).map(|index| (format!("s{index}"), slave(index))));
        let network = Network::make(&own, &hosts);
        let all: Vec<String> = (0..MEMBERS)
            .map(|index| format!("e{index}=http://{}:2380", member(index)))
            .collect();
        let members = (0..MEMBERS).map(|index| {
            let name = format!("e{index}");
            let (client, peer) = (
                format!("http://{}:2379", member(index)),
                format!("http://{}:2380", member(index)),
            );
            let data = dir.join(&name);
            let arguments = [
                "--name",
                &name,
                "--data-dir",
                data.to_str().unwrap(),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &all.join(","),
                &pre_vote,
                "--logger",
                "zap",
                "--log-level",
                "warn",
            ];
            Node::new(name.clone(), PathBuf::from("etcd"), &arguments)
        });
        let store = format!("etcd://{}", self::members().join(","));
        let ttl = format!("{}s", TTL.as_secs());
        let masters = (0..MASTERS).map(|index| {
            let name = format!("m{index}");
            let address = format!("{}:8000", master(index));
            let arguments = [
                "--id",
                &name,
                "--bind",
                "0.0.0.0",
                "--insecure",
                "--advertise",
                &address,
                "--store",
                &store,
                "--namespace",
                "storm",
                "--app",
                "web",
                "--ttl",
                &ttl,
                "--damper",
                "500ms",
                "--fover",
                "2s",
                // What is silent has to leave in time, however many are: the rules ask for that, and the safeguard against
                // mass death would keep the pods of this test when all of them end.
                "--safeguard",
                "0",
                "--callback",
                recorder.program().to_str().unwrap(),
            ];
            Node::new(name.clone(), program("kontrol-master"), &arguments)
        });
        let endpoints: Vec<String> = (0..MASTERS)
            .map(|index| format!("{}:8000", master(index)))
            .collect();
        let slaves = (0..slaves).map(|index| {
            let name = format!("s{index}");
            let arguments = [
                "--id",
                &name,
                "--ip",
                &slave(index).to_string(),
                "--master",
                &endpoints.join("|"),
                "--labels",
                r#"{"app":"web","role":"slave"}"#,
                "--insecure",
            ];
            Node::new(name.clone(), program("kontrol-slave"), &arguments)
        });
        let mut world = Self {
            members: members.collect(),
            masters: masters.collect(),
            slaves: slaves.collect(),
            network,
            dir: dir.to_owned(),
            shared,
        };
        for index in 0..MEMBERS {
            world.members[index].launch(&world.network, dir);
        }
        for index in 0..MASTERS {
            world.masters[index].launch(&world.network, dir);
        }
        world.ready().await;
        for index in 0..world.slaves.len() {
            world.start_slave(index);
        }
        world
    }

    pub(super) fn slaves(&self) -> usize {
        self.slaves.len()
    }

    /// Waits until every master is ready and all name one leader; tells which.
    pub(super) async fn ready(&self) -> usize {
        eventually(SOON * 3, "masters that are ready and agree", async || {
            let mut leaders = join_all((0..MASTERS).map(|index| async move {
                let answer =
                    exchange("GET", &format!("{}/readyz", url(index)), "", Vec::new()).await?;
                ensure!(
                    answer.status == 200,
                    "m{index}: {} {}",
                    answer.status,
                    answer.body
                );
                let view = Api::new(url(index)).ensemble().await?;
                Ok(view.leader.context("no leader")?.id)
            }))
            .await
            .into_iter()
            .collect::<anyhow::Result<Vec<String>>>()?;
            leaders.dedup();
            let [leader] = &leaders[..] else {
                bail!("several leaders: {leaders:?}");
            };
            (0..MASTERS)
                .find(|index| *leader == format!("m{index}"))
                .context("a leader")
        })
        .await
    }

    /// Starts, lets go on and reconnects all that is there.
    pub(super) fn mend(&mut self) {
        self.network.heal();
        for node in self.members.iter_mut().chain(&mut self.masters) {
            node.signal(Signal::CONT);
            node.launch(&self.network, &self.dir);
        }
    }

    pub(super) fn kill_master(&mut self, index: usize) {
        self.masters[index].kill();
    }

    pub(super) fn signal_master(&mut self, index: usize, signal: Signal) {
        self.masters[index].signal(signal);
    }

    pub(super) fn launch_master(&mut self, index: usize) {
        self.masters[index].launch(&self.network, &self.dir);
    }

    /// Stops a master as an operator would.
    pub(super) async fn stop_master(&mut self, index: usize) {
        if let Some(process) = &mut self.masters[index].process {
            process.signal(Signal::TERM);
            process.ended(SOON).await;
        }
    }

    pub(super) fn kill_member(&mut self, index: usize) {
        self.members[index].kill();
    }

    pub(super) fn pause_member(&mut self, index: usize) {
        self.members[index].signal(Signal::STOP);
    }

    /// Starts a slave, whose name and incarnation are written down.
    pub(super) fn start_slave(&mut self, index: usize) {
        let node = &mut self.slaves[index];
        let started = now();
        node.launch(&self.network, &self.dir);
        let ip = slave(index).to_string();
        let record = Slave {
            id: node.name.clone(),
            key: key_of(&ip),
            started,
            ..Slave::default()
        };
        self.shared.lock().slaves.push(record);
    }

    /// Waits until each start of a slave has told its incarnation.
    async fn told(&self, index: usize) {
        let name = &self.slaves[index].name;
        eventually(SOON, "incarnation of a slave in its log", async || {
            let starts = self
                .shared
                .lock()
                .slaves
                .iter()
                .filter(|of| of.id == *name)
                .count();
            let told = self.starts(name).len();
            ensure!(told == starts, "{name} told {told} of {starts} starts");
            Ok(())
        })
        .await;
    }

    /// The incarnations that a slave told in its log.
    fn starts(&self, name: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        let starts = log
            .lines()
            .filter(|line| line.contains("kontrol-slave started"));
        let nonces = starts.filter_map(|line| {
            let (_, rest) = line.split_once("nonce=\"")?;
            Some(rest.split_once('"')?.0.to_owned())
        });
        nonces.collect()
    }

    fn end(&mut self, index: usize) {
        let name = &self.slaves[index].name;
        let mut history = self.shared.lock();
        let of_it = history.slaves.iter_mut().rev().find(|of| of.id == *name);
        if let Some(of_it) = of_it.filter(|of| of.ended.is_none()) {
            of_it.ended = Some(now());
        }
    }

    pub(super) async fn kill_slave(&mut self, index: usize) {
        self.told(index).await;
        self.end(index);
        self.slaves[index].kill();
    }

    pub(super) async fn stop_slave(&mut self, index: usize) {
        self.told(index).await;
        self.end(index);
        if let Some(process) = &mut self.slaves[index].process {
            process.signal(Signal::TERM);
            process.ended(SOON).await;
        }
    }

    pub(super) fn pause_slave(&mut self, index: usize) {
        self.slaves[index].signal(Signal::STOP);
    }

    pub(super) fn resume_slave(&mut self, index: usize) {
        self.slaves[index].signal(Signal::CONT);
    }

    /// Whether a slave runs.
    pub(super) fn runs(&mut self, index: usize) -> bool {
        let process = self.slaves[index].process.as_mut();
        process.is_some_and(|process| process.status().is_none())
    }

    /// Writes down that a slave could not be heard.
    pub(super) fn disturbed(&self, index: usize, from: f64, to: f64) {
        let name = &self.slaves[index].name;
        let mut history = self.shared.lock();
        if let Some(of_it) = history.slaves.iter_mut().rev().find(|of| of.id == *name) {
            of_it.disturbed.push((from, to));
        }
    }

    /// Writes down the incarnations of the slaves.
    pub(super) async fn nonces(&self) {
        for index in 0..self.slaves.len() {
            self.told(index).await;
            let name = &self.slaves[index].name;
            let mut nonces = self.starts(name).into_iter();
            let mut history = self.shared.lock();
            for slave in history.slaves.iter_mut().filter(|of| of.id == *name) {
                slave.nonce = nonces.next().unwrap_or_default();
            }
        }
    }
}

pub(super) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
