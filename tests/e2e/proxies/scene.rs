//! Two masters on a real etcd, a proxy in front of them, slaves that know the proxy alone, and somebody who watches a master
//! directly.

use super::proxy::{Kind, Proxy};
use crate::secured::token;
use anyhow::ensure;
use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use kontrol_runtime::testing::{Authority, write};
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{Slave, command},
    process::Process,
    wait::eventually,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};
use tempfile::TempDir;

/// Where TLS ends, if there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    No,
    /// The masters ask for tokens, which pass the proxy.
    AtTheProxy,
    AtTheMasters,
}

/// Who comes to masters that ask for tokens.
const WHO: [(&str, &str); 3] = [("peer", "masters"), ("slave", "pod-*"), ("operator", "ann")];

/// What a test is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) tls: Tls,
    /// In place of the time-outs that the guide shows.
    pub(crate) timeouts: Option<&'static str>,
    pub(crate) ttl: Duration,
}

/// All of it. Declared in the order in which it is to end.
pub(crate) struct Scene {
    watch: Process,
    /// By way of the proxy.
    front_watch: Process,
    /// Of each in [`WHO`], where the masters ask for one.
    tokens: Vec<String>,
    pub(crate) slaves: Vec<Slave>,
    pub(crate) proxy: Proxy,
    pub(crate) cluster: Cluster,
    /// Of those with TLS.
    ca: PathBuf,
    tls: Tls,
    _dir: TempDir,
    _etcd: Etcd,
}

