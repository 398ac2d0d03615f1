//! What `run` asks for, and how it waits.

use super::{
    super::{
        DIGEST, ago, ensemble, from_now,
        script::{Master, Operated, Ran, Script, run, run_with},
        seconds,
    },
    hold, start,
};
use kontrol_proto::v1::{CallbackRun, CallbackStatus, GetEnsembleResponse, RunCallbackResponse};
use prost_types::Timestamp;
use serde_json::Value;
use std::{collections::VecDeque, sync::Mutex};
use tonic::Status;

const ASKED: &str = r#"RunCallbackRequest { again: false, reason: "" }"#;

fn answer(handled: bool) -> Operated {
    Operated {
        run: RunCallbackResponse {
            digest: DIGEST.to_owned(),
            handled,
            revision: 7,
        },
        ..Operated::default()
    }
}

/// A run that started then; without an exit code it succeeded.
fn ended(start: Option<Timestamp>, exit_code: i32) -> CallbackRun {
    CallbackRun {
        digest: DIGEST.to_owned(),
        start,
        duration: seconds(2),
        exit_code,
        error: match exit_code {
            0 => String::new(),
            code => format!("exit code {code}\u{1b}[2J"),
        },
    }
}

/// The ensemble with this run going on, and that one ended last; another digest than now was handled.
fn seen(running_since: Option<Timestamp>, last_run: Option<CallbackRun>) -> GetEnsembleResponse {
    GetEnsembleResponse {
        handled_digest: "f".repeat(32),
        callback: Some(CallbackStatus {
            configured: true,
            running_since,
            last_run,
            ..CallbackStatus::default()
        }),
        ..ensemble()
    }
}

type Looks = VecDeque<Result<GetEnsembleResponse, Status>>;

