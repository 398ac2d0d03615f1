//! The logs: what is promised to be in them is in them, and whoever stops reading them stops nothing else.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    action::{all, ids, shell},
    cluster::Cluster,
    crew,
    etcd::Etcd,
    node::{Slave, program},
    pod::PodSpec,
    process::Process,
    small,
    wait::eventually,
};
use rustix::{fs::OFlags, process::Signal};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Command,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_callback_says_on_standard_error_is_logged_in_each_format() {
    let _permit = small().await;
    for (format, verbose) in [
        ("text", false),
        ("text", true),
        ("json", false),
        ("json", true),
    ] {
        let mut tier = Cluster::on("memory:")
            .patient()
            .set("log-format", format)
            .set(
                "shell-callback",
                r#"echo 'one "line"' >&2; printf 'and another' >&2"#,
            );
        if verbose {
            tier = tier.env("KONTROL_VERBOSE", "1");
        }
        let cluster = tier.start().await;
        cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
        cluster.handled(0, 1).await;
        eventually(SOON, "what it said", async || {
            let log = cluster.masters[0].log();
            for line in ["one \"line\"", "and another"] {
                let json = serde_json::json!({"level": "INFO", "message": line});
                let is_it = |text: &str| match serde_json::from_str::<serde_json::Value>(text) {
                    Ok(told) => json
                        .as_object()
                        .unwrap()
                        .iter()
                        .all(|(name, value)| told[name] == *value),
                    Err(_) => text.contains("INFO") && text.ends_with(line),
                };
                let told = log.lines().filter(|text| is_it(text)).count();
                ensure!(
                    told == 1,
                    "{format} {verbose}: {line:?} {told} times in {log}"
                );
            }
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_a_callback_leaves_behind_is_ended_and_named() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:")
        .patient()
        .set(
            "shell-callback",
            "setsid sleep 600 & while ! pgrep -P $$ -x sleep; do :; done >/dev/null",
        )
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    cluster.handled(0, 1).await;
    eventually(SOON, "word of it", async || {
        let log = cluster.masters[0].log();
        let line = log
            .lines()
            .find(|line| line.contains("left processes behind"));
        ensure!(line.is_some_and(|line| line.contains("sleep")), "{log}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_no_json_is_said_once_and_so_is_its_recovery() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let file = cluster.dir.path().join("payload");
    fs::write(&file, "1").unwrap();
    let (address, path) = (cluster.masters[0].address(), file.display().to_string());
    let settings = [
        ("master", address.as_str()),
        ("id", "a"),
        ("labels", r#"{"app":"web","role":"web"}"#),
        ("payload", path.as_str()),
    ];
    let slave = Slave::start("a", &settings, cluster.dir.path());
    cluster
        .ensemble(0, "the pod", |view| view.pod_count == 1)
        .await;
    let said = async |part: &str| {
        eventually(SOON, part, async || {
            let log = slave.log();
            ensure!(log.matches(part).count() == 1, "{log}");
            Ok(())
        })
        .await;
    };
    fs::write(&file, "{").unwrap();
    said("not valid JSON").await;
    fs::write(&file, "{ ").unwrap();
    fs::write(&file, "2").unwrap();
    said("the payload file is good again").await;
    said("not valid JSON").await;
}

/// A log that is full from the start, and stays so while nobody reads it.
struct Stalled {
    /// Both ends of the pipe.
    pipe: File,
    path: String,
}

impl Stalled {
    fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name).display().to_string();
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let mut options = File::options();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        options.read(true).write(true).custom_flags(flags);
        let mut pipe = options.open(&path).unwrap();
        while pipe.write(&[b'\n'; 4096]).is_ok() {}
        Self { pipe, path }
    }

    /// Starts a program with this as its standard error.
    fn start(&self, name: &str, arguments: &[&str], folder: &Path) -> Process {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"exec "$@" 2>"$LOG""#, "sh"])
            .arg(program(name))
            .args(arguments)
            .env("LOG", &self.path)
            .env("KONTROL_INSECURE", "1");
        Process::spawn(name, &mut command, &folder.join(format!("{name}.out")))
    }

    /// Reads until something was said.
    async fn says(&mut self, part: &str) {
        let mut log = String::new();
        let pipe = &mut self.pipe;
        eventually(SOON, part, async || {
            let mut bytes = vec![0; 1 << 20];
            while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                log.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
            ensure!(log.contains(part), "{} bytes", log.len());
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_nothing_and_tells_what_it_lost() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().build();
    let folder = cluster.dir.path();
    let (mut log, slaves_log) = (
        Stalled::new(folder, "master"),
        Stalled::new(folder, "slave"),
    );
    let (port, address) = (
        cluster.masters[0].port().to_string(),
        cluster.masters[0].address(),
    );
    // More than may wait.
    let callback = "yes 'a line that nobody reads' | head -c 12000000 >&2; echo 1";
    let arguments = [
        "--port",
        &port,
        "--damper",
        "300ms",
        "--shell-callback",
        callback,
    ];
    let mut master = log.start("kontrol-master", &arguments, folder);
    let api = cluster.api(0);
    eventually(SOON, "a master", async || Ok(api.ensemble().await?)).await;
    let labels = r#"{"app":"web","role":"web"}"#;
    let arguments = ["--master", &address, "--id", "a", "--labels", labels];
    let mut slave = slaves_log.start("kontrol-slave", &arguments, folder);
    eventually(SOON, "an attached slave", async || {
        ensure!(crew::attached_to(&cluster.masters[0].url()).await? == 1);
        Ok(())
    })
    .await;
    assert_eq!(api.run(shell(all(), "echo done")).await.text(), "done\n");
    cluster.handled(0, 1).await;
    assert_eq!(api.http("GET", "/readyz", None).await.status, 200);
    let lost = |metrics: &str| {
        let name = "kontrol_master_log_lines_dropped_total ";
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.parse::<f64>().ok())
    };
    let metrics = api.http("GET", "/metrics", None).await.body;
    assert!(
        lost(&metrics).is_some_and(|lost| lost > 1000.0),
        "{metrics}"
    );
    log.says("log lines were lost").await;
    // And it fills again.
    slave.signal(Signal::TERM);
    assert_eq!(slave.ended(SOON).await.code(), Some(0));
    master.signal(Signal::TERM);
    assert_eq!(master.ended(SOON).await.code(), Some(0));
}

/// What belongs together can be found by one word: the epoch of a term, the id of an action, the address of a peer.
#[tokio::test(flavor = "multi_thread")]
async fn lines_tell_their_term_their_action_and_their_peer() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .set("log-format", "json")
        .set("shell-callback", "echo heard >&2")
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    let view = cluster.handled(0, 1).await;
    let id = cluster
        .api(0)
        .run(shell(ids(&["nobody"]), "true"))
        .await
        .action;
    let leader = cluster.leader().await;
    let said = |master: usize, message: &str, span: &Value| {
        let log = cluster.masters[master].log();
        let lines: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        lines
            .iter()
            .any(|line| line["message"] == message && line["span"] == *span)
    };
    let term = json!({"name": "term", "epoch": view.epoch});
    let action = json!({"name": "dispatch", "action": id});
    let link = json!({"name": "link", "peer": cluster.masters[leader].address()});
    eventually(SOON, "lines with their spans", async || {
        for (master, message, span) in [
            (leader, "starting the callback", &term),
            (leader, "heard", &term),
            (0, "action ended", &action),
            (1 - leader, "following the leader", &link),
        ] {
            let log = cluster.masters[master].log();
            ensure!(
                said(master, message, span),
                "{message} {span} is not in {log}"
            );
        }
        Ok(())
    })
    .await;
}