/// What becomes of an action.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) told: Vec<Value>,
    /// What it said beside that.
    pub(crate) said: String,
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Scene {
    /// Starts it, and waits until both pods are in the roster. None where something is not installed.
    pub(crate) async fn start(plan: Plan) -> Option<Self> {
        let etcd = Etcd::start().await?;
        let mut cluster = Cluster::on(&etcd.store()).masters(2).ttl(plan.ttl);
        // Its files stay until the end of the test.
        let dir = tempfile::tempdir().unwrap();
        let ours = Authority::new("masters");
        let ca = ours.install(dir.path());
        if plan.tls == Tls::AtTheMasters {
            let pair = write(dir.path(), "masters", &ours.sign(&["127.0.0.1"]));
            for (flag, path) in [
                ("tls-cert", &pair.cert),
                ("tls-key", &pair.key),
                ("ca", &ca),
            ] {
                cluster = cluster.set(flag, text(path));
            }
        }
        let mut tokens = Vec::new();
        if plan.tls == Tls::AtTheProxy {
            let made = WHO.map(|(role, name)| token(role, name));
            let lines: Vec<&str> = made.iter().map(|(_, line)| line.as_str()).collect();
            let (all, own) = (dir.path().join("tokens"), dir.path().join("own"));
            fs::write(&all, lines.join("\n")).unwrap();
            fs::write(&own, &made[0].0).unwrap();
            tokens.extend(made.map(|(token, _)| token));
            cluster = cluster
                .set("tokens", text(&all))
                .set("token-file", text(&own));
        }
        let mut cluster = cluster.build();
        for master in &mut cluster.masters {
            master.launch();
        }
        let ports = [0, 1].map(|index| cluster.masters[index].port());
        let proxy = Proxy::start(plan.kind, ports, plan.timeouts).await?;
        let ca = if plan.tls == Tls::AtTheProxy {
            proxy.ca()
        } else {
            ca
        };
        let log = |name: &str| cluster.dir.path().join(name);
        let (watch, front_watch) = (log("watch.log"), log("front-watch.log"));
        let mut scene = Self {
            watch: Process::spawn("none", &mut Command::new("true"), &watch),
            front_watch: Process::spawn("none", &mut Command::new("true"), &front_watch),
            tokens,
            slaves: Vec::new(),
            proxy,
            cluster,
            ca,
            tls: plan.tls,
            _dir: dir,
            _etcd: etcd,
        };
        for index in 0..2 {
            scene.asks(&scene.master(index), &["status"]).await;
        }
        let mut command = scene.client(&scene.master(0), &["watch", "--output", "json"]);
        scene.watch = Process::spawn("watch", &mut command, &watch);
        scene.asks(&scene.front(), &["status"]).await;
        let mut command = scene.client(&scene.front(), &["watch", "--output", "json"]);
        scene.front_watch = Process::spawn("front watch", &mut command, &front_watch);
        eventually(SOON, "two watches", async || {
            for watch in [&scene.watch, &scene.front_watch] {
                ensure!(watch.log().contains("snapshot"), "{}", watch.log());
            }
            Ok(())
        })
        .await;
        for index in 0..2 {
            let slave = scene.slave(index);
            scene.slaves.push(slave);
        }
        eventually(SOON, "two pods", async || {
            let joined = scene.told("podJoined").len();
            ensure!(joined == 2, "{joined}");
            Ok(())
        })
        .await;
        Some(scene)
    }

    fn slave(&self, index: usize) -> Slave {
        let (id, url) = (format!("pod-{index}"), self.proxy.url(self.tls != Tls::No));
        let ip = format!("127.31.0.{}", index + 1);
        let token = self.cluster.dir.path().join("slave.token");
        let mut settings = vec![
            ("master", url.as_str()),
            ("id", id.as_str()),
            ("ip", ip.as_str()),
            ("labels", r#"{"app":"web","role":"worker"}"#),
            ("verbose", ""),
        ];
        settings.push(match self.tls {
            Tls::No => ("insecure", ""),
            Tls::AtTheProxy | Tls::AtTheMasters => ("ca", text(&self.ca)),
        });
        if let [_, slave, _] = &self.tokens[..] {
            fs::write(&token, slave).unwrap();
            settings.push(("token-file", text(&token)));
        }
        Slave::start(&id, &settings, self.cluster.dir.path())
    }

    /// The URL of a master, past the proxy.
    pub(crate) fn master(&self, index: usize) -> String {
        let url = self.cluster.masters[index].url();
        match self.tls {
            Tls::AtTheMasters => url.replace("http://", "https://"),
            Tls::No | Tls::AtTheProxy => url,
        }
    }

    /// The URL of the proxy.
    pub(crate) fn front(&self) -> String {
        self.proxy.url(self.tls != Tls::No)
    }

    /// A command of the command line.
    pub(crate) fn client(&self, url: &str, words: &[&str]) -> Command {
        let mut command = command("kontrol-master");
        command
            .args(words)
            .env("KONTROL_ENDPOINT", url)
            .env("KONTROL_CA", &self.ca);
        if let [.., operator] = &self.tokens[..] {
            command.env("KONTROL_TOKEN", operator);
        }
        command
    }

    /// Asks until it is answered.
    pub(crate) async fn asks(&self, url: &str, words: &[&str]) -> Value {
        eventually(SOON, &format!("answer of {words:?}"), async || {
            let output = kontrol_tests::node::run(self.client(url, words)).await;
            ensure!(output.status.success(), "{output:?}");
            Ok(serde_json::from_slice(&output.stdout)?)
        })
        .await
    }

    /// curl by way of the proxy, with what it takes to be let in as a slave or an operator.
    pub(crate) fn curl(&self, role: &str, path: &str, words: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sSN", "--max-time", "60", "--cacert", text(&self.ca)]);
        let mut tokens = WHO.iter().zip(&self.tokens);
        if let Some((_, token)) = tokens.find(|((one, _), _)| *one == role) {
            command.args(["-H", &format!("authorization: Bearer {token}")]);
        }
        command.args(words).arg(format!("{}{path}", self.front()));
        command
    }

    /// What the watch told so far, of this kind.
    fn told(&self, event: &str) -> Vec<Value> {
        Self::events(&self.watch, event)
    }

    fn events(watch: &Process, event: &str) -> Vec<Value> {
        let log = watch.log();
        let events = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events
            .map(|told| told[event].clone())
            .filter(|told| !told.is_null())
            .collect()
    }

    /// Nobody left or came back, as the watch has it, and the master that it asks.
    pub(crate) async fn nobody_left(&mut self) {
        assert_eq!(self.watch.status(), None, "{}", self.watch.log());
        assert_eq!(self.told("podLeft"), Vec::<Value>::new());
        assert_eq!(self.told("podJoined").len(), 2);
        let pods = self
            .asks(&self.master(0), &["pods", "--output", "json"])
            .await;
        let seqs: Vec<u64> = pods["pods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["seq"].as_u64().unwrap())
            .collect();
        assert_eq!(seqs, [0, 1], "{pods}");
    }

    /// Runs an action on both pods, by way of this URL, to its end.
    pub(crate) async fn exec(&self, url: &str, shell: &str) -> Ran {
        let log = tempfile::NamedTempFile::new_in(self.cluster.dir.path()).unwrap();
        let words = ["exec", "--output", "json", "--all", "--shell", shell];
        let mut process = Process::spawn("exec", &mut self.client(url, &words), log.path());
        let status = process.ended(SOON * 3).await;
        let lines = process.log();
        let (told, said): (Vec<&str>, Vec<&str>) =
            lines.lines().partition(|line| line.starts_with('{'));
        let told = told.iter().map(|line| serde_json::from_str(line).unwrap());
        Ran {
            status,
            told: told.collect(),
            said: said.join("\n"),
        }
    }

    /// Its dispatcher went away, as far as the master can see.
    pub(crate) async fn the_last_action_was_cancelled(&self) {
        eventually(SOON, "the end of the action", async || {
            let words = ["actions", "--output", "json"];
            let list = self.asks(&self.master(0), &words).await;
            let summary = &list["actions"][0]["summary"];
            ensure!(summary["cancelled"] == 2, "{summary}");
            Ok(())
        })
        .await;
    }

    /// Both pods left, because their slaves said so.
    pub(crate) async fn both_said_goodbye(&self) {
        let left = eventually(SOON, "two goodbyes", async || {
            let left = self.told("podLeft");
            ensure!(left.len() == 2, "{left:?}");
            Ok(left)
        })
        .await;
        for left in left {
            assert_eq!(left["reason"], "LEAVE_REASON_DOWN", "{left}");
        }
        // However often it was cut: nothing is told twice, and nothing is missed.
        eventually(SOON, "both on the watch through the proxy", async || {
            let log = self.front_watch.log();
            for (event, count) in [("podJoined", 2), ("podLeft", 2)] {
                let seen = Self::events(&self.front_watch, event).len();
                ensure!(seen == count, "{seen} {event}: {log}");
            }
            Ok(())
        })
        .await;
    }

    /// How often streams of the first slave were cut.
    pub(crate) fn cuts(&self) -> Cuts {
        let log = self.slaves[0].log();
        let count = |text: &str| log.matches(text).count();
        Cuts {
            channels: count("the channel for actions broke"),
            keepalives: count("the stream of keepalives ended"),
            watches: self.front_watch.log().matches("the watch broke").count(),
        }
    }
}

/// How often something was cut.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    pub(crate) channels: usize,
    pub(crate) keepalives: usize,
    pub(crate) watches: usize,
}

impl Ran {
    /// How each pod ended, by its id.
    pub(crate) fn ends(&self) -> Vec<(&str, i64)> {
        let ends = self.told.iter().map(|told| &told["finished"]);
        let mut ends: Vec<_> = ends
            .filter(|end| end["outcome"] == "OUTCOME_EXITED")
            .map(|end| {
                (
                    end["id"].as_str().unwrap(),
                    end["exitCode"].as_i64().unwrap(),
                )
            })
            .collect();
        ends.sort_unstable();
        ends
    }

    /// What a pod wrote.
    pub(crate) fn output(&self, id: &str) -> String {
        let started = self.told.iter().map(|told| &told["started"]);
        let key = started
            .filter(|told| told["id"] == id)
            .map(|told| &told["key"])
            .next();
        let output = self.told.iter().map(|told| &told["output"]);
        let pieces = output.filter(|told| Some(&told["key"]) == key && !told.is_null());
        let bytes =
            pieces.flat_map(|told| STANDARD.decode(told["data"].as_str().unwrap()).unwrap());
        String::from_utf8(bytes.collect()).unwrap()
    }
}
