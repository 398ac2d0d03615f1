//! What a master says at its start of how open it is, and what whoever comes wrongly is told.

use super::{Secured, text, token};
use kontrol_tests::{
    SOON,
    client::exchange,
    node::{Master, command, run},
    small,
    wait::eventually,
};
use std::{fs, process::Command};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn refusal(words: &[&str]) -> String {
    let mut master: Command = command("kontrol-master");
    master.args(["--port", "0"]).args(words);
    let output = run(master).await;
    assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_by_accident_does_not_start() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path)
    };
    let (_, line) = token("reader", "r");
    let (good, bad, empty) = (
        file("good", &line),
        file("bad", "reader r geheim"),
        file("empty", ""),
    );
    for (words, said) in [
        (
            &["--bind", "0.0.0.0"][..],
            &["--bind", "--tokens", "--insecure"][..],
        ),
        (&["--bind", "::"], &["--bind", "--insecure"]),
        (&["--tokens", &bad], &["--tokens", "line 1", "sha256:"]),
        (
            &["--tokens", "/no/such/file"],
            &["--tokens", "/no/such/file"],
        ),
        (&["--client-ca", &empty], &["--client-ca", "--tls-cert"]),
        (&["--tls-cert", &empty], &["--tls-cert", "--tls-key"]),
        (
            &["--tls-cert", &empty, "--tls-key", &good],
            &["--tls-cert", "--tls-key"],
        ),
        (&["--hosts", "http://a"], &["--hosts"]),
        (&["--hosts", "a:8000"], &["--hosts", "without ports"]),
    ] {
        let told = refusal(words).await;
        for part in said {
            assert!(told.contains(part), "{words:?} lacks {part}: {told}");
        }
        assert!(!told.contains("geheim"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_asks_nobody_beyond_loopback_says_so() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    for (metric, environment) in [("1", &[("KONTROL_INSECURE", "yes")][..]), ("0", &[])] {
        let environment = environment.iter();
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let bind = vec![(
            "bind".to_owned(),
            if metric == "1" {
                "0.0.0.0"
            } else {
                "127.0.0.1"
            }
            .to_owned(),
        )];
        let mut master = Master::new(
            &format!("m{metric}"),
            bind,
            environment.collect(),
            dir.path(),
        );
        master.start().await;
        let metrics = exchange("GET", &format!("{}/metrics", master.url()), "", Vec::new())
            .await
            .unwrap();
        let line = format!("\nkontrol_master_insecure {metric}\n");
        assert!(metrics.body.contains(&line), "{}", metrics.body);
        let warns = master
            .log()
            .lines()
            .any(|line| line.contains("WARN") && line.contains("insecure"));
        assert_eq!(warns, metric == "1", "{}", master.log());
        master.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_of_somebody_else_is_refused_but_to_probes() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    let settings = vec![("hosts".to_owned(), "masters.example".to_owned())];
    let mut master = Master::new("m", settings, Vec::new(), dir.path());
    master.start().await;
    let port = master.port();
    let ask = async |path: &str, host: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer[9..12].to_owned()
    };
    for (path, host, status) in [
        ("/v1/ensemble", "127.0.0.1", "200"),
        ("/v1/ensemble", "localhost:99", "200"),
        ("/v1/ensemble", "masters.example:8000", "200"),
        ("/v1/ensemble", "10.9.8.7", "200"),
        ("/v1/ensemble", "evil.example", "421"),
        ("/v1/state", "localhost.evil.example", "421"),
        ("/metrics", "evil.example", "421"),
        ("/openapi.json", "evil.example", "421"),
        ("/nothing", "evil.example", "421"),
        ("/healthz", "evil.example", "200"),
        ("/readyz", "10-1-2-3.pods", "200"),
    ] {
        assert_eq!(ask(path, host).await, status, "{path} {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_on_a_tls_port_is_told_to_use_tls() {
    let _permit = small().await;
    let (_, line) = token("reader", "r");
    let secured = Secured::start(&[], &[&line]).await;
    let url = format!("http://127.0.0.1:{}/v1/state", secured.master.port());
    let answer = exchange("GET", &url, "", Vec::new()).await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("this port speaks TLS"),
        "{}",
        answer.body
    );
    let api =
        kontrol_tests::client::Api::new(format!("http://127.0.0.1:{}", secured.master.port()));
    let status = api.state().await.unwrap_err();
    assert!(
        status.message().contains("this port speaks TLS"),
        "{status:?}"
    );
    // The audit tells of TLS that failed, with the reason.
    let mut stream = TcpStream::connect(("127.0.0.1", secured.master.port()))
        .await
        .unwrap();
    stream
        .write_all(&[22, 3, 1, 0, 4, 9, 9, 9, 9])
        .await
        .unwrap();
    eventually(SOON, "an audit line", async || {
        let log = secured.master.log();
        anyhow::ensure!(log.contains("TLS refused"), "{log}");
        Ok(())
    })
    .await;
}
