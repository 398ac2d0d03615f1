//! The other variables, one by one.

use super::{Alone, LABELS, master, slave};
use anyhow::ensure;
use kontrol_proto::v1::Pod;
use kontrol_tests::{
    SOON,
    client::Api,
    etcd::Etcd,
    house::House,
    node::{command, run},
    pod::{PodSpec, from_proto, key_of},
    small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::fs;

/// Waits for the one pod of a master.
async fn pod(api: &Api) -> Pod {
    eventually(SOON, "a pod", async || {
        let mut pods = api.pods().await?.pods;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(pods.remove(0))
    })
    .await
}

/// In a network of its own, for etcd must have its own port.
#[tokio::test(flavor = "multi_thread")]
async fn kontrol_etcd_is_a_host() {
    let _permit = small().await;
    // Said aloud where it is not installed.
    let (Some(_etcd), Some(house)) = (Etcd::start().await, House::start().await) else {
        return;
    };
    let data = house.dir().join("etcd");
    let _own = house.start_shell(
        "own-etcd",
        &format!("exec etcd --data-dir {}", data.display()),
    );
    let _masters = [8000, 8001].map(|port| {
        let text = format!(
            "KONTROL_ETCD=127.0.0.1 KONTROL_PORT={port} KONTROL_ID=m{port} exec kontrol-master"
        );
        house.start_shell(&format!("master-{port}"), &text)
    });
    house
        .succeeds("curl -fsS -X PUT localhost:8000/ping -d '{\"app\":\"a\",\"id\":\"x\",\"ip\":\"10.0.0.9\",\"role\":\"b\"}'")
        .await;
    let seen = "KONTROL_ENDPOINT=http://127.0.0.1:8001 kontrol-master pods --output json";
    house
        .succeeds(&format!("{seen} | grep -q '\"id\":\"x\"'"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_and_labels_are_the_prefix_in_etcd() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let list = etcd.endpoints().join(",");
    for (variables, prefix) in [
        (vec![("NAMESPACE", "prod")], "/kontrol/prod/default/"),
        (vec![LABELS], "/kontrol/default/web/"),
        (vec![("NAMESPACE", "prod"), LABELS], "/kontrol/prod/web/"),
    ] {
        let variables = [&[("KONTROL_ETCD", list.as_str())], &variables[..]].concat();
        let mut master = master("master", &variables, dir.path());
        master.start().await;
        master.ready().await;
        master.api().ping(&PodSpec::number(0)).await.unwrap();
        let key = format!("{prefix}pods/{}", PodSpec::number(0).expected_key());
        let found = etcd.read(&key).await;
        assert_eq!(found.len(), 1, "{key}");
        master.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_mode_slave_master_verbose() {
    let _permit = small().await;
    for (mode, is_verbose) in [("slave,master,verbose", true), ("slave,master", false)] {
        let mut alone =
            Alone::start(&[("KONTROL_MODE", mode), LABELS, ("KONTROL_IP", "127.33.0.1")]).await;
        let own = pod(&alone.master.api()).await;
        assert_eq!(
            (own.ip.as_str(), own.app.as_str(), own.role.as_str()),
            ("127.33.0.1", "web", "worker")
        );
        eventually(SOON, "its own channel", async || {
            let log = alone.master.log();
            ensure!(log.contains("ready for actions"), "{log}");
            Ok(())
        })
        .await;
        // That it ends only debug lines tell.
        assert!(alone.master.stop().await.success());
        let log = alone.master.log();
        assert_eq!(log.contains(" DEBUG "), is_verbose, "{mode}: {log}");
    }
    for (program, mode, said) in [
        (
            "kontrol-master",
            "slave",
            "a slave alone is the program kontrol-slave",
        ),
        ("kontrol-master", "debug", "`debug` is no mode any more"),
        ("kontrol-slave", "master", "the program kontrol-master"),
        (
            "kontrol-slave",
            "slave,master",
            "the program kontrol-master",
        ),
    ] {
        let mut command = command(program);
        command
            .env("KONTROL_MODE", mode)
            .env("KONTROL_MASTER", "m")
            .env(LABELS.0, LABELS.1);
        let output = run(command).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), text.lines().count()),
            (Some(2), 1),
            "{text}"
        );
        assert!(text.contains(said), "{program} {mode}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slave_takes_mode_id_ip_labels_and_payload() {
    let _permit = small().await;
    let mut alone = Alone::start(&[]).await;
    let payload = alone.dir.path().join("payload.json");
    let slave = alone.slave(&[
        ("KONTROL_MODE", "slave,verbose"),
        ("KONTROL_ID", "redis-1"),
        ("KONTROL_IP", "172.16.123.1"),
        (
            "KONTROL_LABELS",
            r#"{"app":"cache","role":"redis","tier":"1"}"#,
        ),
        ("KONTROL_PAYLOAD", payload.to_str().unwrap()),
    ]);
    let api = alone.master.api();
    let told = pod(&api).await;
    assert_eq!(
        (told.id.as_str(), told.ip.as_str(), told.key.as_str()),
        ("redis-1", "172.16.123.1", "39mysN")
    );
    assert_eq!(
        (
            told.app.as_str(),
            told.role.as_str(),
            told.labels["tier"].as_str()
        ),
        ("cache", "redis", "1")
    );
    // There is no file yet.
    assert_eq!(from_proto(told.payload.as_ref()), json!(""));
    for text in [r#"{"some": "stuff"}"#, r#"{"some": "more"}"#] {
        fs::write(&payload, text).unwrap();
        let wanted: Value = serde_json::from_str(text).unwrap();
        eventually(SOON, "the payload", async || {
            let told = from_proto(pod(&api).await.payload.as_ref());
            ensure!(told == wanted, "{told}");
            Ok(())
        })
        .await;
    }
    alone.master.kill();
    eventually(SOON, "a debug line of what broke", async || {
        ensure!(slave.log().contains(" DEBUG "), "{}", slave.log());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_annotations_name_the_masters() {
    let _permit = small().await;
    let (one, two) = (Alone::start(&[]).await, Alone::start(&[]).await);
    for (number, name) in [(1, "kontrol.unity3d.com/master"), (2, "kontrol/master")] {
        // With commas: each of them hears of the pod.
        let masters = format!("{},{}", one.master.address(), two.master.address());
        let annotations = json!({name: masters, "note": "é"}).to_string();
        let (ip, id) = (format!("127.34.0.{number}"), format!("pod-{number}"));
        let variables = [
            ("KONTROL_ANNOTATIONS", annotations.as_str()),
            ("KONTROL_ID", id.as_str()),
            ("KONTROL_IP", ip.as_str()),
            LABELS,
        ];
        let _slave = slave(&id, &variables, one.dir.path());
        for alone in [&one, &two] {
            let told = eventually(SOON, "the pod", async || {
                Ok(alone.master.api().pod(&key_of(&ip)).await?)
            })
            .await;
            assert_eq!(told.annotations["note"], "é");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_callback_and_kontrol_shell_callback() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    for (number, variables) in [
        // Found in PATH, with arguments.
        vec![("KONTROL_CALLBACK", "touch FILE")],
        // As the image of the Python Kontrol always set it.
        vec![
            ("KONTROL_CALLBACK", "touch FILE"),
            ("KONTROL_SHELL_CALLBACK", "FALSE"),
        ],
        vec![
            ("KONTROL_CALLBACK", "echo | cat > FILE"),
            ("KONTROL_SHELL_CALLBACK", "TRUE"),
        ],
        vec![("KONTROL_SHELL_CALLBACK", "echo | cat > FILE")],
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join(number.to_string());
        let fitted: Vec<(&str, String)> = variables
            .iter()
            .map(|(name, value)| (*name, value.replace("FILE", file.to_str().unwrap())))
            .collect();
        let mut all: Vec<(&str, &str)> = fitted
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        all.push(("KONTROL_DAMPER", "0"));
        let alone = Alone::start(&all).await;
        alone.master.api().ping(&PodSpec::number(0)).await.unwrap();
        eventually(SOON, "a run", async || {
            ensure!(file.exists(), "{variables:?}: {}", alone.master.log());
            Ok(())
        })
        .await;
    }
}
