//! Commands on pods, from their dispatch to the exit code.

mod trouble;

use super::{
    script::{Dispatched, Master, Script, Then, run, run_with},
    seconds,
};
use kontrol_proto::v1::{
    ActionResult, ActionSummary, DispatchResponse, Outcome, Stream,
    dispatch_response::{Accepted, Event, Output, Started, Target},
};
use serde_json::json;
use std::sync::Mutex;
use tonic::Status;

type Message = Result<DispatchResponse, Status>;

fn message(event: Event) -> Message {
    Ok(DispatchResponse { event: Some(event) })
}

/// Accepts action `x1` for pods with these keys, whose ids are `web-` and the key.
fn accepted(keys: &[&str]) -> Message {
    let target = |key: &&str| Target {
        key: (*key).to_owned(),
        id: format!("web-{key}"),
    };
    message(Event::Accepted(Accepted {
        action_id: "x1".to_owned(),
        targets: keys.iter().map(target).collect(),
        ..Accepted::default()
    }))
}

fn started(key: &str) -> Message {
    message(Event::Started(Started {
        key: key.to_owned(),
        id: format!("web-{key}"),
    }))
}

fn wrote(key: &str, stream: Stream, data: &str) -> Message {
    message(Event::Output(Output {
        key: key.to_owned(),
        stream: stream.into(),
        data: data.to_owned().into(),
        truncated: false,
    }))
}

fn result(key: &str, outcome: Outcome, exit_code: i32) -> ActionResult {
    ActionResult {
        key: key.to_owned(),
        id: format!("web-{key}"),
        outcome: outcome.into(),
        exit_code,
        ..ActionResult::default()
    }
}

fn finished(result: ActionResult) -> Message {
    message(Event::Finished(result))
}

fn exited(key: &str, exit_code: i32) -> Message {
    finished(result(key, Outcome::Exited, exit_code))
}

fn summary(targets: u32, succeeded: u32) -> Message {
    message(Event::Summary(ActionSummary {
        targets,
        succeeded,
        failed: targets - succeeded,
        duration: seconds(2),
        ..ActionSummary::default()
    }))
}

/// A master that answers dispatches with these streams, one after another.
async fn master(dispatches: impl IntoIterator<Item = Vec<Message>>) -> Master {
    let dispatches = dispatches.into_iter().map(|messages| {
        Ok(Dispatched {
            messages,
            ..Dispatched::default()
        })
    });
    Master::start(Script {
        dispatches: Mutex::new(dispatches.collect()),
        ..Script::default()
    })
    .await
}

/// Two pods, one of which fails.
fn mixed() -> Vec<Message> {
    vec![
        accepted(&["a", "bb"]),
        started("a"),
        started("bb"),
        wrote("a", Stream::Stdout, "one\n\ntw"),
        wrote("bb", Stream::Stderr, "tab\t\u{1b}[2Jé\r\n"),
        wrote("a", Stream::Stdout, "o\nno end"),
        exited("a", 0),
        finished(ActionResult {
            truncated: true,
            ..result("bb", Outcome::Exited, 3)
        }),
        summary(2, 1),
    ]
}

#[tokio::test]
async fn lines_stand_behind_the_names_of_their_pods_and_the_worst_exit_code_is_told() {
    let master = master([mixed()]).await;
    let ran = run(&format!("exec --all --endpoint {} -- ls", master.url)).await;
    assert_eq!(
        ran.out,
        "web-a  | one\n\
         web-a  |\n\
         web-a  | two\n\
         web-a  | no end\n"
    );
    assert_eq!(
        ran.err,
        "web-bb | tab\t\u{fffd}[2Jé\n\
         web-bb: exit code 3\n\
         web-bb: not all of its output is here: it was too much, or a part was lost\n\
         2 targets: 1 ok, 1 failed in 2s\n"
    );
    assert_eq!(ran.code, 3);
}

#[tokio::test]
async fn raw_output_is_what_was_written() {
    let master = master([mixed()]).await;
    let line = format!("exec --all --output raw --endpoint {} -- ls", master.url);
    let ran = run(&line).await;
    assert_eq!(ran.out, "one\n\ntwo\nno end");
    assert!(
        ran.err
            .starts_with("tab\t\u{1b}[2Jé\r\nweb-bb: exit code 3\n"),
        "{:?}",
        ran.err
    );
    assert!(!ran.err.contains("targets"), "{}", ran.err);
    assert_eq!(ran.code, 3);
}

