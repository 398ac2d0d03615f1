//! What a slave will not run.

use super::{Pair, config};
use crate::master::channel::{Taken, argv, run, shell};
use kontrol_proto::v1::{Command, Outcome};
use kontrol_slave::{action::Settings, config::ActionArgs};
use std::{collections::HashMap, fs};

fn refused(taken: &Taken) -> &str {
    assert_eq!(taken.outcome(), (Outcome::Refused, -1));
    assert!(!taken.started);
    &taken.result().error
}

#[tokio::test]
async fn a_pod_without_actions_refuses_them() {
    let mut pair = Pair::start_with(None).await;
    let taken = pair.channel.whole(shell("a1", "true")).await;
    assert_eq!(refused(&taken), "this pod runs no actions");
    pair.stop().await;
}

#[tokio::test]
async fn masters_must_be_trusted() {
    let config = Settings {
        trusted: false,
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let taken = pair.channel.whole(shell("a1", "true")).await;
    assert!(refused(&taken).contains("--insecure"));
    pair.stop().await;
}

#[tokio::test]
async fn the_policy_is_read_again_for_each_action_and_fails_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    fs::write(&path, "echo ok ...\n").unwrap();
    let args = ActionArgs {
        actions: path.to_str().map(str::to_owned),
        ..ActionArgs::default()
    };
    let config = Settings {
        guard: config().guard,
        ..args.check(true).unwrap()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let channel = &mut pair.channel;
    assert_eq!(
        channel.whole(argv("a1", &["echo", "ok", "so"])).await.out(),
        "ok so\n"
    );
    let taken = channel.whole(shell("a2", "echo ok")).await;
    assert!(refused(&taken).contains("is not this command"));
    fs::write(&path, "/bin/sh -c 'echo ok'\n").unwrap();
    assert_eq!(channel.whole(shell("a3", "echo ok")).await.out(), "ok\n");
    let with_variable = Command {
        shell: "echo ok".into(),
        env: HashMap::from([("BASH_ENV".into(), "/tmp/x".into())]),
        ..Command::default()
    };
    let taken = channel.whole(run("a4", with_variable)).await;
    assert!(refused(&taken).contains("these variables"));
    fs::write(&path, "'").unwrap();
    let taken = channel.whole(shell("a5", "echo ok")).await;
    assert!(refused(&taken).contains("line 1: a quote is not closed"));
    fs::remove_file(&path).unwrap();
    let taken = channel.whole(shell("a6", "echo ok")).await;
    assert!(refused(&taken).contains("the file does not exist"));
    pair.stop().await;
}

#[tokio::test]
async fn a_command_that_nobody_can_run_is_refused_with_the_reason() {
    let mut pair = Pair::start().await;
    let long = "x".repeat(200_000);
    let both = Command {
        argv: vec!["true".into()],
        shell: "true".into(),
        ..Command::default()
    };
    let variable = |name: &str, value: &str| Command {
        argv: vec!["true".into()],
        env: HashMap::from([(name.into(), value.into())]),
        ..Command::default()
    };
    for (id, command, said) in [
        ("a1", Command::default(), "no command"),
        ("a2", both, "both argv and shell"),
        (
            "a3",
            Command {
                shell: "a\0b".into(),
                ..Command::default()
            },
            "NUL",
        ),
        ("a4", variable("A=B", ""), "can't be the name of a variable"),
        ("a4b", variable("KONTROL_KEY", "forged"), "KONTROL_KEY"),
        (
            "a5",
            Command {
                shell: format!("echo {long}"),
                ..Command::default()
            },
            "128 KiB",
        ),
        ("a6", variable("A", &long), "128 KiB"),
    ] {
        let taken = pair.channel.whole(run(id, command)).await;
        assert!(refused(&taken).contains(said), "{id}: {}", refused(&taken));
    }
    assert_eq!(
        pair.channel.whole(shell("a7", "echo ok")).await.out(),
        "ok\n"
    );
    pair.stop().await;
}

#[tokio::test]
async fn a_guard_that_cannot_be_started_is_a_refusal() {
    let config = Settings {
        guard: "/no/such/guard".into(),
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let taken = pair.channel.whole(shell("a1", "true")).await;
    assert!(refused(&taken).starts_with("the command could not be started"));
    pair.stop().await;
}
