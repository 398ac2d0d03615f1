//! What the programs inherit from whatever starts them: nothing of it changes what they do, or how they end.

use anyhow::ensure;
use kontrol_proto::v1::Outcome;
use kontrol_tests::{
    SOON,
    action::{all, shell},
    cluster::Cluster,
    crew,
    node::{command, program, run},
    pod::{PodSpec, from_proto, to_proto},
    process::Process,
    small,
    wait::eventually,
};
use rustix::process::Signal;
use serde_json::json;
use std::{fs, os::fd::OwnedFd, process::Command};

/// A program that is started behind some words, which change what it inherits.
fn behind(words: &[&str], name: &str, arguments: &[&str]) -> Command {
    let mut command = command(name);
    let mut other = Command::new(words[0]);
    other.args(&words[1..]).arg(program(name)).args(arguments);
    other.env_clear();
    for (name, value) in command.env("KONTROL_INSECURE", "1").get_envs() {
        other.env(name, value.unwrap_or_default());
    }
    other
}

const LABELS: [&str; 2] = ["--labels", r#"{"app":"web","role":"web"}"#];
/// Of coreutils; the first program of a script that leaks them, as a service with a signalfd does.
const SIGNALS: [&str; 3] = [
    "env",
    "--block-signal=CHLD,TERM,INT,XFSZ,PIPE",
    "--ignore-signal=CHLD,USR1,QUIT,XFSZ",
];

#[tokio::test(flavor = "multi_thread")]
async fn blocked_and_ignored_signals_change_nothing_and_are_not_passed_on() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().build();
    let port = cluster.masters[0].port().to_string();
    let address = cluster.masters[0].address();
    // Signals 32 and 33 belong to the C library, which lets nobody change them: they stay as this test was started.
    let callback = r#"grep -h Sig /proc/self/status | grep -cE 'Sig(Blk|Ign):.0{7}[01][08]0{7}$'"#;
    let arguments = [
        "--port",
        &port,
        "--damper",
        "300ms",
        "--shell-callback",
        callback,
    ];
    let mut master = Process::spawn(
        "master",
        &mut behind(&SIGNALS, "kontrol-master", &arguments),
        &cluster.dir.path().join("m.log"),
    );
    let api = cluster.api(0);
    eventually(SOON, "a master", async || Ok(api.ensemble().await?)).await;
    let arguments = [&["--master", &address, "--id", "a"][..], &LABELS].concat();
    let mut slave = Process::spawn(
        "slave",
        &mut behind(&SIGNALS, "kontrol-slave", &arguments),
        &cluster.dir.path().join("s.log"),
    );
    attached(&cluster).await;
    let text = "sleep 0.1; grep -hE 'Sig(Blk|Ign)' /proc/self/status";
    let told = api.run(shell(all(), text)).await;
    assert_eq!(told.only().exit_code, 0, "{told:?}");
    for line in told.text().lines() {
        let mask = line
            .rsplit('\t')
            .next()
            .and_then(|mask| u64::from_str_radix(mask, 16).ok());
        assert_eq!(mask.map(|mask| mask & !(3 << 31)), Some(0), "{line}");
    }
    // Two lines of zeros are what the callback counts, and its state.
    eventually(SOON, "state", async || {
        let state = api.state().await?;
        ensure!(from_proto(state.state.as_ref()) == json!(2), "{state:?}");
        Ok(())
    })
    .await;
    for process in [&mut slave, &mut master] {
        process.signal(Signal::TERM);
        assert_eq!(process.ended(SOON).await.code(), Some(0));
    }
}

async fn attached(cluster: &Cluster) {
    let url = cluster.masters[0].url();
    eventually(SOON, "an attached slave", async || {
        ensure!(crew::attached_to(&url).await? == 1);
        Ok(())
    })
    .await;
}

