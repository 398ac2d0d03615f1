//! Alerting: what dies, is not well or comes back is told by a real Alertmanager, whoever of the masters and whatever of
//! Alertmanager dies meanwhile.

use crate::guide::{example, installed, run_as_written};
use anyhow::ensure;
use kontrol_tests::{
    SOON, client::exchange, cluster::Cluster, etcd::Etcd, heavy, node::Slave, pod::from_proto,
    ports, process::Process, small, wait::eventually,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Long enough for slaves on a busy machine; who is killed here was attached, and is lost sooner.
const TTL: Duration = Duration::from_secs(15);

/// An Alertmanager that keeps its port and its data over several starts.
struct Alertmanager {
    program: PathBuf,
    port: u16,
    dir: PathBuf,
    process: Process,
}

impl Alertmanager {
    /// Starts one. None, said aloud, where it is not installed.
    async fn start(dir: &Path) -> Option<Self> {
        let program = installed("prometheus-alertmanager")?;
        for _ in 0..3 {
            let (port, dir) = (ports::free(), dir.to_owned());
            let process = spawn(&program, port, &dir);
            let mut this = Self {
                program: program.clone(),
                port,
                dir,
                process,
            };
            if this.serves().await {
                return Some(this);
            }
        }
        panic!("found no free port for Alertmanager");
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until it serves. False when it has ended, as it does where its port is taken.
    async fn serves(&mut self) -> bool {
        let url = format!("{}/-/ready", self.url());
        eventually(SOON, "Alertmanager that serves", async || {
            if self.process.status().is_some() {
                return Ok(false);
            }
            let answer = exchange("GET", &url, "", Vec::new()).await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(true)
        })
        .await
    }

    /// Starts it again after a kill, with nothing left of its alerts: it keeps them in memory.
    async fn restart(&mut self) {
        self.process = spawn(&self.program, self.port, &self.dir);
        assert!(self.serves().await, "{}", self.process.log());
    }

    /// What fires, each as `name role id`, in order.
    async fn active(&self) -> Vec<String> {
        let url = format!("{}/api/v2/alerts?active=true", self.url());
        let answer = exchange("GET", &url, "", Vec::new()).await.unwrap();
        let label = |alert: &Value, name: &str| {
            let text = alert["labels"][name].as_str().unwrap_or_default();
            text.to_owned()
        };
        let alerts = answer.ok();
        let alerts = alerts.as_array().unwrap().iter();
        let mut names: Vec<String> = alerts
            .map(|alert| ["alertname", "role", "id"].map(|name| label(alert, name)))
            .map(|words| words.join(" ").trim_end().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until exactly these fire.
    async fn fires(&self, wanted: &[&str]) {
        eventually(SOON, &format!("alerts {wanted:?}"), async || {
            let active = self.active().await;
            ensure!(active == wanted, "{active:?}");
            Ok(())
        })
        .await;
    }

    /// A counter of its metrics.
    async fn metric(&self, name: &str) -> u64 {
        let url = format!("{}/metrics", self.url());
        let answer = exchange("GET", &url, "", Vec::new()).await.unwrap();
        let mut lines = answer.body.lines();
        lines
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {}", answer.body))
    }
}

fn spawn(program: &Path, port: u16, dir: &Path) -> Process {
    let mut command = Command::new(program);
    command
        .arg("--config.file")
        .arg(example("alerting").join("alertmanager.yml"))
        .arg("--storage.path")
        .arg(dir.join("alertmanager"))
        .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
        .args(["--cluster.listen-address", ""]);
    Process::spawn("alertmanager", &mut command, &dir.join("alertmanager.log"))
}

/// A pod whose payload is a file.
struct Pod {
    id: String,
    ip: String,
    payload: PathBuf,
    masters: String,
    dir: PathBuf,
    slave: Slave,
}

impl Pod {
    fn start(number: u8, masters: &str, dir: &Path) -> Self {
        let (id, ip) = (format!("web-{number}"), format!("127.31.0.{number}"));
        let payload = dir.join(format!("{id}.json"));
        fs::write(&payload, "{}").unwrap();
        let slave = slave(&id, &ip, &payload, masters, dir);
        Self {
            id,
            ip,
            payload,
            masters: masters.to_owned(),
            dir: dir.to_owned(),
            slave,
        }
    }

    /// Starts its slave again.
    fn again(&mut self) {
        self.slave = slave(&self.id, &self.ip, &self.payload, &self.masters, &self.dir);
    }

    /// Lets it say something else of itself.
    fn says(&self, payload: &Value) {
        let new = self.payload.with_extension("new");
        fs::write(&new, payload.to_string()).unwrap();
        fs::rename(new, &self.payload).unwrap();
    }
}

fn slave(id: &str, ip: &str, payload: &Path, masters: &str, dir: &Path) -> Slave {
    let settings = [
        ("id", id),
        ("ip", ip),
        ("master", masters),
        ("payload", payload.to_str().unwrap()),
        ("labels", r#"{"app":"shop","role":"web"}"#),
        ("insecure", ""),
    ];
    Slave::start(id, &settings, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_or_is_not_well_is_told_and_nothing_is_lost_whoever_else_dies() {
    let _permit = heavy().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(mut alertmanager) = Alertmanager::start(dir.path()).await else {
        return;
    };
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let callback = |tier: &str| {
        let program = example("alerting").join("callback");
        let flags = format!("--alertmanager {} --tier {tier}", alertmanager.url());
        format!("{} {flags}", program.display())
    };
    let above = Cluster::on("memory:")
        .damper(Duration::from_millis(200))
        .ttl(TTL)
        .set("callback", &callback("above"))
        .start()
        .await;
    let mut below = Cluster::on(&etcd.store())
        .masters(2)
        .damper(Duration::from_millis(200))
        .ttl(TTL)
        .set(
            "callback",
            &format!("{} --at-least web=2", callback("below")),
        )
        .set("upstream", &above.masters[0].url())
        .set("labels", r#"{"app":"shop","role":"master"}"#)
        .build();
    for (index, master) in below.masters.iter_mut().enumerate() {
        master.set("ip", &format!("127.32.0.{}", index + 1));
        master.start().await;
    }
    below.ready().await;
    let masters = below.urls().join("|");
    let mut pods: Vec<Pod> = (1..=3)
        .map(|number| Pod::start(number, &masters, dir.path()))
        .collect();
    below.handled(0, 3).await;
    above.handled(0, 2).await;
    alertmanager.fires(&[]).await;

    // One is not well, and then the leader is killed: the other master goes on with what is known, the master above tells.
    pods[0].says(&json!({"health": "bad", "why": "the disk is full"}));
    alertmanager.fires(&["PodUnhealthy web web-1"]).await;
    let leader = below.leader().await;
    let since = started(&below, leader, "PodUnhealthy/web/web-1").await;
    below.masters[leader].kill();
    let master = format!("PodDied master master-{leader}");
    alertmanager
        .fires(&[&master, "PodUnhealthy web web-1"])
        .await;

    // With Alertmanager down, a pod dies and another says goodbye. It comes back without its alerts, and is told all of them.
    alertmanager.process.kill();
    pods[1].slave.kill();
    let other = 1 - leader;
    let failed = below.ensemble(other, "failed run", |view| {
        let status = view.callback.as_ref();
        view.pod_count == 2 && status.is_some_and(|status| status.failures > 0)
    });
    let error = failed.await.callback.unwrap().last_run.unwrap().error;
    assert!(!error.is_empty(), "what was wrong is told");
    alertmanager.restart().await;
    let three = [&master, "PodDied web web-2", "PodUnhealthy web web-1"];
    // The tier above has nothing new to tell, and is asked to say it again.
    below.handled(other, 2).await;
    above.api(0).run_callback(true).await.unwrap();
    alertmanager.fires(&three).await;
    assert_eq!(
        started(&below, other, "PodUnhealthy/web/web-1").await,
        since,
        "it is the alert of before"
    );

    // A goodbye is no alert, but that too few are left is one.
    assert!(pods[2].slave.stop(SOON).await.success());
    let four = [&three[..], &["TooFewPods web"]].concat();
    alertmanager.fires(&four).await;

    // All are back and well.
    pods[0].says(&json!({"health": "good"}));
    pods[1].again();
    below.restart(leader).await;
    alertmanager.fires(&[]).await;
    assert!(
        alertmanager
            .metric("alertmanager_alerts_received_total{status=\"resolved\",version=\"v2\"}")
            .await
            >= 4,
        "they were ended by name"
    );
    assert_eq!(
        alertmanager
            .metric("alertmanager_alerts_invalid_total{version=\"v2\"}")
            .await,
        0
    );
    below.handled(other, 2).await;
    let state = state(&below, other).await;
    assert_eq!(state["alerts"], json!({}), "{state}");
    assert_eq!(state["flaps"]["web-2"].as_array().unwrap().len(), 1);
    assert_eq!(state["pods"].as_object().unwrap().len(), 2);
}

/// The callback's state, as a master tells it.
async fn state(cluster: &Cluster, index: usize) -> Value {
    let state = cluster.api(index).state().await.unwrap();
    from_proto(state.state.as_ref())
}

/// When an alert of the state began.
async fn started(cluster: &Cluster, index: usize, key: &str) -> f64 {
    eventually(SOON, &format!("{key} in the state"), async || {
        let state = state(cluster, index).await;
        let start = state["alerts"][key]["startsAt"].as_f64();
        start.ok_or_else(|| anyhow::anyhow!("{state}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_every_alert_fires_and_ends() {
    let _permit = small().await;
    if let Some(wrote) = run_as_written("alerting").await {
        assert!(wrote.contains("Everything was seen."), "{wrote}");
    }
}
