//! Limits that an operator has lowered: whatever exceeds one is told so by its flag and counted, and a keepalive beside it is
//! answered all the same.

use anyhow::ensure;
use kontrol_proto::v1::WatchRequest;
use kontrol_tests::{
    SOON,
    action::{all, shell},
    client::{Api, Http, exchange},
    cluster::Cluster,
    pod::PodSpec,
    small,
    wait::eventually,
};
use serde_json::json;
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};

const JSON: &str = "application/json";

async fn tier(settings: &[(&str, &str)]) -> Cluster {
    let tier = Cluster::on("memory:").patient();
    let tier = settings
        .iter()
        .fold(tier, |tier, (flag, value)| tier.set(flag, value));
    tier.start().await
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, flag: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(flag), "{status:?}");
}

/// One that is in the roster already, with its next keepalive.
async fn pod_zero_is_served(api: &Api) {
    api.ping(&PodSpec::number(0)).await.unwrap();
    assert_eq!(put(api, &PodSpec::number(0)).await.status, 200);
    assert_eq!(api.http("GET", "/healthz", None).await.status, 200);
}

async fn put(api: &Api, pod: &PodSpec) -> Http {
    api.http("PUT", "/ping", Some(&pod.json())).await
}

/// Waits for it: the look itself may be one too many for a moment.
async fn is_counted(api: &Api, queue: &str) {
    let count = format!("kontrol_master_turned_away_total{{queue=\"{queue}\"}} ");
    eventually(SOON, &count, async || {
        let url = format!("{}/metrics", api.url());
        let metrics = exchange("GET", &url, "", Vec::new()).await?;
        ensure!(metrics.status == 200, "{}", metrics.body);
        let mut lines = metrics.body.lines();
        let line = lines.find_map(|line| line.strip_prefix(&count));
        ensure!(line.is_some_and(|line| line != "0"), "{line:?}");
        Ok(())
    })
    .await;
}