#[tokio::test]
async fn json_is_each_message_on_a_line() {
    let master = master([mixed()]).await;
    let line = format!("exec --all --output json --endpoint {} -- ls", master.url);
    let ran = run(&line).await;
    let lines: Vec<serde_json::Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), mixed().len());
    assert_eq!(lines[0]["accepted"]["actionId"], "x1");
    assert_eq!(lines[1], json!({"started": {"key": "a", "id": "web-a"}}));
    assert_eq!(lines[3]["output"]["data"], "b25lCgp0dw==");
    assert_eq!(lines[7]["finished"]["outcome"], "OUTCOME_EXITED");
    assert_eq!(lines[8]["summary"]["failed"], 1);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""));
}

#[tokio::test]
async fn each_target_that_did_not_end_well_is_told() {
    let reason = |outcome, error: &str| {
        finished(ActionResult {
            error: error.to_owned(),
            ..result("a", outcome, -1)
        })
    };
    for (end, text, code) in [
        (reason(Outcome::TimedOut, "late"), "timed out after 2m", 124),
        (reason(Outcome::Refused, "policy"), "refused: policy", 126),
        (reason(Outcome::Cancelled, ""), "cancelled", 130),
        (
            reason(Outcome::Unreachable, "not attached"),
            "unreachable: not attached",
            255,
        ),
        (reason(Outcome::Lost, "gone"), "lost: gone", 255),
        (
            finished(ActionResult {
                signal: 9,
                ..result("a", Outcome::Exited, 137)
            }),
            "ended by SIGKILL",
            137,
        ),
    ] {
        let master = master([vec![accepted(&["a"]), end, summary(1, 0)]]).await;
        let line = format!("exec --id a --timeout 2m --endpoint {} -- x", master.url);
        let ran = run(&line).await;
        assert_eq!(
            ran.err.lines().next(),
            Some(format!("web-a: {text}").as_str())
        );
        assert_eq!(ran.code, code, "{text}");
    }
}

#[tokio::test]
async fn what_is_asked_for_is_dispatched() {
    let end = || vec![accepted(&["a"]), exited("a", 0), summary(1, 1)];
    let master = master([end(), end()]).await;
    let url = &master.url;
    let ran = run_with(
        &format!(
            "exec --role web,db --role x --selector 'b in (d,c)' --key blXcB --id w-1,w-2 --concurrency 5 \
             --max-failures 2 --timeout 500ms --max-output 10 --env A=b=c --input - --endpoint {url} -- df -h"
        ),
        "[1]",
        None,
    )
    .await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let asked = &master.script.asked()[0];
    for part in [
        r#"keys: ["blXcB"], ids: ["w-1", "w-2"], roles: ["web", "db", "x"], labels: "b in (c,d)", all: false"#,
        r#"argv: ["df", "-h"], shell: "", env: {"A": "b=c"}, input: None, input_json: b"[1]""#,
        "seconds: 0, nanos: 500000000",
        "max_output: 10, concurrency: 5, max_failures: 2, detach: false",
    ] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
    let ran = run(&format!("exec --all --shell 'a | b' --endpoint {url}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let asked = &master.script.asked()[1];
    for part in [
        "all: true",
        r#"argv: [], shell: "a | b", env: {}, input: None"#,
        "seconds: 60, nanos: 0",
        "max_output: 1048576, concurrency: 0, max_failures: 0, detach: false",
    ] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
}

#[tokio::test]
async fn a_detached_action_is_left_to_itself() {
    let master = master([vec![accepted(&["a"])], vec![accepted(&["a"])]]).await;
    let line = format!("exec --all --detach --endpoint {} -- x", master.url);
    let ran = run(&line).await;
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "x1\n", "")
    );
    let ran = run(&format!("exec --output json {}", &line["exec ".len()..])).await;
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["accepted"]["actionId"], "x1");
    assert!(master.script.asked()[1].contains("detach: true"));
}
