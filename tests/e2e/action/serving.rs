//! Actions over HTTP, in the watch, and from the callback.

use super::{alone, tier};
use anyhow::ensure;
use kontrol_proto::v1::watch_response::Event;
use kontrol_tests::{
    SOON,
    action::{all, argv},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

/// The output of curl.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sN", "-m", "20"])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_served_over_http_as_lines_and_as_events() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let url = format!("{}/v1/actions", cluster.masters[0].url());
    let request = json!({
        "selector": {"keys": [crew::key(0)]},
        "command": {"argv": ["echo", "hi"]},
        "timeout": "5s", "maxOutput": 1000,
    })
    .to_string();
    let told = lines(&curl(&["-d", &request, &url]));
    let kinds: Vec<&str> = told
        .iter()
        .map(|line| line.as_object().unwrap().keys().next().unwrap().as_str())
        .collect();
    assert_eq!(
        kinds,
        ["accepted", "started", "output", "finished", "summary"]
    );
    assert_eq!(told[2]["output"]["data"], "aGkK");
    assert_eq!(told[3]["finished"]["outcome"], "OUTCOME_EXITED");
    let id = told[0]["accepted"]["actionId"].as_str().unwrap();

    let events = curl(&["-H", "accept: text/event-stream", "-d", &request, &url]);
    let data: Vec<&str> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(data.len(), 5, "{events}");

    let api = cluster.api(0);
    let action = api
        .http("GET", &format!("/v1/actions/{id}"), None)
        .await
        .ok();
    assert_eq!(action["action"]["results"][0]["exitCode"], 0);
    assert_eq!(action["action"]["command"]["argv"], json!(["echo", "hi"]));
    let listed = api.http("GET", "/v1/actions?page_size=1", None).await.ok();
    assert_eq!(listed["actions"].as_array().unwrap().len(), 1);
    let token = listed["nextPageToken"].as_str().unwrap();
    let rest = api
        .http("GET", &format!("/v1/actions?pageToken={token}"), None)
        .await
        .ok();
    assert_eq!(rest["actions"][0]["id"], id, "the newest comes first");
    assert_eq!(rest["nextPageToken"], "");
    let cancelled = api
        .http("POST", &format!("/v1/actions/{id}:cancel"), None)
        .await
        .ok();
    assert_eq!(cancelled["finished"], true);
    for (method, path, body, status) in [
        ("POST", "/v1/actions".to_owned(), json!({}), 400),
        ("GET", "/v1/actions/x".to_owned(), Value::Null, 400),
        (
            "GET",
            format!("/v1/actions/{}", "0".repeat(28)),
            Value::Null,
            404,
        ),
        (
            "POST",
            format!("/v1/actions/{}:cancel", "0".repeat(28)),
            json!({}),
            404,
        ),
    ] {
        let body = Some(&body).filter(|body| !body.is_null());
        let answer = api.http(method, &path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert!(answer.json()["message"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_over_http_that_hangs_up_cancels() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let url = format!("{}/v1/actions", cluster.masters[0].url());
    let request = json!({"selector": {"all": true}, "command": {"shell": "sleep 600"}}).to_string();
    let told = curl(&["-m", "2", "-d", &request, &url]);
    let id = lines(&told)[0]["accepted"]["actionId"]
        .as_str()
        .unwrap()
        .to_owned();
    let api = cluster.api(0);
    eventually(SOON, "cancelled action", async || {
        let summary = api.action(&id).await?.summary.unwrap();
        ensure!(summary.cancelled == 1, "{summary:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_any_master_tells_of_actions() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let (cluster, _crew) = tier(&etcd, 2).await;
    let mut watch = cluster.api(2).watch(0).await.unwrap();
    let told = cluster.api(0).run(argv(all(), &["false"])).await;
    let started = watch
        .until(SOON, "start", |message| match &message.event {
            Some(Event::ActionStarted(started)) => started.action.clone(),
            _ => None,
        })
        .await;
    assert_eq!(
        (started.id.as_str(), started.summary.unwrap().targets),
        (told.action.as_str(), 2)
    );
    let finished = watch
        .until(SOON, "end", |message| match &message.event {
            Some(Event::ActionFinished(finished)) => finished.action.clone(),
            _ => None,
        })
        .await;
    assert_eq!(
        (finished.id.as_str(), finished.summary.unwrap().failed),
        (told.action.as_str(), 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_acts_on_the_pods_that_it_was_told_about() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(3).patient().build();
    let marks = cluster.dir.path().join("marks");
    let callback = cluster.dir.path().join("callback");
    let text = format!(
        r#"#!/bin/sh
# Every pod that joined gets an action, by curl.
for key in $(python3 -c 'import json,os; print(*[p["key"] for p in json.load(open(os.environ["CHANGES_FILE"]))["joined"]])'); do
    curl -sSN "$KONTROL_ENDPOINT/v1/actions" -d "{{\"selector\":{{\"keys\":[\"$key\"]}},\"command\":{{\"shell\":\"echo \$KONTROL_KEY >> {}\"}}}}" | grep -q '"succeeded":1' || exit 1
done
echo '"acted"'
"#,
        marks.display()
    );
    fs::write(&callback, text).unwrap();
    fs::set_permissions(&callback, fs::Permissions::from_mode(0o755)).unwrap();
    for master in &mut cluster.masters {
        master.set("callback", callback.to_str().unwrap());
    }
    for index in 0..3 {
        cluster.masters[index].start().await;
    }
    cluster.ready().await;
    let _crew = Crew::start(&mut cluster, 6).await;
    cluster.handled(0, 6).await;
    let mut marked: Vec<String> = fs::read_to_string(&marks)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    marked.sort_unstable();
    let mut keys: Vec<String> = (0..6).map(crew::key).collect();
    keys.sort_unstable();
    assert_eq!(marked, keys);
}
