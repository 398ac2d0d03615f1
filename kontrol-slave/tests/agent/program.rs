//! The built program: exit codes, signals, files.

use crate::master::{Master, Reply, SOON};
use kontrol_slave::payload::from_proto;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};
use tokio::time::timeout;

const LABELS: &str = r#"{"app":"web","role":"front"}"#;
const LONG: Duration = Duration::from_secs(3600);

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kontrol-slave"));
    // Settings of whoever runs the tests are not ours.
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn wrong_settings_are_told_one_line_each_and_end_with_code_2() {
    let output = program()
        .env("KONTROL_MASTER", "ftp://m")
        .env("KONTROL_IP", "nowhere")
        .args([
            "--labels",
            r#"{"app":"web"}"#,
            "--podinfo",
            "/nowhere/at/all",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let lines = lines(&output);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for flag in ["--master", "--ip", "--podinfo"] {
        let start = format!("kontrol-slave: {flag}: ");
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "{flag} in {lines:?}"
        );
    }
}

#[test]
fn an_unknown_flag_ends_with_code_2() {
    let output = program().arg("--no-such-flag").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn sigterm_says_down_and_ends_with_code_0() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    let folder = tempfile::tempdir().unwrap();
    let payload = folder.path().join("payload.json");
    fs::write(&payload, "1").unwrap();
    let child = program()
        .env("KONTROL_MASTER", master.address())
        .env("KONTROL_LABELS", LABELS)
        .env("KONTROL_ID", "web-1")
        .env("KONTROL_PAYLOAD", &payload)
        .spawn()
        .unwrap();
    let first = master.hears(1).await[0].request.clone();
    assert_eq!(
        (first.id.as_str(), first.ip.as_str()),
        ("web-1", "127.0.0.1")
    );
    assert_eq!(from_proto(first.payload.unwrap()), Ok(json!(1)));
    fs::write(&payload, "{\"load\": 2}").unwrap();
    let second = master.hears(2).await[1].request.clone();
    assert_eq!(from_proto(second.payload.unwrap()), Ok(json!({"load": 2})));

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = timeout(SOON, ended).await.unwrap().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", lines(&output));
    let heard = master.stop().await;
    let last = &heard.last().unwrap().request;
    assert!(last.down && last.nonce == first.nonce);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    let mut child = program()
        .env("KONTROL_MASTER", master.address())
        .env("KONTROL_LABELS", LABELS)
        .spawn()
        .unwrap();
    master.hears(1).await;
    // The goodbye goes unanswered, so there is time for a second signal.
    master.now(Reply::Hang);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    master.hears(2).await;
    // Not before it counts: who signals a process and then its group means one thing.
    tokio::time::sleep(Duration::from_millis(600)).await;
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let status = timeout(SOON, ended).await.unwrap().unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    master.stop().await;
}

#[tokio::test]
async fn two_signals_at_once_are_one_and_leave_time_for_the_goodbye() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    let mut child = program()
        .env("KONTROL_MASTER", master.address())
        .env("KONTROL_LABELS", LABELS)
        .spawn()
        .unwrap();
    master.hears(1).await;
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let status = timeout(SOON, ended).await.unwrap().unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(master.stop().await.last().unwrap().request.down);
}

#[tokio::test]
async fn a_hangup_ends_it_without_a_goodbye_and_not_where_it_is_ignored() {
    for ignored in [false, true] {
        let mut master = Master::start(Reply::Accept(LONG)).await;
        let mut command = Command::new("sh");
        let trap = if ignored { "trap '' HUP; " } else { "" };
        let run = format!("{trap}exec {}", env!("CARGO_BIN_EXE_kontrol-slave"));
        let mut child = command
            .args(["-c", &run])
            .env_clear()
            .env("KONTROL_MASTER", master.address())
            .env("KONTROL_LABELS", LABELS)
            .spawn()
            .unwrap();
        master.hears(1).await;
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::HUP).unwrap();
        if ignored {
            // It goes on, and says goodbye when it is really meant.
            kill_process(pid, Signal::TERM).unwrap();
        }
        let ended = tokio::task::spawn_blocking(move || child.wait());
        let status = timeout(SOON, ended).await.unwrap().unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
        assert_eq!(master.stop().await.last().unwrap().request.down, ignored);
    }
}

/// Prints what an idle slave costs; run it by hand with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "measures for a minute, checks nothing"]
async fn idle_cost() {
    let mut master = Master::start(Reply::Accept(Duration::from_secs(5))).await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("labels"),
        "app=\"web\"\nrole=\"front\"\n",
    )
    .unwrap();
    fs::write(folder.path().join("payload.json"), "1").unwrap();
    let mut child = program()
        .env("KONTROL_MASTER", master.address())
        .env("KONTROL_PODINFO", folder.path())
        .env("KONTROL_PAYLOAD", folder.path().join("payload.json"))
        .spawn()
        .unwrap();
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap();
    // User and system time, in hundredths of a second.
    let ticks = || -> u64 {
        let stat = proc("stat");
        let fields: Vec<&str> = stat.split_whitespace().collect();
        fields[13].parse::<u64>().unwrap() + fields[14].parse::<u64>().unwrap()
    };
    master.hears(2).await;
    let (before, start) = (ticks(), master.heard().len());
    tokio::time::sleep(Duration::from_secs(60)).await;
    println!(
        "CPU: {} ms a minute, {} keepalives",
        (ticks() - before) * 10,
        master.heard().len() - start
    );
    let status = proc("status");
    for name in ["VmRSS", "RssAnon", "RssFile", "Threads"] {
        println!(
            "{}",
            status.lines().find(|line| line.starts_with(name)).unwrap()
        );
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    master.stop().await;
}

#[tokio::test]
async fn sigterm_ends_it_in_time_though_no_master_was_ever_reached() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut child = tokio::process::Command::from({
        let mut command = program();
        command
            .env("KONTROL_MASTER", address)
            .env("KONTROL_LABELS", LABELS);
        command
    })
    .spawn()
    .unwrap();
    // It connected, so it is up and its keepalive is under way.
    let (_silent, _) = tokio::task::spawn_blocking(move || listener.accept())
        .await
        .unwrap()
        .unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = timeout(Duration::from_secs(5), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}