/// Sends what may be only a part of a request, and keeps the connection.
async fn send(cluster: &Cluster, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.masters[0].address())
        .await
        .unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// What comes until the master closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // A connection that is closed with something unread is reset.
    let read = timeout(SOON, stream.read_to_end(&mut text)).await;
    let _ = read.expect("the master closes the connection");
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_and_callers_say_is_held_to_what_the_master_was_told_to_take() {
    let _permit = small().await;
    let cluster = tier(&[
        ("max-payload", "1KiB"),
        ("max-json-depth", "3"),
        ("max-labels", "3"),
        ("max-pods", "2"),
        ("max-request", "16KiB"),
        ("max-dispatches", "1"),
        // Nobody is attached: an action waits for that long.
        ("lost", "60s"),
    ])
    .await;
    let api = cluster.api(0);
    for number in [0, 1] {
        api.ping(&PodSpec::number(number)).await.unwrap();
    }
    let zero = || PodSpec::number(0);
    let named = |count: u32| (0..count).map(|n| (n.to_string(), "v".repeat(4000)));
    for (pod, flag) in [
        (zero().payload(json!("x".repeat(1023))), "--max-payload"),
        (zero().payload(json!([[[[]]]])), "--max-json-depth"),
        (
            PodSpec {
                annotations: named(4).map(|(name, _)| (name, String::new())).collect(),
                ..zero()
            },
            "--max-labels",
        ),
        (
            PodSpec {
                annotations: named(3)
                    .chain([("x".repeat(300), "v".repeat(4096))])
                    .collect(),
                ..zero()
            },
            "--max-request",
        ),
    ] {
        refused(api.ping(&pod).await, Code::InvalidArgument, flag);
        let over_http = put(&api, &pod).await;
        assert_eq!(over_http.status, 400);
        assert!(over_http.body.contains(flag), "{}", over_http.body);
    }
    let fits = zero().payload(json!("x".repeat(1022)));
    let fits = PodSpec {
        annotations: BTreeMap::from_iter(named(3)),
        ..fits
    };
    api.ping(&fits).await.unwrap();

    let full = api.ping(&PodSpec::number(2)).await;
    refused(full, Code::ResourceExhausted, "its 2 pods (--max-pods)");
    assert_eq!(put(&api, &PodSpec::number(2)).await.status, 429);
    is_counted(&api, "pods").await;

    let deep = api.put_state(&json!([[[[]]]])).await;
    refused(deep, Code::InvalidArgument, "--max-json-depth");
    let long = json!("x".repeat(17_000));
    let put = api.put_state(&long).await;
    refused(put, Code::InvalidArgument, "--max-request");
    let body = json!({ "state": long }).to_string().into_bytes();
    let over_http = api.raw("PUT", "/v1/state", JSON, body).await;
    assert_eq!(over_http.status, 400);
    assert!(over_http.body.contains("--max-request"));
    is_counted(&api, "sizes").await;

    let _going = api.dispatch(shell(all(), "true")).await.unwrap();
    let second = api.dispatch(shell(all(), "true")).await;
    refused(
        second.map(drop),
        Code::ResourceExhausted,
        "--max-dispatches",
    );
    is_counted(&api, "actions").await;
    pod_zero_is_served(&api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_reads_beyond_what_one_caller_may_have_are_turned_away() {
    let _permit = small().await;
    let cluster = tier(&[("max-watchers", "2"), ("max-rate", "200")]).await;
    let api = cluster.api(0);
    pod_zero_is_served(&api).await;
    let first = api.watch(0).await.unwrap();
    let _second = api.lines("/v1/watch", "*/*").await;
    let third = api.ensembles().watch(WatchRequest::default()).await;
    refused(third.map(drop), Code::ResourceExhausted, "--max-watchers");
    assert_eq!(api.http("GET", "/v1/watch", None).await.status, 429);
    is_counted(&api, "streams").await;
    pod_zero_is_served(&api).await;
    drop(first);
    eventually(SOON, "place of a watch that was given up", async || {
        Ok(api.watch(0).await.map(drop)?)
    })
    .await;

    let status = eventually(SOON, "read that is one too many", async || {
        let reads = (0..400).map(|_| api.ensemble());
        let reads = futures::future::join_all(reads).await;
        let refused = reads.into_iter().find_map(Result::err);
        refused.ok_or_else(|| anyhow::anyhow!("all of them were answered"))
    })
    .await;
    refused(Err::<(), _>(status), Code::ResourceExhausted, "--max-rate");
    pod_zero_is_served(&api).await;
    eventually(SOON, "answer to a caller that waited", async || {
        Ok(api.ensemble().await?)
    })
    .await;
    is_counted(&api, "rate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_at_enough_turns_reads_away_and_serves_keepalives() {
    let _permit = small().await;
    let cluster = tier(&[("max-requests", "1")]).await;
    let api = cluster.api(0);
    pod_zero_is_served(&api).await;
    // The body of this one never comes. It may itself be turned away, while another has the only place.
    let head = "PUT /v1/state HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    let busy = eventually(SOON, "request that has the place", async || {
        let mut stream = send(&cluster, head).await;
        let mut answer = [0; "HTTP/1.1 100".len()];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == b"HTTP/1.1 100", "{answer:?}");
        Ok(stream)
    })
    .await;
    let read = api.http("GET", "/v1/ensemble", None).await;
    assert_eq!(read.status, 429, "{read:?}");
    refused(
        api.ensemble().await,
        Code::ResourceExhausted,
        "--max-requests",
    );
    let read = "GET /v1/ensemble HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = rest(send(&cluster, read).await).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    is_counted(&api, "requests").await;
    pod_zero_is_served(&api).await;
    drop(busy);
    eventually(SOON, "place of a request that was given up", async || {
        Ok(api.ensemble().await?)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_too_many_or_say_nothing_are_closed() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:")
        .patient()
        .set("max-connections-each", "4")
        .set("head-timeout", "2s")
        .set("idle-timeout", "30s")
        .build();
    cluster.masters[0].start().await;
    cluster.ready().await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    // Of those that the harness has made some may go on; all that come beyond are closed at once.
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(send(&cluster, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await);
    }
    // It never ends its head, so that nothing but the master closes it.
    let last = open.pop().unwrap();
    assert_eq!(rest(last).await, "");
    api.ping(&PodSpec::number(0)).await.unwrap();
    for stream in open {
        let said = rest(stream).await;
        assert!(
            said.is_empty() || said.starts_with("HTTP/1.1 408 "),
            "{said}"
        );
    }
    api.ping(&PodSpec::number(0)).await.unwrap();
    is_counted(&api, "connections").await;
}
