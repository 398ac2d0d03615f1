//! `HASH`, `PODS` and `STATE`, as a callback in Python read them: from its environment alone.

use super::{Alone, LABELS};
use anyhow::ensure;
use kontrol_tests::{
    SOON,
    pod::{PodSpec, md5},
    skip, small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// It writes down what it was given, and counts its runs in its state.
const CALLBACK: &str = r#"#!/usr/bin/env python3
import json, os, sys
pods = json.loads(os.environ["PODS"])
state = json.loads(os.environ["STATE"]) if "STATE" in os.environ else {"runs": 0}
for pod in pods:
    print(" - #%d (%s) -> %s" % (pod["seq"], pod["key"], pod["ip"]), file=sys.stderr)
names = ["HASH", "MD5", "PODS", "STATE", "KONTROL_ID", "NAMESPACE", "MINE"]
with open(sys.argv[1], "a") as file:
    print(json.dumps({name: os.environ.get(name) for name in names}), file=file)
state["runs"] += 1
print(json.dumps(state))
"#;

/// A callback in this folder, with an argument, as `KONTROL_CALLBACK` had it: the file that it writes.
fn callback(dir: &Path) -> (String, std::path::PathBuf) {
    let (program, runs) = (dir.join("callback"), dir.join("runs"));
    fs::write(&program, CALLBACK).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (format!("{} {}", program.display(), runs.display()), runs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_reads_hash_pods_and_state_of_its_environment() {
    let _permit = small().await;
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3 is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let (callback, runs) = callback(dir.path());
    let alone = Alone::start(&[
        ("KONTROL_CALLBACK", &callback),
        ("KONTROL_DAMPER", "0"),
        ("KONTROL_ID", "monitor-1"),
        ("NAMESPACE", "prod"),
        ("MINE", "kept"),
        LABELS,
    ])
    .await;
    let api = alone.master.api();
    let mut seen = Vec::new();
    for number in 0..2 {
        let pod = PodSpec::number(number).payload(json!({"n": number}));
        api.ping(&pod).await.unwrap();
        let run = eventually(SOON, "a run", async || {
            let text = fs::read_to_string(&runs).unwrap_or_default();
            ensure!(text.lines().count() == number as usize + 1, "{text}");
            Ok(serde_json::from_str::<Value>(text.lines().last().unwrap())?)
        })
        .await;
        let view = api.ensemble().await.unwrap();
        assert_eq!(run["HASH"], view.digest);
        assert_eq!(run["MD5"], view.digest);
        let text = run["PODS"].as_str().unwrap();
        assert_eq!(md5(text), view.digest);
        let pods: Vec<Value> = serde_json::from_str(text).unwrap();
        assert_eq!(pods.len(), number as usize + 1);
        for (seq, pod) in pods.iter().enumerate() {
            let spec = PodSpec::number(seq as u32);
            let classic = json!({
                "app": spec.app, "id": spec.id, "ip": spec.ip, "key": spec.expected_key(), "nonce": spec.nonce,
                "payload": {"n": seq}, "role": spec.role, "seq": seq,
            });
            for (name, value) in classic.as_object().unwrap() {
                assert_eq!(pod[name], *value, "{name}");
            }
            // What is new.
            assert!(
                pod["labels"].is_object() && pod["node"].is_string(),
                "{pod}"
            );
            assert_eq!(pod.as_object().unwrap().len(), 10);
        }
        // The environment of the master is the callback's.
        assert_eq!(
            (&run["KONTROL_ID"], &run["NAMESPACE"], &run["MINE"]),
            (&json!("monitor-1"), &json!("prod"), &json!("kept"))
        );
        seen.push(run["STATE"].clone());
    }
    assert_eq!(seen, [Value::Null, json!(r#"{"runs":1}"#)]);
    // The classic route wraps it now.
    let state = eventually(SOON, "the state of the second run", async || {
        let state = api.http("GET", "/state", None).await.ok();
        ensure!(state["state"]["runs"] == 2, "{state}");
        Ok(state)
    })
    .await;
    assert_eq!(state["digest"], api.ensemble().await.unwrap().digest);
    let log = alone.master.log();
    assert!(
        log.contains(" - #1 (") && log.contains("127.10.0.2"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_or_prints_nothing_leaves_the_state_and_an_empty_roster_runs_nothing() {
    let _permit = small().await;
    let text = r#"case "$PODS" in *pod-2*) exit 3 ;; *pod-1*) ;; *) echo '{"a":1}' ;; esac"#;
    let alone = Alone::start(&[("KONTROL_SHELL_CALLBACK", text), ("KONTROL_DAMPER", "0")]).await;
    let api = alone.master.api();
    let runs = async || api.ensemble().await.unwrap().callback.unwrap().last_run;
    assert_eq!(runs().await, None);
    for (number, code) in [(0, 0), (1, 0), (2, 3)] {
        api.ping(&PodSpec::number(number)).await.unwrap();
        let digest = api.ensemble().await.unwrap().digest;
        eventually(SOON, "the run", async || {
            let run = runs().await;
            let is_it = run
                .as_ref()
                .is_some_and(|run| run.digest == digest && run.exit_code == code);
            ensure!(is_it, "{run:?}");
            Ok(())
        })
        .await;
        let state = api.http("GET", "/state", None).await.ok();
        assert_eq!(state["state"], json!({"a": 1}), "{state}");
    }
}
