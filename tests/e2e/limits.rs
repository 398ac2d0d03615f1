//! What the documents promise to take passes through every interface, and not one byte more.

mod lowered;

use super::action::alone;
use anyhow::ensure;
use kontrol_proto::v1::PutStateRequest;
use kontrol_tests::{
    SOON,
    action::{all, shell},
    cluster::Cluster,
    etcd::Etcd,
    node::command,
    pod::{PodSpec, to_proto},
    small,
    wait::eventually,
};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Output, Stdio},
};
use tonic::Code;

const MIB: usize = 1024 * 1024;

/// JSON of so many bytes in as many values as fit: it takes the most room everywhere but in text.
fn bits(bytes: usize) -> String {
    let first = if bytes.is_multiple_of(2) { "10" } else { "1" };
    let text = format!("[{first}{}]", ",0".repeat((bytes - 2 - first.len()) / 2));
    assert_eq!(text.len(), bytes);
    text
}

/// Runs a command of the client with this file as its standard input.
async fn client(cluster: &Cluster, arguments: &[&str], input: Option<&str>) -> Output {
    let mut command: Command = command("kontrol-master");
    command
        .env("KONTROL_ENDPOINT", cluster.masters[0].url())
        .args(arguments);
    let stdin = input.map(|name| fs::File::open(cluster.dir.path().join(name)).unwrap());
    command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
    kontrol_tests::node::run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_state_goes_in_and_out_everywhere() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).patient().build();
    let printed = cluster.dir.path().join("printed");
    let callback = format!("cat {}", printed.display());
    cluster.masters[0].set("shell-callback", &callback);
    cluster.masters[0].set("damper", "0");
    // As a person would lay it out: white space does not count.
    let state = bits(MIB);
    fs::write(&printed, state.replace(',', ",\n")).unwrap();
    cluster.masters[0].launch();
    cluster.ready().await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    eventually(SOON, "state that the callback printed", async || {
        ensure!(api.state().await?.json == state);
        Ok(())
    })
    .await;
    let over_http = api.http("GET", "/v1/state", None).await;
    assert!(over_http.body.contains(&format!("\"state\":{state},")));

    // What each gives back, each takes.
    let shown = client(&cluster, &["state", "--output", "json"], None).await;
    assert_eq!(shown.stdout, format!("{state}\n").into_bytes());
    fs::write(cluster.dir.path().join("shown"), &shown.stdout).unwrap();
    let put = client(&cluster, &["state", "put", "-"], Some("shown")).await;
    assert!(put.status.success(), "{put:?}");
    let put = |state: &str| format!("{{\"state\":{state}}}").into_bytes();
    let kind = "application/json";
    let answer = api.raw("PUT", "/v1/state", kind, put(&state)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let value: Value = serde_json::from_str(&state).unwrap();
    api.put_state(&value).await.unwrap();
    let request = PutStateRequest {
        json: state.clone(),
        ..PutStateRequest::default()
    };
    api.ensembles().put_state(request).await.unwrap();

    let larger = bits(MIB + 1);
    let limit = format!("{} bytes of JSON, and {MIB} are the limit", MIB + 1);
    let answer = api.raw("PUT", "/v1/state", kind, put(&larger)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains(&limit), "{}", answer.body);
    let value: Value = serde_json::from_str(&larger).unwrap();
    let status = api.put_state(&value).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains(&limit), "{status}");
    assert_eq!(api.state().await.unwrap().json, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_input_reaches_the_command_from_everywhere() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    let input = bits(MIB);
    fs::write(cluster.dir.path().join("input"), &input).unwrap();
    let counted = (MIB + 1).to_string();

    let arguments = ["exec", "--all", "--output", "raw", "--input", "-"];
    let arguments = [&arguments[..], &["--shell", "wc -c"]].concat();
    let ran = client(&cluster, &arguments, Some("input")).await;
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout).trim(),
        counted,
        "{ran:?}"
    );

    let mut request = shell(all(), "wc -c");
    let value: Value = serde_json::from_str(&input).unwrap();
    request.command.as_mut().unwrap().input = Some(to_proto(&value));
    assert_eq!(api.run(request).await.text().trim(), counted);

    let body = |input: &str| {
        let command = format!("{{\"shell\":\"wc -c\",\"input\":{input}}}");
        format!("{{\"selector\":{{\"all\":true}},\"command\":{command}}}").into_bytes()
    };
    let kind = "application/json";
    let answer = api.raw("POST", "/v1/actions", kind, body(&input)).await;
    assert!(answer.body.contains("\"succeeded\":1"), "{}", answer.body);
    let answer = api
        .raw("POST", "/v1/actions", kind, body(&bits(MIB + 1)))
        .await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("command.input has 1048577 bytes"),
        "{}",
        answer.body
    );
}
