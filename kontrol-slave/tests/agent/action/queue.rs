//! Many actions at once, and actions that are sent or cancelled at the wrong time.

use super::{Pair, config, pid_in};
use crate::master::channel::{Taken, about, argv, shell, within};
use kontrol_proto::v1::{Outcome, attach_request::Event, attach_response::Run};
use kontrol_slave::action::{Settings, policy::Policy};
use std::{collections::HashMap, fs, time::Duration};

#[tokio::test]
async fn a_thousand_at_once_all_end() {
    let mut pair = Pair::start().await;
    let mut open: HashMap<String, Taken> = (0..1000)
        .map(|n| (format!("{n:04x}"), Taken::default()))
        .collect();
    let mut ids: Vec<String> = open.keys().cloned().collect();
    ids.sort_unstable();
    // Orders are only taken as reports are.
    let (channel, mut ids) = (&mut pair.channel, ids.into_iter());
    for id in ids.by_ref().take(200) {
        channel.run(argv(&id, &["echo", &id])).await;
    }
    while !open.is_empty() {
        if let Some(id) = ids.next() {
            channel.run(argv(&id, &["echo", &id])).await;
        }
        let event = channel.next().await.unwrap();
        let id = about(&event).to_owned();
        let taken = open.get_mut(&id).expect("it has not ended");
        taken.take(event);
        if taken.end.is_some() {
            assert_eq!(
                (taken.out().trim_end(), taken.outcome()),
                (id.as_str(), (Outcome::Exited, 0))
            );
            channel.forget(&id).await;
            open.remove(&id);
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_run_that_is_sent_twice_runs_once() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    let order = || shell("a1", &format!("echo once | tee -a {}", file.display()));
    pair.channel.run(order()).await;
    pair.channel.run(order()).await;
    let mut taken = Taken::default();
    // It may be told again from the start, as after a resume.
    while let Some(event) = pair.channel.next().await {
        if matches!(event, Event::Started(_)) {
            taken = Taken::default();
        }
        taken.take(event);
        if taken.end.is_some() {
            break;
        }
    }
    assert_eq!(taken.out(), "once\n");
    // Once more while it is kept, and once when it is forgotten.
    pair.channel.run(order()).await;
    let mut again = Taken::default();
    pair.channel.finish("a1", &mut again).await;
    assert_eq!(again.out(), "once\n");
    assert_eq!(
        pair.channel.whole(shell("a2", "echo two")).await.out(),
        "two\n"
    );
    pair.channel.run(order()).await;
    match pair.channel.next().await {
        Some(Event::Finished(finished)) => {
            assert_eq!(finished.result.unwrap().outcome(), Outcome::Lost);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "once\n");
    pair.stop().await;
}

#[tokio::test]
async fn what_was_cancelled_before_it_came_does_not_start() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    pair.channel.cancel("a1").await;
    assert!(
        matches!(pair.channel.next().await, Some(Event::Unknown(unknown)) if unknown.action_id == "a1")
    );
    let taken = pair
        .channel
        .whole(shell("a1", &format!("touch {}", mark.display())))
        .await;
    assert_eq!(taken.outcome(), (Outcome::Cancelled, -1));
    assert!(!taken.started && !mark.exists());
    pair.stop().await;
}

#[tokio::test]
async fn an_action_that_never_came_is_unknown_and_may_still_come() {
    let mut pair = Pair::start().await;
    pair.channel.resume("a1", (0, 0)).await;
    assert!(matches!(pair.channel.next().await, Some(Event::Unknown(_))));
    let taken = pair.channel.whole(shell("a1", "echo ran")).await;
    assert_eq!(taken.out(), "ran\n");
    pair.stop().await;
}

#[tokio::test]
async fn actions_wait_for_their_turn_and_can_be_cancelled_there() {
    let config = Settings {
        at_once: 1,
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    pair.channel
        .run(shell("a1", &format!("echo $$ > {path}/first; sleep 600")))
        .await;
    pid_in(&folder.path().join("first")).await;
    pair.channel
        .run(shell("a2", &format!("touch {path}/second")))
        .await;
    pair.channel.run(shell("a3", "echo third")).await;
    pair.channel.cancel("a2").await;
    let mut all: HashMap<&str, Taken> = ["a1", "a2", "a3"].map(|id| (id, Taken::default())).into();
    let mut order = Vec::new();
    while order.len() < 3 {
        let event = pair.channel.next().await.unwrap();
        let id = about(&event).to_owned();
        let taken = all.get_mut(id.as_str()).unwrap();
        taken.take(event);
        if taken.end.is_some() {
            if id == "a2" {
                pair.channel.cancel("a1").await;
            }
            order.push(id);
        }
    }
    assert_eq!(order, ["a2", "a1", "a3"]);
    assert_eq!(
        (all["a2"].outcome(), all["a2"].started),
        ((Outcome::Cancelled, -1), false)
    );
    assert_eq!(all["a1"].outcome(), (Outcome::Cancelled, 143));
    assert_eq!(all["a1"].result().error, "the action was cancelled");
    assert_eq!(all["a3"].out(), "third\n");
    assert!(!folder.path().join("second").exists());
    pair.stop().await;
}

#[tokio::test]
async fn an_edit_of_the_policy_counts_for_those_that_wait() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy");
    fs::write(&policy, "sleep 600\ntrue\n").unwrap();
    let config = Settings {
        at_once: 1,
        policy: Policy::named(policy.to_str().unwrap()),
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    pair.channel.run(argv("a1", &["sleep", "600"])).await;
    let mut first = Taken::default();
    pair.channel.step("a1", &mut first).await;
    pair.channel.run(argv("a2", &["true"])).await;
    assert!(pair.channel.is_silent().await, "it is allowed, and waits");
    fs::write(&policy, "sleep 600\n").unwrap();
    pair.channel.cancel("a1").await;
    pair.channel.finish("a1", &mut first).await;
    let mut second = Taken::default();
    pair.channel.finish("a2", &mut second).await;
    assert_eq!(second.outcome(), (Outcome::Refused, -1));
    pair.stop().await;
}

#[tokio::test]
async fn a_command_that_has_ended_holds_up_no_other_though_nobody_takes_its_output() {
    let config = Settings {
        at_once: 1,
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let little = |id: &str, text: &str| Run {
        window: 1000,
        ..shell(id, text)
    };
    // One ends by itself, with 60,000 bytes in its pipe, and one at its time limit.
    pair.channel
        .run(little("a1", "head -c 60000 /dev/zero"))
        .await;
    let endless = within(Duration::from_millis(300), little("a2", "cat /dev/zero"));
    pair.channel.run(endless).await;
    pair.channel.run(shell("a3", "echo third")).await;
    let mut all: HashMap<&str, Taken> = ["a1", "a2", "a3"].map(|id| (id, Taken::default())).into();
    while all["a3"].end.is_none() {
        let event = pair.channel.next().await.unwrap();
        let id = about(&event).to_owned();
        all.get_mut(id.as_str()).unwrap().take(event);
    }
    assert_eq!(all["a3"].out(), "third\n");
    // Nothing is sent beyond the window, and nothing is lost.
    for (id, outcome) in [
        ("a1", (Outcome::Exited, 0)),
        ("a2", (Outcome::TimedOut, 143)),
    ] {
        let taken = all.get_mut(id).unwrap();
        assert_eq!(taken.stdout.len(), 1000);
        while taken.end.is_none() {
            pair.channel.credit(id, taken.offsets()).await;
            pair.channel.step(id, taken).await;
        }
        assert_eq!(taken.outcome(), outcome);
        assert!(!taken.result().truncated);
        assert_eq!(taken.stdout.len() as u64, taken.result().stdout_bytes);
    }
    assert_eq!(all["a1"].stdout.len(), 60_000);
    pair.stop().await;
}

#[tokio::test]
async fn a_cancelled_command_may_clean_up() {
    let mut pair = Pair::start().await;
    let text = "trap 'echo cleaned; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    pair.channel.run(shell("a1", text)).await;
    let mut taken = Taken::default();
    while taken.out() != "ready\n" {
        pair.channel.step("a1", &mut taken).await;
    }
    pair.channel.cancel("a1").await;
    pair.channel.finish("a1", &mut taken).await;
    assert_eq!(taken.out(), "ready\ncleaned\n");
    assert_eq!(taken.outcome(), (Outcome::Cancelled, 0));
    pair.stop().await;
}

#[tokio::test]
async fn they_run_in_the_order_in_which_they_came() {
    let config = Settings {
        at_once: 1,
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    for n in 0..8 {
        pair.channel.run(shell(&format!("a{n}"), "true")).await;
    }
    let mut ended = Vec::new();
    while ended.len() < 8 {
        if let Some(Event::Finished(end)) = pair.channel.next().await {
            ended.push(end.action_id);
        }
    }
    assert!(ended.is_sorted(), "{ended:?}");
    pair.stop().await;
}

#[tokio::test]
async fn more_than_the_queue_holds_are_refused_and_every_end_is_told_once() {
    let config = Settings {
        at_once: 1,
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let mut ends: HashMap<String, Outcome> = HashMap::new();
    let mut take = |event: Option<Event>| {
        match event.expect("the channel lives") {
            Event::Finished(end) => {
                let outcome = end.result.unwrap().outcome();
                assert_eq!(ends.insert(end.action_id, outcome), None, "it ended twice");
            }
            Event::Started(started) => assert_eq!(started.action_id, "0000"),
            event @ (Event::Hello(_) | Event::Output(_) | Event::Unknown(_)) => panic!("{event:?}"),
        }
        ends.len()
    };
    // The first one runs, as many as the queue holds wait, and the rest is refused.
    let (waiting, refused) = (4096, 100);
    for n in 0..1 + waiting + refused {
        pair.channel
            .run(shell(&format!("{n:04x}"), "sleep 600"))
            .await;
    }
    while take(pair.channel.next().await) < refused {}
    // The slave has more to tell than it keeps, and tells it all the same. The one that runs comes last, so that none of
    // the others gets its turn.
    for n in (0..1 + waiting).rev() {
        pair.channel.cancel(&format!("{n:04x}")).await;
    }
    while take(pair.channel.next().await) < 1 + waiting + refused {}
    for (id, outcome) in ends {
        let refused = usize::from_str_radix(&id, 16).unwrap() > waiting;
        let expected = if refused {
            Outcome::Refused
        } else {
            Outcome::Cancelled
        };
        assert_eq!(outcome, expected, "{id}");
    }
    pair.stop().await;
}

#[tokio::test]
async fn what_is_refused_at_once_is_not_kept() {
    let mut pair = Pair::start().await;
    // Nobody can run an empty command.
    for n in 0..1100 {
        pair.channel.run(shell(&format!("{n:04x}"), "")).await;
        assert!(matches!(
            pair.channel.next().await,
            Some(Event::Finished(_))
        ));
    }
    pair = pair.break_channel().await;
    assert_eq!(pair.channel.hello.actions, [""; 0]);
    let taken = pair.channel.whole(shell("0000", "echo ran")).await;
    assert_eq!(taken.out(), "ran\n", "it had not run");
    pair.stop().await;
}

#[tokio::test]
async fn of_what_ran_and_was_forgotten_nobody_knows_the_end() {
    let mut pair = Pair::start().await;
    pair.channel.whole(shell("a1", "true")).await;
    // The word that it may be forgotten comes before these.
    pair.channel.resume("a1", (0, 0)).await;
    pair.channel.cancel("a1").await;
    pair.channel.run(shell("a1", "true")).await;
    for _ in 0..3 {
        match pair.channel.next().await {
            Some(Event::Finished(end)) => {
                assert_eq!(end.result.unwrap().outcome(), Outcome::Lost);
            }
            other => panic!("{other:?}"),
        }
    }
    pair.stop().await;
}
