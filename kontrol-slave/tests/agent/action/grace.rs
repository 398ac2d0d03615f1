//! The time between SIGTERM and SIGKILL: it belongs to everything that a command started, not to its first process alone.

use super::Pair;
use crate::master::channel::{Taken, shell, within};
use kontrol_proto::v1::Outcome;
use kontrol_runtime::testing::until;
use std::{fs, path::Path, time::Duration};

/// Ways to start a program that is not the command's first process.
const STARTS: [(&str, &str); 5] = [
    ("behind a shell", "$WORKER; echo over"),
    ("in a pipe", "$WORKER | cat"),
    ("in the background", "$WORKER & wait"),
    // As `timeout` does, and jobs of an interactive shell.
    ("in a group of its own", "timeout 600 $WORKER; echo over"),
    ("in a session of its own", "setsid -w $WORKER; echo over"),
];

/// A program that takes a while to clean up, and the text that starts it.
fn worker(folder: &Path, takes: &str, start: &str) -> String {
    let folder = folder.display();
    let script = format!(
        "#!/bin/sh\ntrap 'sleep {takes}; touch {folder}/cleaned; exit 0' TERM\ntouch {folder}/ready\nwhile :; do sleep 0.02; done\n"
    );
    fs::write(format!("{folder}/worker"), script).unwrap();
    start.replace("$WORKER", &format!("/bin/sh {folder}/worker"))
}

#[tokio::test]
async fn a_time_out_gives_it_to_whatever_the_command_started() {
    let mut pair = Pair::start().await;
    for (index, (name, start)) in STARTS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let text = worker(folder.path(), "0.3", start);
        let run = within(Duration::from_secs(2), shell(&format!("a{index}"), &text));
        let taken = pair.channel.whole(run).await;
        assert_eq!(taken.result().outcome(), Outcome::TimedOut, "{name}");
        assert!(folder.path().join("cleaned").exists(), "{name}");
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_cancelled_command_has_it_too() {
    let mut pair = Pair::start().await;
    for (index, (name, start)) in STARTS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let id = format!("b{index}");
        pair.channel
            .run(shell(&id, &worker(folder.path(), "0.3", start)))
            .await;
        until(name, || folder.path().join("ready").exists()).await;
        pair.channel.cancel(&id).await;
        let mut taken = Taken::default();
        pair.channel.finish(&id, &mut taken).await;
        assert_eq!(taken.result().outcome(), Outcome::Cancelled, "{name}");
        assert!(folder.path().join("cleaned").exists(), "{name}");
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_slave_that_stops_gives_its_short_one() {
    let pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = worker(folder.path(), "0.02", STARTS[0].1);
    pair.channel.run(shell("a1", &text)).await;
    until("it runs", || folder.path().join("ready").exists()).await;
    pair.stop().await;
    assert!(folder.path().join("cleaned").exists());
}

#[tokio::test]
async fn what_was_cancelled_and_will_not_end_is_told_of_when_the_slave_stops() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (ready, told) = (folder.path().join("ready"), folder.path().join("told"));
    // It hears that it is to end, and goes on.
    let text = format!(
        "trap 'touch {}' TERM; touch {}; while :; do sleep 0.02; done",
        told.display(),
        ready.display()
    );
    pair.channel.run(shell("a1", &text)).await;
    let mut taken = Taken::default();
    pair.channel.step("a1", &mut taken).await;
    until("it runs", || ready.exists()).await;
    pair.channel.cancel("a1").await;
    until("it was told", || told.exists()).await;
    let Pair {
        mut channel,
        agent,
        master,
    } = pair;
    let end = channel.finish("a1", &mut taken);
    let (_, ()) = tokio::join!(agent.stop(), end);
    assert_eq!(taken.result().outcome(), Outcome::Cancelled);
    master.stop().await;
}
