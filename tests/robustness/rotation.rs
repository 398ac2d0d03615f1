//! Tokens, certificates and the authority are replaced while pods report and an action runs: no pod is removed, no seq
//! changes, and the action's output is whole.

use anyhow::ensure;
use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use kontrol_runtime::testing::{Authority, write};
use kontrol_tests::{
    SOON,
    etcd::Etcd,
    heavy, node,
    node::{Master, Slave},
    process::Process,
    wait::{eventually, throughout},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

const PODS: usize = 8;
const HOST: &str = "127.0.0.1";

/// A secured tier of two masters, and its pods.
struct Tier {
    dir: TempDir,
    masters: Vec<Master>,
    slaves: Vec<Slave>,
    lines: BTreeMap<String, String>,
}

impl Tier {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn start(etcd: &Etcd) -> Self {
        let mut tier = Self {
            dir: tempfile::tempdir().unwrap(),
            masters: Vec::new(),
            slaves: Vec::new(),
            lines: BTreeMap::new(),
        };
        let ours = Authority::new("first");
        replace(&tier.path("ca.pem"), &ours.pem());
        tier.certify(&ours);
        tier.issue("peer", "peer", "masters");
        tier.issue("ann", "operator", "ann");
        for pod in 0..PODS {
            tier.issue(&format!("web-{pod}"), "slave", &format!("web-{pod}"));
        }
        tier.publish(&[]);
        let flags = [
            ("store", etcd.store()),
            ("ttl", "5s".into()),
            ("tls-cert", text(&tier.path("port.pem"))),
            ("tls-key", text(&tier.path("port.key"))),
            ("ca", text(&tier.path("ca.pem"))),
            ("tokens", text(&tier.path("tokens"))),
            ("token-file", text(&tier.path("peer"))),
        ];
        let flags: Vec<_> = flags.map(|(flag, value)| (flag.to_owned(), value)).into();
        let name = vec![("KONTROL_APP".to_owned(), "rotation".to_owned())];
        for id in ["m0", "m1"] {
            let mut master = Master::new(id, flags.clone(), name.clone(), tier.dir.path());
            master.launch();
            tier.masters.push(master);
        }
        for pod in 0..PODS {
            tier.slaves.push(tier.slave(pod));
        }
        eventually(SOON, "all pods", async || {
            let pods = tier.pods()?;
            ensure!(pods.len() == PODS, "{pods:?}");
            Ok(())
        })
        .await;
        tier
    }

    fn slave(&self, pod: usize) -> Slave {
        let id = format!("web-{pod}");
        let [first, second] = [&self.masters[pod % 2], &self.masters[(pod + 1) % 2]];
        let endpoints = format!("https://{}|https://{}", first.address(), second.address());
        let settings = [
            ("master", endpoints.as_str()),
            ("ca", &text(&self.path("ca.pem"))),
            ("token-file", &text(&self.path(&id))),
            ("id", &id),
            ("ip", &format!("127.0.9.{}", pod + 1)),
            ("labels", r#"{"app":"web","role":"web"}"#),
        ];
        Slave::start(&id, &settings, self.dir.path())
    }

    /// Makes a new token, in the file of its owner; its line counts once it is published.
    fn issue(&mut self, file: &str, role: &str, name: &str) {
        let mut command = node::command("kontrol-master");
        command.args(["token", "new", "--role", role, "--name", name]);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        replace(&self.path(file), &text);
        let line = text.lines().last().unwrap().to_owned();
        self.lines.insert(file.to_owned(), line);
    }

    /// Lets the tokens count that were made last, and these lines beside them.
    fn publish(&self, more: &[String]) {
        let lines: Vec<&str> = self
            .lines
            .values()
            .chain(more)
            .map(String::as_str)
            .collect();
        replace(&self.path("tokens"), &lines.join("\n"));
    }

    /// Gives the masters a new certificate.
    fn certify(&self, authority: &Authority) {
        let new = write(
            self.dir.path(),
            "new",
            &authority.sign(&[HOST, "localhost"]),
        );
        // The key first: for a moment both don't go together, which the masters must bear.
        fs::rename(new.key, self.path("port.key")).unwrap();
        fs::rename(new.cert, self.path("port.pem")).unwrap();
    }

    /// A command of the operator, who asks whichever master can answer.
    fn command(&self, words: &[&str]) -> Command {
        let urls: Vec<String> = self
            .masters
            .iter()
            .map(|master| format!("https://{}", master.address()))
            .collect();
        let mut command = node::command("kontrol-master");
        command
            .args(words)
            .env("KONTROL_ENDPOINT", urls.join(","))
            .env("KONTROL_CA", self.path("ca.pem"))
            .env("KONTROL_TOKEN_FILE", self.path("ann"));
        command
    }

    /// The seqs of the pods, by id.
    fn pods(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let output = self.command(&["pods", "--output", "json"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        let listed: Value = serde_json::from_slice(&output.stdout)?;
        let pods = listed["pods"].as_array().into_iter().flatten();
        Ok(pods
            .map(|pod| {
                (
                    pod["id"].as_str().unwrap_or_default().to_owned(),
                    pod["seq"].clone(),
                )
            })
            .collect())
    }

    /// Waits until each master has said something so many times.
    async fn said(&self, what: &str, times: usize) {
        eventually(SOON, what, async || {
            for master in &self.masters {
                let log = master.log();
                ensure!(log.matches(what).count() >= times, "{log}");
            }
            Ok(())
        })
        .await;
    }

    /// Replaces every token of a pod, as the operator's guide has it: both count for a while.
    async fn rotate_tokens(&mut self) {
        let old: Vec<String> = self.lines.values().cloned().collect();
        for pod in 0..PODS {
            let id = format!("web-{pod}");
            self.issue(&id, "slave", &id);
        }
        self.publish(&old);
        self.read_again().await;
        self.publish(&[]);
        self.read_again().await;
    }

    /// Waits until the masters have read their files once more.
    async fn read_again(&self) {
        let what = "read tokens, certificates and authorities again";
        let times = self
            .masters
            .iter()
            .map(|master| master.log().matches(what).count());
        let times = times.min().unwrap();
        self.said(what, times + 1).await;
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("tmp");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_is_replaced_under_load_and_nothing_is_lost() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut tier = Tier::start(&etcd).await;
    let before = tier.pods().unwrap();
    let log = tier.path("watch.log");
    let watch = Process::spawn(
        "watch",
        &mut tier.command(&["watch", "--output", "json"]),
        &log,
    );
    let stop = tier.path("stop");
    let script = format!(
        "n=0; until [ -e {} ]; do n=$((n+1)); echo $n; sleep 0.05; done; echo end",
        stop.display()
    );
    let out = tier.path("exec.log");
    let mut action = tier.command(&[
        "exec",
        "--all",
        "--output",
        "json",
        "--timeout",
        "5m",
        "--shell",
        &script,
    ]);
    let mut exec = Process::spawn("exec", &mut action, &out);
    eventually(SOON, "an action that runs everywhere", async || {
        let started = exec.log().matches("\"started\"").count();
        ensure!(started == PODS, "{}", exec.log());
        Ok(())
    })
    .await;

    tier.rotate_tokens().await;
    // The authority: the next one beside the first, then what the first signed, then the first goes.
    let (first, next) = (
        fs::read_to_string(tier.path("ca.pem")).unwrap(),
        Authority::new("next"),
    );
    replace(&tier.path("ca.pem"), &(first + &next.pem()));
    tier.certify(&next);
    tier.read_again().await;
    replace(&tier.path("ca.pem"), &next.pem());
    // So that everybody has to connect again, by the new authority alone.
    tier.rotate_tokens().await;
    for master in &mut tier.masters {
        assert!(master.running());
    }

    // Everybody has shown life since: nobody was removed while it could be.
    throughout(Duration::from_secs(6), "nobody who left", async || {
        ensure!(!watch.log().contains("\"left\""), "{}", watch.log());
        Ok(())
    })
    .await;
    fs::write(&stop, "").unwrap();
    let status = exec.ended(SOON).await;
    assert!(status.success(), "{status}: {}", exec.log());
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    for line in exec.log().lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let output = &message["output"];
        if let (Some(key), Some(data)) = (output["key"].as_str(), output["data"].as_str()) {
            let data = STANDARD.decode(data).unwrap();
            let data = String::from_utf8(data).unwrap();
            written.entry(key.to_owned()).or_default().push_str(&data);
        }
    }
    assert_eq!(written.len(), PODS);
    for (key, text) in written {
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.pop(), Some("end"), "{key}");
        let whole = lines
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == format!("{number}"));
        assert!(whole, "{key}: {lines:?}");
    }
    assert_eq!(tier.pods().unwrap(), before, "the pods and their seqs");
    let watched = watch.log();
    assert!(!watched.contains("\"left\""), "{watched}");
    assert!(watched.contains("\"snapshot\""), "{watched}");
}
