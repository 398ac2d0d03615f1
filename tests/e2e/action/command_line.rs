//! `kontrol-master exec` and `actions` as an operator uses them, and as a callback does.

use super::alone;
use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    crew::{self, Crew},
    node::{command, program, run},
    process::{Process, alive},
    small,
    wait::{eventually, throughout},
};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::ioctl_fionread,
    pipe::{PipeFlags, fcntl_getpipe_size, pipe_with},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    process::{Command, Output, Stdio},
    time::Duration,
};

fn exec(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = command("kontrol-master");
    command
        .env("KONTROL_ENDPOINT", cluster.masters[0].url())
        .arg("exec")
        .args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_shows_each_pod_and_exits_with_the_worst_code() {
    let _permit = small().await;
    let (cluster, _crew) = alone(3).await;
    let exec = async |arguments: &[&str]| -> Output { run(exec(&cluster, arguments)).await };

    let output = exec(&[
        "--all",
        "--output",
        "table",
        "--shell",
        "echo $KONTROL_ID; [ $KONTROL_ID != slave-1 ] || exit 7",
    ])
    .await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let expected = (0..3).map(|index| format!("slave-{index} | slave-{index}"));
    assert_eq!(lines, expected.collect::<Vec<_>>());
    let notes = text(&output.stderr);
    assert!(notes.contains("slave-1: exit code 7"), "{notes}");
    assert!(notes.contains("3 targets: 2 ok, 1 failed"), "{notes}");

    for (arguments, code) in [
        (&["--role", "web", "--", "true"][..], 0),
        (
            &["--id", "slave-0", "--timeout", "300ms", "--", "sleep", "60"],
            124,
        ),
        (&["--id", "slave-0,nobody", "--", "true"], 255),
        (&["--selector", "number=9", "--", "true"], 1),
        (&["--", "true"], 2),
        (&["--all", "--timeout", "x", "--", "true"], 2),
    ] {
        let output = exec(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }

    let output = exec(&["--id", "slave-2", "--", "echo", "hi"]).await;
    let told: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(told[4]["summary"]["succeeded"], 1);

    let output = exec(&[
        "--id",
        "slave-2",
        "--output",
        "raw",
        "--shell",
        "printf 'a\\377b'",
    ])
    .await;
    assert_eq!(output.stdout, b"a\xffb");

    let mut list = command("kontrol-master");
    list.env("KONTROL_ENDPOINT", cluster.masters[0].url())
        .args(["actions", "--output", "table", "--limit", "1"]);
    let listed = text(&run(list).await.stdout);
    assert!(
        listed.contains("finished") && listed.contains("printf"),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_or_a_reader_that_leaves_cancels_what_runs() {
    let _permit = small().await;
    let (cluster, _crew) = alone(2).await;
    let pids = cluster.dir.path().join("pids");
    // Nobody says anything before both have noted who they are: the first word may be what ends them.
    let line = format!(
        "echo $$ >> {0}; until [ $(wc -l < {0}) = 2 ]; do sleep 0.02; done; yes",
        pids.display()
    );
    let running = async || {
        eventually(SOON, "both commands", async || {
            let text = fs::read_to_string(&pids)?;
            let pids: Vec<i32> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
            ensure!(pids.len() == 2);
            Ok(pids)
        })
        .await
    };
    let dead = async |pids: &[i32]| {
        eventually(SOON, "end of the commands", async || {
            ensure!(!pids.iter().any(|pid| alive(*pid)));
            Ok(())
        })
        .await;
    };
    let sleeps = format!("echo $$ >> {}; sleep 600", pids.display());
    let mut command = exec(
        &cluster,
        &["--all", "--output", "table", "--shell", &sleeps],
    );
    let log = cluster.dir.path().join("exec.log");
    let mut process = Process::spawn("exec", &mut command, &log);
    let started = running().await;
    process.signal(Signal::INT);
    let status = process.ended(SOON).await;
    assert_eq!(status.code(), Some(130), "{}", process.log());
    assert!(process.log().contains("2 cancelled"), "{}", process.log());
    dead(&started).await;

    fs::remove_file(&pids).unwrap();
    let mut pipe = command_of_shell(&cluster, &line);
    let output = tokio::task::spawn_blocking(move || pipe.output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        text(&output.stdout).lines().collect::<Vec<_>>(),
        ["y", "141"],
        "{output:?}"
    );
    dead(&running().await).await;

    // A reader that is gone before anything is written.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = exec(
        &cluster,
        &["--all", "--output", "json", "--", "sleep", "60"],
    );
    command.stdout(writer);
    let gone = tokio::task::spawn_blocking(move || command.status());
    assert_eq!(gone.await.unwrap().unwrap().code(), Some(141));

    // A reader that reads nothing, as a pager.
    fs::remove_file(&pids).unwrap();
    let mut command = exec(
        &cluster,
        &[
            "--all",
            "--output",
            "raw",
            "--timeout",
            "1h",
            "--shell",
            &line,
        ],
    );
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let started = running().await;
    let stdout = child.stdout.take().unwrap();
    eventually(SOON, "a full pipe", async || {
        ensure!(ioctl_fionread(&stdout)? > 60_000);
        Ok(())
    })
    .await;
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    dead(&started).await;
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// `kontrol-master exec ... | head -1`, with the shell's own way of joining the two, and the exit code of the first.
fn command_of_shell(cluster: &Cluster, line: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .env("KONTROL_ENDPOINT", cluster.masters[0].url())
        .env("PROGRAM", program("kontrol-master"))
        .env("LINE", line)
        .args([
            "-c",
            "exec 3>&1; { \"$PROGRAM\" exec --all --output raw --shell \"$LINE\"; echo $? >&3; } | head -n 1",
        ]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_finds_the_program_and_its_master() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().build();
    let marks = cluster.dir.path().join("marks");
    let callback = cluster.dir.path().join("callback");
    let script = format!(
        "#!/bin/sh\nkontrol-master exec --all --shell 'echo $KONTROL_ID >> {}' >&2 && echo '\"acted\"'\n",
        marks.display()
    );
    fs::write(&callback, script).unwrap();
    fs::set_permissions(&callback, fs::Permissions::from_mode(0o755)).unwrap();
    cluster.masters[0].set("callback", callback.to_str().unwrap());
    cluster.masters[0].start().await;
    cluster.ready().await;
    let _crew = Crew::start(&mut cluster, 2).await;
    cluster.handled(0, 2).await;
    let marks = fs::read_to_string(&marks).unwrap();
    for index in 0..2 {
        assert!(marks.contains(&crew::id(index)), "{marks}");
    }
}

/// A pipe that never blocks: somebody who shares it wanted it so.
fn unblocked() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap()
}

/// Reads a pipe to its end, once it is full.
async fn read_when_full(pipe: OwnedFd) -> Vec<u8> {
    let size = fcntl_getpipe_size(&pipe).unwrap() as u64;
    eventually(SOON, "full pipe", async || {
        let held = ioctl_fionread(&pipe)?;
        // Nearly: the last page of a pipe may stay in part unused.
        ensure!(held > size * 3 / 4, "{held} bytes");
        Ok(())
    })
    .await;
    let flags = fcntl_getfl(&pipe).unwrap();
    fcntl_setfl(&pipe, flags - OFlags::NONBLOCK).unwrap();
    let read = move || {
        let mut all = Vec::new();
        fs::File::from(pipe).read_to_end(&mut all).map(|_| all)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_streams_that_do_not_block_are_waited_for() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let script = "cat; seq 1 60000; seq 1 60000 >&2";
    let mut command = exec(
        &cluster,
        &[
            "--all", "--output", "raw", "--input", "-", "--shell", script,
        ],
    );
    let ((stdin, input), (stdout, out), (stderr, err)) = (unblocked(), unblocked(), unblocked());
    command.stdin(stdin).stdout(out).stderr(err);
    let mut child = command.spawn().unwrap();
    // It holds our ends of the pipes that are the child's now.
    drop(command);
    throughout(
        Duration::from_millis(300),
        "the wait for input",
        async || {
            let status = child.try_wait()?;
            ensure!(status.is_none(), "it ended: {status:?}");
            Ok(())
        },
    )
    .await;
    fs::File::from(input).write_all(br#"{"a":1}"#).unwrap();
    let lines: String = (1..=60_000).map(|number| format!("{number}\n")).collect();
    let (shown, noted) = tokio::join!(read_when_full(stdout), read_when_full(stderr));
    let shown = text(&shown);
    assert!(
        shown == format!("{{\"a\":1}}\n{lines}"),
        "{} bytes",
        shown.len()
    );
    let noted = text(&noted);
    assert!(noted.starts_with(&lines), "{} bytes", noted.len());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}