/// The soft and the hard limit of open files of a process.
fn open_files(pid: i32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().map(str::to_owned);
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_may_open_what_it_may_and_passes_on_what_it_was_given() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().build();
    let few = ["sh", "-c", r#"ulimit -Sn 300 && exec "$@""#, "sh"];
    let port = cluster.masters[0].port().to_string();
    let address = cluster.masters[0].address();
    let arguments = [
        "--port",
        &port,
        "--damper",
        "300ms",
        "--shell-callback",
        "ulimit -Sn",
    ];
    let master = Process::spawn(
        "master",
        &mut behind(&few, "kontrol-master", &arguments),
        &cluster.dir.path().join("m.log"),
    );
    let api = cluster.api(0);
    eventually(SOON, "a master", async || Ok(api.ensemble().await?)).await;
    // 256 commands at once take more than the soft limit.
    let arguments = [
        &["--master", &address, "--id", "a", "--max-actions", "256"][..],
        &LABELS,
    ]
    .concat();
    let slave = Process::spawn(
        "slave",
        &mut behind(&few, "kontrol-slave", &arguments),
        &cluster.dir.path().join("s.log"),
    );
    attached(&cluster).await;
    for process in [&master, &slave] {
        let (soft, hard) = open_files(process.pid());
        assert_eq!(soft, hard, "{}", process.name());
    }
    let told = api.run(shell(all(), "ulimit -Sn")).await;
    assert_eq!(told.text(), "300\n");
    eventually(SOON, "state", async || {
        let state = api.state().await?;
        ensure!(from_proto(state.state.as_ref()) == json!(300), "{state:?}");
        Ok(())
    })
    .await;
}

/// No file at all can be written: neither the log, nor what a command is handed in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_kills_neither_a_slave_nor_its_commands() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let address = cluster.masters[0].address();
    let none = ["sh", "-c", r#"ulimit -f 0 && exec "$@""#, "sh"];
    let arguments = [&["--master", &address, "--id", "a"][..], &LABELS].concat();
    let mut slave = Process::spawn(
        "slave",
        &mut behind(&none, "kontrol-slave", &arguments),
        &cluster.dir.path().join("s.log"),
    );
    attached(&cluster).await;
    let mut request = shell(all(), "cat | wc -c; exit 3");
    // More than a pipe holds.
    request.command.as_mut().unwrap().input = Some(to_proto(&json!("x".repeat(200_000))));
    let told = cluster.api(0).run(request).await;
    let result = told.only();
    assert_eq!(
        (result.outcome(), result.exit_code),
        (Outcome::Exited, 3),
        "{told:?}"
    );
    assert_eq!(told.text().trim(), "200003");
    slave.signal(Signal::TERM);
    assert_eq!(slave.ended(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_path_a_callback_finds_programs_and_the_masters_own() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().build();
    let port = cluster.masters[0].port().to_string();
    let callback = "command -v kontrol-master >&2 && command -v sleep >&2 && echo true";
    let mut command = Command::new(program("kontrol-master"));
    command.env_clear().args([
        "--port",
        &port,
        "--damper",
        "300ms",
        "--shell-callback",
        callback,
    ]);
    let _master = Process::spawn("master", &mut command, &cluster.dir.path().join("m.log"));
    let api = cluster.api(0);
    eventually(SOON, "a pod", async || {
        Ok(api.ping(&PodSpec::number(0)).await?)
    })
    .await;
    eventually(SOON, "state", async || {
        let state = api.state().await?;
        ensure!(from_proto(state.state.as_ref()) == json!(true), "{state:?}");
        Ok(())
    })
    .await;
}

/// Wrong settings end with code 2 and a failure with 1, whether anybody can be told why or not.
#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_as_promised_when_standard_error_takes_nothing() {
    let _permit = small().await;
    let full = || -> OwnedFd {
        fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into()
    };
    let gone = || -> OwnedFd { std::io::pipe().unwrap().1.into() };
    let (_reader, stalled) = std::io::pipe().unwrap();
    fill(&stalled);
    let stalled = || -> OwnedFd { stalled.try_clone().unwrap().into() };
    for (name, arguments, code) in [
        ("kontrol-master", &["--port", "x"][..], 2),
        ("kontrol-master", &["--bogus"], 2),
        ("kontrol-master", &["exec", "--bogus"], 2),
        (
            "kontrol-master",
            &["--bind", "192.0.2.1", "--insecure", "--port", "0"],
            1,
        ),
        ("kontrol-slave", &[], 2),
        ("kontrol-slave", &["--bogus"], 2),
    ] {
        for (what, stderr) in [("full", full()), ("gone", gone()), ("stalled", stalled())] {
            let mut command = command(name);
            command.args(arguments);
            // Its output is not the standard error that `run` would read.
            let status = tokio::task::spawn_blocking(move || command.stderr(stderr).status());
            let status = tokio::time::timeout(SOON, status)
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            assert_eq!(status.code(), Some(code), "{name} {arguments:?}, {what}");
        }
    }
}

/// Fills a pipe, so that whoever writes to it next waits for a reader.
fn fill(pipe: &std::io::PipeWriter) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(pipe));
    let mut options = fs::File::options();
    options
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    // A description of its own, so that only this one does not wait.
    let mut pipe = options.open(own).unwrap();
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
}

/// A Service named `kontrol`, `kontrol-master` or `kontrol-slave` puts these into every pod of its namespace.
#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_kubernetes_services_are_no_settings() {
    let _permit = small().await;
    let mut links = Vec::new();
    for service in ["KONTROL", "KONTROL_MASTER", "KONTROL_SLAVE"] {
        for protocol in ["TCP", "UDP", "SCTP"] {
            let url = format!("{}://10.96.0.10:8000", protocol.to_lowercase());
            let port = format!("{service}_PORT_8000_{protocol}");
            links.push((format!("{service}_PORT"), url.clone()));
            links.push((format!("{port}_PROTO"), protocol.to_lowercase()));
            links.push((format!("{port}_PORT"), "8000".into()));
            links.push((format!("{port}_ADDR"), "10.96.0.10".into()));
            links.push((port, url));
        }
        links.push((format!("{service}_SERVICE_HOST"), "10.96.0.10".into()));
        links.push((format!("{service}_SERVICE_PORT"), "8000".into()));
        links.push((format!("{service}_SERVICE_PORT_HTTP"), "8000".into()));
    }
    for (program, arguments, said) in [
        // Only what is wrong beside them is told.
        ("kontrol-master", &["--mode=boss"][..], "--mode: "),
        ("kontrol-slave", &["--mode=boss"], "--master: "),
        (
            "kontrol-master",
            &["pods", "--endpoint=127.0.0.1:1"],
            "127.0.0.1:1",
        ),
    ] {
        let mut command = command(program);
        command
            .envs(links.iter().map(|(name, value)| (name, value)))
            .args(arguments);
        let output = run(command).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said) && !text.contains("10.96"), "{text}");
    }
}
