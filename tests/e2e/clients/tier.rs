//! Two masters that ask who comes, on one etcd, and whoever is to come.

use crate::secured::{HOST, connect, text, token};
use anyhow::ensure;
use kontrol_proto::v1::{PingRequest, keepalive_service_client::KeepaliveServiceClient};
use kontrol_runtime::{
    dial::{Channel, Credentials},
    testing::{Authority, write},
};
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{command, run},
    process::Process,
    wait::eventually,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use tempfile::TempDir;

/// How often pods report. They give a master a third of it, which must do for a connection on a busy machine.
pub(super) const INTERVAL: Duration = Duration::from_millis(2500);

/// The tier.
pub(super) struct Tier {
    pub(super) cluster: Cluster,
    ca: PathBuf,
    /// By role.
    tokens: BTreeMap<&'static str, String>,
    /// Its certificates and tokens.
    dir: TempDir,
    _etcd: Etcd,
}

impl Tier {
    /// Starts it. None, said aloud, without etcd.
    pub(super) async fn start() -> Option<Self> {
        let etcd = Etcd::start().await?;
        let mut lines = Vec::new();
        let mut tokens = BTreeMap::new();
        for (role, name) in [
            ("slave", "client-*"),
            ("reader", "rita"),
            ("operator", "ann"),
            ("peer", "masters"),
        ] {
            let (secret, line) = token(role, name);
            tokens.insert(role, secret);
            lines.push(line);
        }
        let ours = Authority::new("ours");
        let mut builder = Cluster::on(&etcd.store()).masters(2).ttl(INTERVAL * 5);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let ca = ours.install(folder);
        let port = write(folder, "master", &ours.sign(&[HOST, "127.0.0.1"]));
        fs::write(folder.join("tokens"), lines.join("\n")).unwrap();
        for (role, token) in &tokens {
            fs::write(folder.join(format!("{role}.token")), token).unwrap();
        }
        for (flag, path) in [
            ("tls-cert", &port.cert),
            ("tls-key", &port.key),
            ("ca", &ca),
            ("tokens", &folder.join("tokens")),
        ] {
            builder = builder.set(flag, &text(path));
        }
        let cluster = builder.env("KONTROL_TOKEN", &tokens["peer"]).build();
        let mut tier = Self {
            cluster,
            ca,
            tokens,
            dir,
            _etcd: etcd,
        };
        for index in 0..2 {
            tier.launch(index).await;
        }
        Some(tier)
    }

    pub(super) fn url(&self, index: usize) -> String {
        format!("https://{}", self.cluster.masters[index].address())
    }

    /// Starts a master, and waits until it takes keepalives.
    pub(super) async fn launch(&mut self, index: usize) {
        self.cluster.masters[index].launch();
        self.takes_keepalives(index).await;
    }

    pub(super) async fn takes_keepalives(&self, index: usize) {
        eventually(SOON, "a master that is ready", async || {
            let mut client =
                tonic_health::pb::health_client::HealthClient::new(self.dial(index).await?);
            let request = tonic_health::pb::HealthCheckRequest::default();
            let answer = client.check(request).await?.into_inner();
            ensure!(answer.status == 1, "{answer:?}");
            Ok(())
        })
        .await;
    }

    async fn dial(&self, index: usize) -> anyhow::Result<Channel> {
        let peer = Credentials::none().with_ca(&self.ca);
        let peer = peer.with_token(&self.tokens["peer"]).unwrap();
        connect(self.cluster.masters[index].port(), true, &peer).await
    }

    /// Has a pod join, or leave, by way of this master.
    pub(super) async fn pod(&self, index: usize, number: u8, down: bool) {
        let mut client = KeepaliveServiceClient::new(self.dial(index).await.unwrap());
        let ping = PingRequest {
            app: "web".into(),
            id: format!("extra-{number}"),
            ip: format!("127.0.1.{number}"),
            role: "extra".into(),
            nonce: "00000000000000aa".into(),
            down,
            ..PingRequest::default()
        };
        // In a fail-over it may be told to ask again.
        eventually(SOON, "a master that takes a pod", async || {
            Ok(client.ping(ping.clone()).await?)
        })
        .await;
    }

    /// Our own command line, as an operator, of both masters.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut asks = command("kontrol-master");
        asks.args(words)
            .env("KONTROL_ENDPOINT", [self.url(0), self.url(1)].join(","))
            .env("KONTROL_CA", &self.ca)
            .env("KONTROL_TOKEN", &self.tokens["operator"]);
        asks
    }

    /// Has the slave run a command, by way of this master, that is told of after a fault: it goes on when `go-on-N` is there.
    pub(super) fn across(&self, by: usize, fault: u8) -> Process {
        let shell = format!(
            "echo begin; touch started-{fault}; until [ -e go-on-{fault} ]; do sleep 0.05; done; echo end"
        );
        let shell = format!("cd {}; {shell}", self.cluster.dir.path().display());
        let words = ["exec", "--id", "client-slave", "--output", "raw", "--shell"];
        let mut asks = self.command(&[&words[..], &[&shell]].concat());
        asks.env("KONTROL_ENDPOINT", self.url(by));
        self.spawn(&format!("across-{fault}"), &mut asks)
    }

    pub(super) async fn ask(&self, words: &[&str]) -> Output {
        run(self.command(words)).await
    }

    /// The pods, as our own command line lists them: id and seq, in order.
    pub(super) async fn pods(&self) -> Vec<(String, u64)> {
        let output = self.ask(&["pods", "--output", "json"]).await;
        assert!(output.status.success(), "{output:?}");
        let pods: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pods = pods["pods"].as_array().or(pods.as_array()).unwrap();
        let pod = |pod: &Value| {
            let id = pod["id"].as_str().unwrap().to_owned();
            (id, pod["seq"].as_u64().unwrap())
        };
        pods.iter().map(pod).collect()
    }

    /// A command of the client in another language.
    pub(super) fn client(&self, program: &Path, what: &str, role: &str) -> Command {
        let mut client = Command::new(program);
        // Of the environment they would take settings for proxies.
        client
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .arg(what)
            .args(["--masters", &[self.url(0), self.url(1)].join(",")])
            .arg("--ca")
            .arg(&self.ca)
            .arg("--token-file")
            .arg(self.dir.path().join(format!("{role}.token")));
        client
    }

    /// Starts a pod in another language.
    pub(super) fn reports(&self, program: &Path, what: &str, number: u8) -> Process {
        let mut client = self.client(program, what, "slave");
        client
            .args(["--id", &format!("client-{what}")])
            .args(["--ip", &format!("127.0.0.{number}")]);
        self.spawn(&format!("client-{what}"), &mut client)
    }

    pub(super) fn spawn(&self, name: &str, client: &mut Command) -> Process {
        let log = self.cluster.dir.path().join(format!("{name}.log"));
        Process::spawn(name, client, &log)
    }
}

/// What a client said so far. What is no JSON is trouble that a person reads.
pub(super) fn said(process: &Process) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines();
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
