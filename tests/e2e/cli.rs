//! The command line of `kontrol-master`: clients of any master, and `--help`.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{command, run},
    pod::{PodSpec, integer},
    process::Process,
    small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::process::Output;

/// Runs a client command against a master.
async fn client(url: &str, arguments: &[&str]) -> Output {
    let mut client = command("kontrol-master");
    client.args(arguments).args(["--endpoint", url]);
    run(client).await
}

/// Runs a client command that must succeed and print JSON.
async fn json_of(url: &str, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    let output = client(url, &all).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error} in {arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        )
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_print_what_any_master_knows() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    for number in 0..3 {
        cluster.api(0).ping(&PodSpec::number(number)).await.unwrap();
    }
    let view = cluster
        .ensemble(1, "three pods", |view| view.pod_count == 3)
        .await;
    let url = cluster.masters[1].url();
    let status = json_of(&url, &["status"]).await;
    assert_eq!(status["digest"], view.digest.as_str());
    assert_eq!(integer(&status["podCount"]), 3);
    assert_eq!(status["masters"].as_array().unwrap().len(), 2);
    let pods = json_of(&url, &["pods"]).await;
    let pods = pods.get("pods").unwrap_or(&pods).as_array().unwrap();
    let ids: Vec<_> = pods.iter().map(|pod| &pod["id"]).collect();
    assert_eq!(ids, ["pod-0", "pod-1", "pod-2"]);
    cluster.api(0).put_state(&json!({"a": [1]})).await.unwrap();
    eventually(SOON, "state on the command line", async || {
        let state = json_of(&url, &["state"]).await;
        ensure!(
            state == json!({"a": [1]}) || state["state"] == json!({"a": [1]}),
            "{state}"
        );
        Ok(())
    })
    .await;
    let key = PodSpec::number(0).expected_key();
    let explained = json_of(&url, &["explain", &key]).await;
    assert_eq!(explained["live"], true);
    assert_eq!(explained["key"], key.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_a_line_for_each_event() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let mut watch = command("kontrol-master");
    watch.args([
        "watch",
        "--output",
        "json",
        "--endpoint",
        &cluster.masters[0].url(),
    ]);
    let log = cluster.dir.path().join("watch.log");
    let process = Process::spawn("watch", &mut watch, &log);
    eventually(SOON, "snapshot", async || {
        ensure!(process.log().contains("snapshot"), "{}", process.log());
        Ok(())
    })
    .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    eventually(SOON, "joined pod", async || {
        let log = process.log();
        ensure!(log.contains("podJoined") && log.contains("pod-0"), "{log}");
        for line in log.lines() {
            serde_json::from_str::<Value>(line)?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_master_fails_with_one_clear_line() {
    let _permit = small().await;
    let url = format!("http://127.0.0.1:{}", kontrol_tests::ports::free());
    let output = client(&url, &["status"]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn help_tells_every_flag_with_its_variable_and_default() {
    let _permit = small().await;
    let mut help = command("kontrol-master");
    help.arg("--help");
    let output = run(help).await;
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in [
        "port",
        "bind",
        "advertise",
        "store",
        "ttl",
        "damper",
        "damper-max",
        "fover",
        "callback",
        "shell-callback",
        "callback-timeout",
        "mode",
        "upstream",
    ] {
        assert!(text.contains(&format!("--{flag}")), "--{flag} in {text}");
        let variable = format!("KONTROL_{}", flag.replace('-', "_").to_uppercase());
        assert!(text.contains(&variable), "{variable} in {text}");
    }
    for word in [
        "status",
        "pods",
        "watch",
        "state",
        "explain",
        "NAMESPACE",
        "KONTROL_APP",
        "memory:",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}
