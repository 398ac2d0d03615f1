//! Actions that a handler in this process carries out: what holds for commands holds for it, whatever it does.

use super::{Pair, config};
use crate::master::channel::{Taken, argv, run, shell, within};
use futures::future::pending;
use kontrol_proto::v1::{Command, Outcome, attach_request::Event, attach_response::Run};
use kontrol_runtime::testing::until;
use kontrol_slave::{
    action::{
        Settings,
        handler::{ActionCommand, ActionOutput, ActionReply, ActionRequest, Handler, Refused},
    },
    payload::to_proto,
};
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, sync::Notify};

/// Settings by which this code carries actions out.
fn handled<F, A>(code: F) -> Option<Settings>
where
    F: Fn(ActionRequest, ActionOutput) -> A + Send + Sync + 'static,
    A: Future<Output = ActionReply> + Send + 'static,
{
    Some(Settings {
        handler: Some(Handler::new(code)),
        // No process is started, whatever the handler does.
        guard: "/no/such/guard".into(),
        ..config()
    })
}

/// Sets a flag when it is dropped.
struct Mark(Arc<AtomicBool>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn it_is_asked_all_that_was_dispatched_and_its_answer_comes_back() {
    let settings = handled(async |request: ActionRequest, mut output: ActionOutput| {
        let left = request.deadline - tokio::time::Instant::now();
        assert!(left > Duration::from_secs(20) && left <= Duration::from_secs(30));
        assert!(!request.cancellation.is_cancelled());
        let (id, key, env) = (&request.id, &request.key, &request.env);
        let told = format!("{id} {key} {env:?} {:?}\n", request.input);
        output.stdout.print(told).await;
        output.stderr.write_all(b"\xff\0").await.unwrap();
        match request.command {
            ActionCommand::Argv(words) => Ok(words.len().try_into().unwrap()),
            ActionCommand::Shell(text) => Err(Refused::new(format_args!("no shell for {text}"))),
        }
    });
    let mut pair = Pair::start_with(settings).await;
    let command = Command {
        argv: vec!["one".into(), "two".into(), String::new()],
        env: HashMap::from([("A".into(), "b".into())]),
        input: Some(to_proto(&json!({"n": 1}))),
        ..Command::default()
    };
    let taken = pair.channel.whole(run("a1", command)).await;
    let told = "a1 2kce4N {\"A\": \"b\"} Some(Object {\"n\": Number(1)})\n";
    assert_eq!((taken.out(), &taken.stderr[..]), (told, &b"\xff\0"[..]));
    assert_eq!(taken.outcome(), (Outcome::Exited, 3));
    let result = taken.result();
    assert_eq!((result.error.as_str(), result.signal), ("", 0));
    assert!(result.duration.is_some() && !result.truncated);

    let taken = pair.channel.whole(shell("a2", "ls")).await;
    assert_eq!(taken.outcome(), (Outcome::Refused, -1));
    assert_eq!(taken.result().error, "no shell for ls");
    // What asks for nothing, or for nothing that can be, is not brought before it.
    let taken = pair.channel.whole(run("a3", Command::default())).await;
    assert_eq!(taken.outcome(), (Outcome::Refused, -1));
    assert!(!taken.started);
    pair.stop().await;
}

#[tokio::test]
async fn a_handler_is_not_asked_over_a_link_that_proves_nothing() {
    let settings = handled(async |_, _| panic!("it is called"));
    let settings = settings.map(|settings| Settings {
        trusted: false,
        ..settings
    });
    let mut pair = Pair::start_with(settings).await;
    let taken = pair.channel.whole(argv("a1", &["x"])).await;
    assert_eq!(taken.outcome(), (Outcome::Refused, -1));
    assert!(taken.result().error.contains("insecure"));
    pair.stop().await;
}

#[tokio::test]
async fn it_is_called_once_whatever_is_sent_twice_or_breaks() {
    let (calls, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let settings = handled({
        let (calls, go) = (Arc::clone(&calls), Arc::clone(&go));
        move |_, mut output: ActionOutput| {
            calls.fetch_add(1, Ordering::SeqCst);
            let go = Arc::clone(&go);
            async move {
                output.stdout.print("before\n").await;
                go.notified().await;
                output.stdout.print("after\n").await;
                Ok(0)
            }
        }
    });
    let mut pair = Pair::start_with(settings).await;
    let mut taken = Taken::default();
    pair.channel.run(argv("a1", &["x"])).await;
    while taken.stdout.is_empty() {
        pair.channel.step("a1", &mut taken).await;
    }
    pair = pair.break_channel().await;
    assert_eq!(pair.channel.hello.actions, ["a1"]);
    go.notify_one();
    assert!(pair.channel.is_silent().await, "it waits to be asked for");
    pair.channel.resume("a1", taken.offsets()).await;
    while taken.end.is_none() {
        pair.channel.step("a1", &mut taken).await;
    }
    assert_eq!(
        (taken.out(), taken.outcome()),
        ("before\nafter\n", (Outcome::Exited, 0))
    );
    // Its end is kept, and told again.
    pair = pair.break_channel().await;
    pair.channel.run(argv("a1", &["x"])).await;
    let mut again = Taken::default();
    pair.channel.finish("a1", &mut again).await;
    assert_eq!(again.outcome(), (Outcome::Exited, 0));
    // Forgotten it is lost, and does not run again.
    pair.channel.run(argv("a1", &["x"])).await;
    match pair.channel.next().await {
        Some(Event::Finished(finished)) => {
            assert_eq!(finished.result.unwrap().outcome(), Outcome::Lost);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    pair.stop().await;
}

#[tokio::test]
async fn its_output_waits_for_credit_and_is_cut_at_the_limit() {
    let written = Arc::new(AtomicUsize::new(0));
    let settings = handled({
        let written = Arc::clone(&written);
        move |_, mut output: ActionOutput| {
            let written = Arc::clone(&written);
            async move {
                for _ in 0..500 {
                    output.stdout.print([b'x'; 1000]).await;
                    written.fetch_add(1000, Ordering::SeqCst);
                }
                output.stderr.print("short\n").await;
                Ok(0)
            }
        }
    });
    let mut pair = Pair::start_with(settings).await;
    let order = Run {
        window: 10_000,
        ..argv("a1", &["x"])
    };
    pair.channel.run(order).await;
    let mut taken = Taken::default();
    while taken.stdout.len() < 10_000 {
        taken.take(pair.channel.next().await.unwrap());
    }
    assert!(pair.channel.is_silent().await);
    let before = written.load(Ordering::SeqCst);
    assert!(before < 100_000, "the handler waits: {before}");
    pair.channel.credit("a1", taken.offsets()).await;
    pair.channel.finish("a1", &mut taken).await;
    assert_eq!((taken.stdout.len(), taken.err()), (500_000, "short\n"));
    assert!(!taken.result().truncated);

    let order = Run {
        max_output: 1500,
        ..argv("a2", &["x"])
    };
    let taken = pair.channel.whole(order).await;
    assert_eq!((taken.stdout.len(), taken.err()), (1500, "short\n"));
    assert_eq!(taken.truncated, [true, false]);
    let result = taken.result();
    assert_eq!((result.stdout_bytes, result.truncated), (500_000, true));
    pair.stop().await;
}

#[tokio::test]
async fn a_panic_is_an_exit_code_and_costs_nothing_else() {
    let settings = handled(async |request: ActionRequest, mut output: ActionOutput| {
        output.stdout.print("so far\n").await;
        if matches!(request.command, ActionCommand::Argv(words) if words[0] == "panic") {
            panic!("on {}", "purpose");
        }
        Ok(0)
    });
    let mut pair = Pair::start_with(settings).await;
    let taken = pair.channel.whole(argv("a1", &["panic"])).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 101));
    assert_eq!(taken.out(), "so far\n");
    assert_eq!(
        taken.result().error,
        "the handler panicked: on purpose".to_owned()
    );
    let taken = pair.channel.whole(argv("a2", &["fine"])).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 0));

    // Before it so much as returned a future.
    let settings = handled(|_, _| -> std::future::Ready<ActionReply> { panic!("at once") });
    let mut other = Pair::start_with(settings).await;
    let taken = other.channel.whole(argv("a1", &["x"])).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 101));
    pair.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn it_is_asked_to_end_and_dropped_if_it_does_not() {
    let dropped = Arc::new(AtomicBool::new(false));
    let settings = handled({
        let dropped = Arc::clone(&dropped);
        move |request: ActionRequest, mut output: ActionOutput| {
            let mark = Mark(Arc::clone(&dropped));
            async move {
                let _mark = mark;
                output.stdout.print("ready\n").await;
                if request.command == ActionCommand::Argv(vec!["obey".into()]) {
                    request.cancellation.cancelled().await;
                    output.stdout.print("cleaned\n").await;
                    return Ok(7);
                }
                pending().await
            }
        }
    });
    let mut pair = Pair::start_with(settings).await;
    let short = Duration::from_millis(300);
    let taken = pair
        .channel
        .whole(within(short, argv("a1", &["obey"])))
        .await;
    assert_eq!(taken.outcome(), (Outcome::TimedOut, 7));
    assert_eq!(taken.out(), "ready\ncleaned\n");
    assert_eq!(taken.result().error, "it did not end within 300ms");

    dropped.store(false, Ordering::SeqCst);
    let start = Instant::now();
    let taken = pair
        .channel
        .whole(within(short, argv("a2", &["deaf"])))
        .await;
    assert_eq!(taken.outcome(), (Outcome::TimedOut, -1));
    assert_eq!(taken.out(), "ready\n");
    assert!(dropped.load(Ordering::SeqCst) && start.elapsed() > Duration::from_secs(2));

    for (id, word, expected) in [
        ("a3", "obey", (Outcome::Cancelled, 7)),
        ("a4", "deaf", (Outcome::Cancelled, -1)),
    ] {
        pair.channel.run(argv(id, &[word])).await;
        let mut taken = Taken::default();
        while taken.stdout.is_empty() {
            pair.channel.step(id, &mut taken).await;
        }
        pair.channel.cancel(id).await;
        pair.channel.finish(id, &mut taken).await;
        assert_eq!(taken.outcome(), expected);
        assert_eq!(taken.result().error, "the action was cancelled");
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_slave_that_stops_ends_what_runs_and_tells_it() {
    let dropped = Arc::new(AtomicBool::new(false));
    let settings = handled({
        let dropped = Arc::clone(&dropped);
        move |_, mut output: ActionOutput| {
            let mark = Mark(Arc::clone(&dropped));
            async move {
                let _mark = mark;
                // Nobody takes as much.
                output.stdout.print(vec![0; 1_000_000]).await;
                pending().await
            }
        }
    });
    let Pair {
        master,
        agent,
        mut channel,
    } = Pair::start_with(settings).await;
    channel.run(argv("a1", &["x"])).await;
    channel.next().await.unwrap();
    let stopping = tokio::spawn(agent.stop());
    let end = loop {
        if let Event::Finished(finished) = channel.next().await.expect("its end is told") {
            break finished.result.unwrap();
        }
    };
    assert_eq!(end.outcome(), Outcome::Cancelled);
    assert_eq!(end.error, "the slave stops");
    assert!(dropped.load(Ordering::SeqCst));
    drop(channel);
    let took = stopping.await.unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    master.stop().await;
}

#[tokio::test]
async fn one_that_blocks_holds_up_nobody_and_keeps_its_place() {
    let free = Arc::new(AtomicBool::new(false));
    let settings = handled({
        let free = Arc::clone(&free);
        move |request: ActionRequest, _| {
            let free = Arc::clone(&free);
            async move {
                let block = request.command == ActionCommand::Argv(vec!["block".into()]);
                while block && !free.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(0)
            }
        }
    });
    let settings = settings.map(|settings| Settings {
        at_once: 1,
        ..settings
    });
    let mut pair = Pair::start_with(settings).await;
    let order = within(Duration::from_millis(200), argv("a1", &["block"]));
    let taken = pair.channel.whole(order).await;
    assert_eq!(taken.outcome(), (Outcome::TimedOut, -1));
    assert!(taken.result().error.contains("the handler blocks"));
    pair.channel.run(argv("a2", &["fine"])).await;
    assert!(pair.channel.is_silent().await, "there is no place for it");
    free.store(true, Ordering::SeqCst);
    let mut taken = Taken::default();
    pair.channel.finish("a2", &mut taken).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 0));
    pair.stop().await;
}

#[tokio::test]
async fn what_it_leaves_behind_does_not_hold_up_its_end() {
    let (told, go) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let settings = handled({
        let (told, go) = (Arc::clone(&told), Arc::clone(&go));
        move |_, mut output: ActionOutput| {
            let (told, go) = (Arc::clone(&told), Arc::clone(&go));
            async move {
                output.stdout.print("in time\n").await;
                tokio::spawn(async move {
                    go.notified().await;
                    let late = output.stdout.write_all(b"late\n").await;
                    output.stderr.print("lost").await;
                    told.store(late.is_err(), Ordering::SeqCst);
                });
                Ok(0)
            }
        }
    });
    let mut pair = Pair::start_with(settings).await;
    let start = Instant::now();
    let taken = pair.channel.whole(argv("a1", &["x"])).await;
    assert_eq!(
        (taken.out(), taken.outcome()),
        ("in time\n", (Outcome::Exited, 0))
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    go.notify_one();
    until("who writes late is told", || told.load(Ordering::SeqCst)).await;
    pair.stop().await;
}
