//! How channels come and go.

use super::{Pair, config};
use crate::{
    LONG, Running, SHORT, attached_first,
    master::{
        Master, Reply, SOON,
        channel::{Taken, shell},
    },
};
use kontrol_proto::v1::{Outcome, attach_request::Event, attach_response::Run};
use kontrol_slave::action::Settings;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tonic::Status;

#[tokio::test]
async fn a_slave_says_who_it_is() {
    let mut pair = Pair::start().await;
    let hello = &pair.channel.hello;
    let ping = &pair.master.hears(1).await[0].request;
    assert_eq!((hello.key.as_str(), hello.attachment), ("2kce4N", 1));
    assert_eq!((&hello.nonce, &hello.actions[..]), (&ping.nonce, &[][..]));
    pair.stop().await;
}

#[tokio::test]
async fn a_channel_that_ends_is_followed_by_a_keepalive_and_another_channel_soon() {
    let mut pair = Pair::start().await;
    let start = Instant::now();
    // The interval is an hour.
    pair.channel.fail(Status::unavailable("going down")).await;
    pair.channel = pair.master.channel().await;
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(pair.master.heard().len(), 2);
    assert_eq!(pair.channel.hello.attachment, 2);
    pair.stop().await;
}

#[tokio::test]
async fn a_channel_that_is_cut_whenever_it_is_quiet_shows_life_more_often() {
    let mut pair = Pair::start().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(pair.channel.is_silent().await);
        // As whoever reads it is told where a proxy ends it, without a status.
        pair.channel.fail(Status::internal("no status")).await;
        pair.channel = pair.master.channel().await;
    }
    let start = Instant::now();
    pair.channel.sign().await;
    pair.channel.sign().await;
    let took = start.elapsed();
    assert!(took > Duration::from_millis(600), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    // It does not hold up anything.
    let taken = pair.channel.whole(shell("a1", "echo one")).await;
    assert_eq!(taken.out(), "one\n");
    pair.stop().await;
}

#[tokio::test]
async fn a_master_without_actions_is_asked_again_with_the_keepalives() {
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    master.refuse_channels(Some(Status::unimplemented("what?")));
    let agent = Running::start_with(&master.address(), Some(config()));
    master.hears(4).await;
    master.refuse_channels(None);
    let channel = master.channel().await;
    assert!(channel.hello.attachment >= 4);
    agent.stop().await;
    drop(channel);
    master.stop().await;
}

#[tokio::test]
async fn refused_channels_are_tried_again_behind_early_keepalives() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    master.refuse_channels(Some(Status::failed_precondition("no such pod")));
    let agent = Running::start_with(&master.address(), Some(config()));
    master.hears(3).await;
    master.refuse_channels(None);
    let channel = master.channel().await;
    assert!(channel.hello.attachment >= 3);
    agent.stop().await;
    drop(channel);
    master.stop().await;
}

#[tokio::test]
async fn the_channel_follows_the_keepalives_to_another_master() {
    let one = Master::start(Reply::Accept(LONG)).await;
    let two = Master::start(Reply::Accept(LONG)).await;
    let masters = format!("{}|{}", one.address(), two.address());
    let mut agent = Running::start_with(&masters, Some(config()));
    let (mut used, mut spare) = attached_first(&mut agent, one, two).await;
    let mut first = used.channel().await;
    let text = "echo begun; while kill -0 $PPID; do sleep 0.05; done";
    first.run(shell("a1", text)).await;
    while !matches!(first.next().await, Some(Event::Output(_))) {}
    used.now(Reply::Refuse(Status::unavailable("no leader")));
    agent.payload.send_replace(serde_json::json!(1));
    let mut second = spare.channel().await;
    assert_eq!(second.hello.actions, ["a1"]);
    assert!(first.next().await.is_none(), "the first is closed");
    second.resume("a1", (6, 0)).await;
    second.cancel("a1").await;
    let mut taken = Taken {
        stdout: b"begun\n".to_vec(),
        ..Default::default()
    };
    second.finish("a1", &mut taken).await;
    assert_eq!(taken.outcome(), (Outcome::Cancelled, 143));
    agent.stop().await;
    drop((first, second));
    used.stop().await;
    spare.stop().await;
}

#[tokio::test]
async fn each_tier_has_its_own_actions() {
    let mut one = Master::start(Reply::Accept(LONG)).await;
    let mut two = Master::start(Reply::Accept(LONG)).await;
    let agent = Running::start_with(
        &format!("{},{}", one.address(), two.address()),
        Some(config()),
    );
    let (mut first, mut second) = (one.channel().await, two.channel().await);
    first.run(shell("a1", "sleep 600")).await;
    first.next().await.unwrap();
    second.cancel("a1").await;
    assert!(matches!(second.next().await, Some(Event::Unknown(_))));
    assert_eq!(second.whole(shell("a2", "echo two")).await.out(), "two\n");
    assert!(first.is_silent().await);
    agent.stop().await;
    drop((first, second));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn at_the_end_commands_are_ended_and_that_is_told_before_down() {
    let mut pair = Pair::start().await;
    // It would go on, and has said more than there is room for.
    let run = Run {
        window: 1000,
        ..shell(
            "a1",
            "trap '' TERM; head -c 200000 /dev/zero; while :; do sleep 0.05; done",
        )
    };
    pair.channel.run(run).await;
    let mut taken = Taken::default();
    while taken.stdout.len() < 1000 {
        taken.take(pair.channel.next().await.unwrap());
    }
    let Pair {
        mut master,
        agent,
        mut channel,
    } = pair;
    let (took, ()) = tokio::join!(agent.stop(), async {
        while taken.end.is_none() {
            taken.take(channel.next().await.unwrap());
        }
        assert!(
            !master.heard().iter().any(|heard| heard.request.down),
            "the end comes first"
        );
        assert!(channel.next().await.is_none());
        drop(channel);
        timeout(SOON, master.hears(2)).await.unwrap();
    });
    assert_eq!(
        (taken.outcome(), taken.result().truncated),
        ((Outcome::Cancelled, 137), true)
    );
    assert_eq!(taken.result().error, "the slave stops");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(master.stop().await.last().unwrap().request.down);
}

#[tokio::test]
async fn at_the_end_nothing_waits_for_a_master_that_reads_nothing() {
    let Pair {
        master,
        agent,
        channel,
    } = Pair::start().await;
    // Until the slave takes no more orders, for it can't get rid of its answers.
    let padding = "x".repeat(100_000);
    let mut n = 0;
    let mut order = async || {
        n += 1;
        let order = shell(&format!("{n}{padding}"), "");
        timeout(Duration::from_millis(500), channel.run(order)).await
    };
    while order().await.is_ok() {}
    let took = agent.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    // While the channel was still open, and unread.
    assert!(master.heard().last().unwrap().request.down);
    drop(channel);
    master.stop().await;
}

#[tokio::test]
async fn keepalives_go_on_while_the_master_reads_nothing_else() {
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let config = Settings {
        at_once: 32,
        ..config()
    };
    let agent = Running::start_with(&master.address(), Some(config));
    let channel = master.channel().await;
    // Together far more than a connection takes.
    for n in 0..32 {
        let run = Run {
            window: 256 * 1024,
            max_output: 1 << 30,
            ..shell(&format!("{n:x}"), "cat /dev/zero")
        };
        channel.run(run).await;
    }
    let before = master.heard().len();
    master.hears(before + 8).await;
    assert_eq!(channel.hello.attachment, 1);
    agent.stop().await;
    drop(channel);
    master.stop().await;
}
