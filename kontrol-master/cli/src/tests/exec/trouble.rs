//! Commands that are not taken, are cancelled, or are lost sight of.

use super::{
    super::{
        super::{
            finish,
            output::{Format, Output},
        },
        failures::{Closed, web},
        script::{Ran, Sink, nobody, parse, run_on_terminal},
    },
    *,
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// A master with one dispatch that has begun on a pod, and that it may refuse to cancel.
async fn cancellable(then: Then, refuse_cancel: Option<Status>) -> Master {
    let dispatched = Dispatched {
        messages: vec![
            accepted(&["a", "bb"]),
            started("a"),
            wrote("a", Stream::Stdout, "begun\n"),
        ],
        then,
    };
    Master::start(Script {
        dispatches: Mutex::new([Ok(dispatched)].into()),
        refuse_cancel,
        ..Script::default()
    })
    .await
}

/// Waits until the dispatcher has left.
async fn left(master: &Master) {
    let left = Arc::clone(&master.script.left);
    tokio::time::timeout(Duration::from_secs(20), left.notified())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_dispatch_moves_on_only_while_no_master_can_have_taken_it() {
    let busy = Master::start(Script {
        dispatches: Mutex::new(
            [
                Err(Status::unavailable("no leader")),
                Ok(Dispatched {
                    messages: vec![Err(Status::unavailable("no leader"))],
                    ..Dispatched::default()
                }),
                Ok(Dispatched {
                    messages: vec![
                        accepted(&["a"]),
                        Err(Status::unavailable("this master stops")),
                    ],
                    ..Dispatched::default()
                }),
                Err(Status::resource_exhausted("too many actions")),
            ]
            .into(),
        ),
        ..Script::default()
    })
    .await;
    let end = || vec![accepted(&["a"]), exited("a", 0), summary(1, 1)];
    let next = master([end(), end(), end()]).await;
    let line = format!(
        "exec --all --endpoint {},{},{} -- x",
        nobody().await,
        busy.url,
        next.url
    );
    for _ in 0..2 {
        let ran = run(&line).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    assert_eq!(next.script.asked().len(), 2);
    for (code, reason) in [
        (
            255,
            "error: the stream of action x1 broke (this master stops): it may go on, or be cancelled; \
         to look: kontrol-master actions show x1\n",
        ),
        (1, "answers: too many actions (ResourceExhausted)\n"),
    ] {
        let ran = run(&line).await;
        assert_eq!(ran.code, code);
        assert!(ran.err.ends_with(reason), "{}", ran.err);
    }
    assert_eq!(next.script.asked().len(), 2);
    assert_eq!(busy.script.asked().len(), 4);
}

#[tokio::test]
async fn a_dispatch_without_an_answer_is_not_sent_twice() {
    let (web, other) = (web().await, master([]).await);
    let ran = run(&format!("exec --all --endpoint {web},{} -- x", other.url)).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .starts_with(&format!("error: {web} did not answer ("))
            && ran.err.ends_with(
                "), so the command may or may not run; to look: kontrol-master actions\n"
            ),
        "{}",
        ran.err
    );
    assert!(other.script.asked().is_empty());
}

#[tokio::test]
async fn a_stream_that_ends_too_soon_is_a_failure_and_what_was_held_is_shown() {
    let master = master([vec![
        accepted(&["a"]),
        wrote("a", Stream::Stdout, "half a li"),
    ]])
    .await;
    let ran = run(&format!("exec --all --endpoint {} -- x", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (255, "web-a | half a li\n"));
    assert!(
        ran.err
            .starts_with("error: the stream of action x1 broke (something between here and the master ended it, as proxies do"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn no_target_is_a_failure() {
    let master = master([vec![accepted(&[]), summary(0, 0)]]).await;
    let ran = run(&format!("exec --role none --endpoint {} -- x", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "error: no pod matches, so nothing runs; to look: kontrol-master pods\n"
    );
}

#[tokio::test]
async fn the_first_stop_cancels_and_the_rest_is_still_shown() {
    let cancelled = |key| finished(result(key, Outcome::Cancelled, -1));
    let rest = vec![
        wrote("a", Stream::Stdout, "bye\n"),
        cancelled("a"),
        cancelled("bb"),
        summary(2, 0),
    ];
    let master = cancellable(Then::AfterCancel(rest), None).await;
    let line = format!("exec --all --endpoint {} -- x", master.url);
    let ran = run_with(&line, "", ["begun"]).await;
    assert_eq!(ran.code, 130);
    assert_eq!(ran.out, "web-a  | begun\nweb-a  | bye\n");
    assert_eq!(
        ran.err,
        "cancelling; once more to leave at once\n\
         web-a: cancelled\n\
         web-bb: cancelled\n\
         2 targets: 2 failed in 2s\n"
    );
    assert_eq!(
        master.script.asked()[1..],
        [r#"CancelActionRequest { id: "x1" }"#]
    );
}

#[tokio::test]
async fn the_second_stop_leaves_at_once() {
    let master = cancellable(Then::Silence, None).await;
    let line = format!("exec --all --endpoint {} -- x", master.url);
    let ran = run_with(&line, "", ["begun", "cancelling"]).await;
    assert_eq!(ran.code, 130);
    assert!(
        ran.err
            .ends_with("left; to look: kontrol-master actions show x1\n"),
        "{}",
        ran.err
    );
    left(&master).await;
}

#[tokio::test]
async fn an_action_that_cannot_be_cancelled_is_left_which_cancels_it() {
    let master = cancellable(Then::Silence, Some(Status::unavailable("not now"))).await;
    let line = format!("exec --all --endpoint {} -- x", master.url);
    let ran = run_with(&line, "", ["begun"]).await;
    assert_eq!(ran.code, 130);
    assert!(
        ran.err.ends_with(
            "the master did not cancel it (not now): leaving, which cancels it as well\n"
        ),
        "{}",
        ran.err
    );
    left(&master).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_cancels_the_action_which_the_exit_code_tells() {
    let master = cancellable(Then::Silence, None).await;
    let command = parse(&format!("exec --all --endpoint {} -- x", master.url)).unwrap();
    let (mut out, mut err) = (Closed(io::ErrorKind::BrokenPipe), Sink::default());
    let told = err.clone();
    let mut output = Output::to(Format::Table, false, &mut out, &mut err);
    let stop = &mut async || std::future::pending().await;
    let code = finish(&command, &mut output, &mut io::empty(), stop).await;
    assert_eq!((code, told.text().as_str()), (141, ""));
    left(&master).await;
}

#[tokio::test]
async fn a_long_action_shows_its_progress_on_a_terminal() {
    let rest = vec![exited("a", 0), exited("bb", 0), summary(2, 2)];
    let master = cancellable(Then::AfterCancel(rest), None).await;
    let line = format!("exec --all --endpoint {} -- x", master.url);
    let start = Instant::now();
    let ran = run_on_terminal(&line, ["0/2 done, 1 running"]).await;
    assert_eq!(ran.code, 130);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let Ran { out, err, .. } = ran;
    assert!(
        out.starts_with("\u{1b}[") && out.contains("web-a  |\u{1b}[0m begun\n"),
        "{out:?}"
    );
    assert!(
        err.contains("0/2 done, 1 running\r\u{1b}[Kcancelling; ")
            && err.ends_with("\n2 targets: 2 ok in 2s\n"),
        "{err:?}"
    );
}

#[test]
fn what_cannot_be_meant_is_refused_before_any_master_is_asked() {
    for (line, reason) in [
        (
            "exec --all --id a -- x",
            "'--all' cannot be used with '--id",
        ),
        ("exec --id a, -- x", "a value is required for '--id"),
        ("exec --role '' -- x", "a value is required for '--role"),
        ("exec --selector '' -- x", "use --all for every pod"),
        ("exec --key '!' -- x", "has a character that is not one of"),
        (
            "exec --all --shell a -- x",
            "'--shell <TEXT>' cannot be used",
        ),
        ("exec --all --shell ''", "a value is required for '--shell"),
        ("exec --all --env =a -- x", "use NAME=VALUE"),
        ("exec --all --timeout 0 -- x", "must be longer than nothing"),
        ("exec --all --max-output 0 -- x", "0 is not in"),
        ("exec --all x", "unexpected argument 'x'"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        let text = error.to_string();
        assert!(text.contains(reason), "{line}: {text}");
    }
}

#[tokio::test]
async fn pods_and_command_must_be_said() {
    for (line, reason) in [
        (
            "exec -- x",
            "say on which pods: --role, --selector, --key and --id choose some, --all means every one",
        ),
        (
            "exec --all",
            "say what to run: -- COMMAND ARGUMENT..., or --shell TEXT",
        ),
        (
            "exec --all --input '{a' -- x",
            "the input must be one JSON value",
        ),
    ] {
        let ran = run(line).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.contains(reason), "{line}: {}", ran.err);
    }
}
