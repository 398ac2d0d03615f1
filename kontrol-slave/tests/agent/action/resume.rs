//! Channels that break while a command runs.

use super::{Pair, pid_in};
use crate::master::channel::{Taken, shell};
use kontrol_proto::v1::{Outcome, attach_response::Run};
use std::fs;

/// Lines on both streams, with pauses in which a channel can break.
const LINES: &str = "i=0; while [ $i -lt 300 ]; do echo line $i; echo note $i >&2; i=$((i+1)); [ $((i % 50)) != 0 ] || sleep 0.05; done";

fn lines(word: &str) -> String {
    (0..300).map(|n| format!("{word} {n}\n")).collect()
}

#[tokio::test]
async fn an_action_survives_its_channel_wherever_that_breaks() {
    let mut pair = Pair::start().await;
    for (round, after) in [0, 1, 2, 3, 5, 8, 13].into_iter().enumerate() {
        let action = format!("a{round}");
        let order = Run {
            window: 2000,
            ..shell(&action, LINES)
        };
        let mut taken = Taken::default();
        pair.channel.run(order.clone()).await;
        // It breaks again and again, after so many reports.
        for _ in 0..4 {
            for _ in 0..after {
                if taken.end.is_none() {
                    pair.channel.step(&action, &mut taken).await;
                }
            }
            pair = pair.break_channel().await;
            // Without a report it is not even known whether the order had arrived.
            let known = pair.channel.hello.actions.contains(&action);
            assert!(known || !taken.started);
            taken.end = None;
            if known {
                pair.channel.resume(&action, taken.offsets()).await;
            } else {
                pair.channel.run(order.clone()).await;
            }
        }
        pair.channel.finish(&action, &mut taken).await;
        assert_eq!(taken.out(), lines("line"), "broken after {after}");
        assert_eq!(taken.err(), lines("note"));
        assert_eq!(
            (taken.outcome(), taken.result().truncated),
            ((Outcome::Exited, 0), false)
        );
    }
    pair.stop().await;
}

#[tokio::test]
async fn nothing_is_told_on_a_new_channel_before_it_is_asked_for() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    pair.channel
        .run(shell(
            "a1",
            &format!(
                "echo $$ > {}/pid; echo out; exit 4",
                folder.path().display()
            ),
        ))
        .await;
    let mut taken = Taken::default();
    while taken.stdout.is_empty() {
        taken.take(pair.channel.next().await.unwrap());
    }
    pair = pair.break_channel().await;
    assert_eq!(
        (
            pair.channel.hello.attachment,
            &pair.channel.hello.actions[..]
        ),
        (2, &["a1".to_owned()][..])
    );
    assert!(pair.channel.is_silent().await);
    pair.channel.resume("a1", (1, 0)).await;
    let mut rest = Taken {
        stdout: b"o".to_vec(),
        ..Taken::default()
    };
    pair.channel.finish("a1", &mut rest).await;
    assert_eq!(
        (rest.out(), rest.outcome(), rest.started),
        ("out\n", (Outcome::Exited, 4), true)
    );
    pair = pair.break_channel().await;
    assert_eq!(pair.channel.hello.actions, [""; 0], "its end was taken");
    pair.stop().await;
}

#[tokio::test]
async fn a_command_without_a_channel_waits_when_the_window_is_full() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let text = format!("echo $$ > {path}/pid; head -c 500000 /dev/zero; touch {path}/written");
    let order = Run {
        window: 1000,
        ..shell("a1", &text)
    };
    pair.channel.run(order).await;
    pid_in(&folder.path().join("pid")).await;
    pair = pair.break_channel().await;
    assert!(pair.channel.is_silent().await);
    assert!(!folder.path().join("written").exists());
    let mut taken = Taken::default();
    pair.channel.resume("a1", (0, 0)).await;
    pair.channel.finish("a1", &mut taken).await;
    assert_eq!(taken.stdout.len(), 500_000);
    assert!(fs::exists(folder.path().join("written")).unwrap());
    pair.stop().await;
}

#[tokio::test]
async fn bytes_that_were_taken_are_gone_and_the_end_says_so() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "echo out; while [ ! -e {}/go ]; do sleep 0.01; done",
        folder.path().display()
    );
    pair.channel.run(shell("a1", &text)).await;
    let mut taken = Taken::default();
    while taken.stdout.is_empty() {
        pair.channel.step("a1", &mut taken).await;
    }
    // Orders are taken one after the other, so the credit has arrived when the answer to this comes.
    pair.channel.resume("other", (0, 0)).await;
    pair.channel.next().await.unwrap();
    pair = pair.break_channel().await;
    pair.channel.resume("a1", (0, 0)).await;
    fs::write(folder.path().join("go"), "").unwrap();
    let mut again = Taken::default();
    pair.channel.finish("a1", &mut again).await;
    assert_eq!((again.out(), again.result().truncated), ("", true));
    pair.stop().await;
}
