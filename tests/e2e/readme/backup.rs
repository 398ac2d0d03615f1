//! A tier that is taken back to a copy of etcd, and one that is given its state alone, by the commands of the guide.

use super::{RESTORE, SAVE, STATE, block};
use anyhow::{Context, ensure};
use kontrol_tests::{SOON, house::House, process::Process, small, wait::eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

/// Writes down what state it is handed, and makes the next one.
const CALLBACK: &str = r#"#!/bin/sh
state=${STATE:-null}
echo "$state" >>/opt/states
echo "$state" | jq '{runs: ((.runs // 0) + 1)}'
"#;

/// etcd, one master and their slaves, in a house.
struct Tier {
    house: House,
    etcd: Option<Process>,
    master: Option<Process>,
    callback: String,
}

impl Tier {
    async fn make() -> Option<Self> {
        if Command::new("etcdctl").arg("version").output().is_err() {
            kontrol_tests::skip("there is no etcdctl: apt-get install etcd-client");
            return None;
        }
        let house = House::start().await?;
        let path = house.dir().join("callback");
        fs::write(&path, CALLBACK).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        house.succeeds("mkdir -p /opt/backup").await;
        Some(Self {
            callback: path.to_str().unwrap().to_owned(),
            house,
            etcd: None,
            master: None,
        })
    }

    /// Starts etcd on this folder, and a master on it.
    async fn start(&mut self, folder: &str, damper: &str) {
        let text = format!("exec etcd --data-dir {folder} --logger zap --log-level error");
        self.etcd = Some(self.house.start_shell("etcd", &text));
        self.house.succeeds("etcdctl endpoint health").await;
        let text = format!(
            "exec kontrol-master --store etcd://127.0.0.1:2379 --ttl 5s --damper {damper} --callback {}",
            self.callback
        );
        self.master = Some(self.house.start_shell("master", &text));
        self.house.succeeds("kontrol-master health").await;
    }

    async fn stop(&mut self) {
        for process in [self.master.take(), self.etcd.take()].iter_mut().flatten() {
            process.signal(Signal::TERM);
            process.ended(SOON).await;
        }
    }

    fn slave(&self, number: u32) -> Process {
        let text = format!(
            "exec kontrol-slave --master 127.0.0.1 --id web-{number} --ip 10.0.0.{number} --labels '{{\"app\":\"a\",\"role\":\"web\"}}'"
        );
        self.house.start_shell(&format!("web-{number}"), &text)
    }

    /// What a command of the master's tells as JSON.
    async fn tells(&self, command: &str) -> anyhow::Result<Value> {
        let ran = self
            .house
            .shell(&format!("kontrol-master {command} --output json"))
            .await;
        ensure!(ran.status.success(), "{ran:?}");
        serde_json::from_str(&ran.output).context(ran.output)
    }

    /// Waits until these pods, by their numbers, are in the roster, in this order, and were handled; tells their seqs.
    async fn handled(&self, numbers: &[u32]) -> Vec<u64> {
        let wanted: Vec<String> = numbers
            .iter()
            .map(|number| format!("web-{number}"))
            .collect();
        eventually(SOON * 2, &format!("{wanted:?}, handled"), async || {
            let pods = self.tells("pods").await?;
            let pods = pods["pods"].as_array().context("no pods")?;
            let ids: Vec<&str> = pods.iter().filter_map(|pod| pod["id"].as_str()).collect();
            let status = self.tells("status").await?;
            ensure!(
                ids == wanted && status["digest"] == status["handledDigest"],
                "{ids:?}, {status}"
            );
            Ok(pods.iter().filter_map(|pod| pod["seq"].as_u64()).collect())
        })
        .await
    }

    /// Runs a block of the guide, which must succeed.
    async fn runs(&self, mark: &str) {
        let ran = self.house.shell(&format!("set -e\n{}", block(mark))).await;
        assert!(ran.status.success(), "{ran:?}");
    }

    /// The states that the callback was handed so far.
    async fn states(&self) -> Vec<Value> {
        let text = self.house.succeeds("cat /opt/states").await;
        let states = text.lines().map(|line| serde_json::from_str(line).unwrap());
        states.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_goes_back_to_its_copy_and_an_empty_one_takes_the_state() {
    let _permit = small().await;
    let Some(mut tier) = Tier::make().await else {
        return;
    };
    tier.start("/opt/etcd", "200ms").await;
    let _first = tier.slave(1);
    tier.handled(&[1]).await;
    let mut second = tier.slave(2);
    let seqs = tier.handled(&[1, 2]).await;
    tier.runs(SAVE).await;
    let copy = tier.tells("state").await.unwrap();
    assert_eq!(copy, json!({"runs": tier.states().await.len()}));

    // What comes behind the copy: one is gone without a word, one is new.
    second.kill();
    let _third = tier.slave(3);
    let later = tier.handled(&[1, 3]).await;
    tier.stop().await;
    tier.runs(RESTORE).await;
    let before = tier.states().await.len();
    tier.start("/opt/etcd", "200ms").await;
    let back = tier.handled(&[1, 3]).await;
    assert_eq!(back[0], seqs[0], "who reports keeps its seq");
    assert_eq!(
        back[1], later[1],
        "a seq that the copy does not know is given again"
    );
    let explained = tier.house.shell("kontrol-master explain 10.0.0.2").await;
    assert!(explained.output.contains("EXPIRED"), "{explained:?}");
    assert_eq!(
        tier.states().await[before],
        copy,
        "the callback goes on from there"
    );

    // A tier that knows nothing, whose pods report again.
    tier.stop().await;
    let before = tier.states().await.len();
    tier.start("/opt/empty", "5s").await;
    tier.runs(STATE).await;
    let pods = tier.tells("pods").await.unwrap();
    assert!(pods["pods"].is_array(), "{pods}");
    tokio::time::timeout(Duration::from_secs(60), async {
        let two = async |numbers: [u32; 2]| tier.handled(&numbers).await;
        // They come in the order in which they are heard.
        tokio::select! { seqs = two([1, 3]) => seqs, seqs = two([3, 1]) => seqs }
    })
    .await
    .unwrap();
    assert_eq!(
        tier.states().await[before],
        copy,
        "the first run knows the state"
    );
}
