//! Plain HTTP, as curl speaks it, through the proxies that pass requests.

use super::{
    AS_SHOWN,
    proxy::Kind,
    scene::{Plan, Scene, Tls},
};
use anyhow::ensure;
use kontrol_tests::{SOON, node::run, process::Process, small, wait::eventually};
use serde_json::Value;
use std::time::Duration;

/// Of the certificate of no master, and with a dot.
const NAME: &str = "kontrol.example.org";

async fn http_is_served(kind: Kind) {
    let _permit = small().await;
    let plan = Plan {
        kind,
        tls: Tls::AtTheProxy,
        ttl: Duration::from_secs(60),
        ..AS_SHOWN
    };
    let Some(scene) = Scene::start(plan).await else {
        return;
    };
    let dir = scene.cluster.dir.path();
    let watch = |name: &str, words: &[&str]| {
        Process::spawn(
            name,
            &mut scene.curl("operator", "/v1/watch", words),
            &dir.join(name),
        )
    };
    let sse = ["-H", "accept: text/event-stream"];
    let watches = [
        watch("ndjson", &["--http1.1"]),
        watch("ndjson-2", &["--http2"]),
        watch("sse", &[&["--http1.1"][..], &sse].concat()),
        watch("sse-2", &[&["--http2"][..], &sse].concat()),
    ];
    let shown = async |text: &str| {
        for watch in &watches {
            eventually(SOON, &format!("{text} on {}", watch.name()), async || {
                ensure!(watch.log().contains(text), "{}", watch.log());
                Ok(())
            })
            .await;
        }
    };
    shown("snapshot").await;

    for (index, http) in ["--http1.1", "--http2"].into_iter().enumerate() {
        // One connection and request each, as the classic slave has it.
        let id = format!("pod-by-hand-{index}");
        let body = format!(r#"{{"app":"a","id":"{id}","ip":"127.32.0.{index}","role":"b"}}"#);
        let output = run(scene.curl("slave", "/ping", &[http, "-X", "PUT", "-d", &body])).await;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["seq"], 2 + index, "{answer}");
        // At once, and not once some buffer is full.
        shown(&id).await;
    }
    // A sign of life.
    for sse in &watches[2..] {
        eventually(SOON, "comment", async || {
            ensure!(
                sse.log().lines().any(|line| line.starts_with(':')),
                "{}",
                sse.log()
            );
            Ok(())
        })
        .await;
    }

    let body = r#"{"selector":{"ids":["pod-0","pod-1"]},"command":{"shell":"echo one; sleep 1; echo two"}}"#;
    let output = run(scene.curl("operator", "/v1/actions", &["-d", body])).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.matches("OUTCOME_EXITED").count(), 2, "{lines}");
    assert!(lines.contains(r#""succeeded":2"#), "{lines}");

    // haproxy passes on by what name it was called, nginx does not: masters that are not told of it refuse plain HTTP.
    let host = format!("host: {NAME}");
    let output =
        run(scene.curl("operator", "/v1/pods", &["-w", "%{http_code}", "-H", &host])).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let status = if kind == Kind::NginxRequests {
        "200"
    } else {
        "421"
    };
    assert!(said.ends_with(status), "{said}");
    assert!(status == "200" || said.contains("--hosts"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_passes_nginx() {
    http_is_served(Kind::NginxRequests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_passes_haproxy() {
    http_is_served(Kind::HaproxyRequests).await;
}