async fn waited(flags: &str, looks: impl Into<Looks>) -> (Ran, usize) {
    let master = Master::start(Script {
        ensembles: Mutex::new(looks.into()),
        ensemble: seen(None, None),
        operated: answer(false),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("run --wait {flags} --endpoint {}", master.url)).await;
    let left = master.script.ensembles.lock().unwrap().len();
    (ran, left)
}

#[tokio::test]
async fn a_run_is_asked_for_and_told() {
    let master = start(answer(false)).await;
    let ran = run(&format!("run --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        format!(
            "a run is asked for, at revision 7; the digest is {DIGEST}\n\
             to follow it: kontrol-master watch; to wait for its end: run --wait\n"
        )
    );
    let line = format!(
        "run --again --reason new --output json --endpoint {}",
        master.url
    );
    let ran = run(&line).await;
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(told["revision"], 7);
    assert_eq!(
        master.script.asked(),
        [
            ASKED,
            r#"RunCallbackRequest { again: true, reason: "new" }"#
        ]
    );
}

#[tokio::test]
async fn nothing_runs_and_nobody_waits_for_a_digest_that_was_handled() {
    let master = start(answer(true)).await;
    for flags in ["", "--wait"] {
        let ran = run(&format!("run {flags} --endpoint {}", master.url)).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert_eq!(
            ran.out,
            format!(
                "nothing runs: digest {DIGEST} was handled already; to run all the same: kontrol-master run --again\n"
            )
        );
    }
    let line = format!("run --wait --output json --endpoint {}", master.url);
    let told: Value = serde_json::from_str(&run(&line).await.out).unwrap();
    assert_eq!(told["handled"], true);
}

#[tokio::test]
async fn it_waits_for_the_run_behind_the_one_that_goes_on() {
    let (old, new) = (ago(30), ago(1));
    let (ran, left) = waited(
        "",
        [
            Ok(seen(old, Some(ended(ago(90), 1)))),
            Ok(seen(old, Some(ended(ago(90), 1)))),
            Ok(seen(new, Some(ended(old, 1)))),
            Ok(seen(None, Some(ended(new, 0)))),
        ],
    )
    .await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(
        ran.out
            .ends_with(&format!("the run for {DIGEST} done in 2s\n")),
        "{}",
        ran.out
    );
    assert_eq!((ran.out.lines().count(), left), (2, 0));
}

#[tokio::test]
async fn a_run_that_fails_is_told_with_its_reason_and_ends_with_1() {
    for (flags, lines) in [("", 1), ("--output json", 2)] {
        let looks = [Ok(seen(None, None)), Ok(seen(None, Some(ended(ago(1), 3))))];
        let (ran, _) = waited(flags, looks).await;
        assert_eq!((ran.code, ran.out.lines().count()), (1, lines));
        assert_eq!(
            ran.err,
            format!(
                "error: the run for {DIGEST} failed after 2s, exit code 3: exit code 3\u{fffd}[2J; to see what comes next: kontrol-master status\n"
            )
        );
        if lines == 2 {
            let run: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
            assert_eq!(run["exitCode"], 3);
        }
    }
}

#[tokio::test]
async fn only_a_later_run_counts_unless_another_master_leads() {
    let last = ended(ago(30), 0);
    let looks = |epoch| {
        let under = |epoch, ensemble| GetEnsembleResponse { epoch, ..ensemble };
        [
            Ok(seen(None, Some(last.clone()))),
            // Of a master that is behind, and of one that knows the new leader, but nothing of it yet.
            Ok(seen(None, Some(ended(ago(60), 5)))),
            Ok(under(epoch, seen(None, Some(last.clone())))),
            Ok(under(epoch, seen(None, Some(ended(ago(40), 6))))),
            Ok(under(epoch, seen(None, Some(ended(ago(0), 7))))),
        ]
    };
    for (epoch, code) in [(42, 7), (43, 6)] {
        let (ran, left) = waited("", looks(epoch)).await;
        assert!(
            ran.err.contains(&format!("exit code {code}:")),
            "{}",
            ran.err
        );
        assert_eq!(left, if epoch == 42 { 0 } else { 1 });
    }
}

#[tokio::test]
async fn it_ends_when_the_run_that_went_on_has_handled_the_digest() {
    let old = ago(30);
    let handled = |running| GetEnsembleResponse {
        handled_digest: DIGEST.to_owned(),
        ..seen(running, Some(ended(old, 0)))
    };
    let behind = GetEnsembleResponse {
        revision: 6,
        ..handled(None)
    };
    let looks = [
        Ok(seen(old, None)),
        Ok(behind),
        Ok(handled(old)),
        Ok(handled(None)),
    ];
    let (ran, left) = waited("", looks.clone()).await;
    assert_eq!((ran.code, left), (0, 0));
    assert_eq!(
        ran.err,
        "nothing is left to run: the digest is handled, by a run that went on\n"
    );
    // Which is not what `--again` asks for.
    let mut looks = VecDeque::from(looks);
    looks.push_back(Ok(seen(None, Some(ended(ago(1), 0)))));
    let (ran, _) = waited("--again", looks).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[tokio::test]
async fn it_tells_once_what_it_waits_for_and_outlives_a_master_that_is_not_ready() {
    let held = GetEnsembleResponse {
        hold: Some(hold()),
        ..seen(None, None)
    };
    let leaderless = GetEnsembleResponse {
        leader: None,
        ..seen(None, None)
    };
    let (ran, _) = waited(
        "",
        [
            Ok(seen(None, None)),
            Ok(held.clone()),
            Ok(held),
            Err(Status::unavailable("no store")),
            Ok(leaderless),
            Ok(seen(None, Some(ended(ago(1), 0)))),
        ],
    )
    .await;
    assert_eq!(ran.code, 0);
    let notes: Vec<&str> = ran.err.lines().collect();
    let [held, unready, leaderless] = &notes[..] else {
        panic!("{notes:?}");
    };
    assert!(
        held.starts_with("still waiting: the callback is held until "),
        "{held}"
    );
    assert!(unready.contains("(not ready: no store)"), "{unready}");
    assert_eq!(*leaderless, "still waiting: no master leads");
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_the_run_to_itself() {
    let master = Master::start(Script {
        ensemble: seen(from_now(0), None),
        operated: answer(false),
        ..Script::default()
    })
    .await;
    let line = format!("run --wait --endpoint {}", master.url);
    let ran = run_with(&line, "", Some("is asked for")).await;
    assert_eq!(ran.code, 130);
    assert!(ran.err.starts_with("left; the run goes on"), "{}", ran.err);
}

#[tokio::test]
async fn nothing_is_asked_for_when_nobody_could_tell_of_its_end() {
    let (ran, _) = waited("", [Err(Status::permission_denied("not you"))]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("not you"), "{}", ran.err);
}
