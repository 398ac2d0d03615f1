//! Watches that break and go on.

use super::{
    DIGEST,
    actions::action,
    master, pod,
    script::{Master, Messages, Script, nobody, run, run_with},
    seconds,
};
use kontrol_proto::v1::{
    CallbackRun, LeaveReason, WatchResponse,
    watch_response::{
        ActionFinished, ActionStarted, CallbackFinished, DigestChanged, Event, LeaderChanged,
        PodJoined, PodLeft, Snapshot,
    },
};
use serde_json::json;
use std::{collections::VecDeque, sync::Mutex};
use tonic::Status;

fn message(revision: i64, event: Event) -> Result<WatchResponse, Status> {
    Ok(WatchResponse {
        revision,
        history: Some(format!("h{revision}")),
        event: Some(event),
    })
}

pub(super) fn watches() -> Mutex<VecDeque<Result<Messages, Status>>> {
    let piece = Snapshot {
        pods: vec![pod(0, "a1", "web-0"), pod(1, "a2", "web-1")],
        more: true,
        ..Snapshot::default()
    };
    let snapshot = Snapshot {
        pods: vec![pod(2, "a3", "web-2")],
        leader: Some(master("m1")),
        epoch: 3,
        digest: DIGEST.to_owned(),
        more: false,
    };
    let left = PodLeft {
        pod: Some(pod(0, "a1", "web-0")),
        reason: LeaveReason::Lost.into(),
    };
    let run = CallbackRun {
        digest: DIGEST.to_owned(),
        duration: seconds(1),
        ..CallbackRun::default()
    };
    let digest = DigestChanged {
        digest: DIGEST.to_owned(),
        pod_count: 1,
    };
    let action = action("x1");
    Mutex::new(
        [
            Ok(vec![
                message(0, Event::Snapshot(piece)),
                message(5, Event::Snapshot(snapshot)),
                message(
                    9,
                    Event::PodJoined(PodJoined {
                        pod: Some(pod(1, "a2", "web-1")),
                    }),
                ),
                message(
                    8,
                    Event::CallbackFinished(CallbackFinished { run: Some(run) }),
                ),
                Err(Status::resource_exhausted("you read too slowly")),
            ]),
            Err(Status::unavailable("cannot reach the leader")),
            Ok(vec![
                message(10, Event::PodLeft(left)),
                message(10, Event::DigestChanged(digest)),
            ]),
            Ok(vec![
                message(
                    11,
                    Event::ActionStarted(ActionStarted {
                        action: Some(action.clone()),
                    }),
                ),
                message(
                    11,
                    Event::ActionFinished(ActionFinished {
                        action: Some(action),
                    }),
                ),
                message(
                    12,
                    Event::LeaderChanged(LeaderChanged {
                        leader: None,
                        epoch: 0,
                    }),
                ),
            ]),
        ]
        .into(),
    )
}

#[tokio::test]
async fn watch_goes_on_behind_the_last_revision_when_it_breaks() {
    let master = Master::start(Script {
        watches: watches(),
        ..Script::default()
    })
    .await;
    let line = format!("watch --endpoint {}", master.url);
    let ran = run_with(&line, "", Some("leader    none")).await;
    assert_eq!(ran.code, 0);
    assert_eq!(
        master.script.asked()[..4],
        [
            r#"WatchRequest { revision: 0, history: Some("") }"#,
            r#"WatchRequest { revision: 9, history: Some("h9") }"#,
            r#"WatchRequest { revision: 9, history: Some("h9") }"#,
            r#"WatchRequest { revision: 10, history: Some("h10") }"#
        ]
    );
    let notes: Vec<&str> = ran.err.lines().collect();
    assert!(
        notes[0]
            .starts_with("the watch broke (you read too slowly): going on behind revision 9 in "),
        "{notes:?}"
    );
    assert!(
        notes[1].starts_with("the watch broke (http://")
            && notes[1]
                .contains(" (not ready: cannot reach the leader)): going on behind revision 9 in "),
        "{notes:?}"
    );
    assert!(
        notes[2]
            .starts_with("the watch broke (the master ended it): going on behind revision 10 in "),
        "{notes:?}"
    );
    let texts: Vec<&str> = ran
        .out
        .lines()
        .map(|line| line.get(21..).unwrap())
        .collect();
    assert_eq!(
        texts,
        [
            format!("5         snapshot  3 pods, digest {DIGEST}, leader m1 at m1.example:8000, epoch 3"),
            "9         joined    #1 a2 web-1 10.0.0.1 demo/web payload {\"load\":1}".to_owned(),
            format!("8         callback  done in 1s for {DIGEST}"),
            "10        left      #0 a1 web-0 10.0.0.0 demo/web payload {\"load\":1}: its process died while it was attached".to_owned(),
            format!("10        digest    {DIGEST}, 1 pod"),
            "11        action    x1 (df -h) started by ann@desk on 3 targets".to_owned(),
            "11        action    x1 (df -h) finished: 3 targets: 1 ok, 1 failed, 1 unreachable in 2s".to_owned(),
            "12        leader    none".to_owned(),
        ]
    );
}

#[tokio::test]
async fn watch_is_ndjson_for_a_program() {
    let master = Master::start(Script {
        watches: watches(),
        ..Script::default()
    })
    .await;
    let line = format!("watch --revision 4 --output json --endpoint {}", master.url);
    let ran = run_with(&line, "", Some("leaderChanged")).await;
    let lines: Vec<serde_json::Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        master.script.asked()[0],
        r#"WatchRequest { revision: 4, history: Some("") }"#
    );
    assert_eq!(lines[2]["podJoined"]["pod"]["id"], "web-1");
    assert_eq!(lines[4]["podLeft"]["reason"], "LEAVE_REASON_LOST");
    assert_eq!(
        lines[8],
        json!({"revision": 12, "leaderChanged": {"epoch": 0}})
    );
}

#[tokio::test]
async fn watch_ends_when_the_master_refuses_or_was_never_there() {
    let master = Master::start(Script {
        watches: Mutex::new([Ok(vec![Err(Status::permission_denied("not you"))])].into()),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("watch --endpoint {}", master.url)).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("not you"), "{}", ran.err);
    let ran = run(&format!("watch --endpoint {}", nobody().await)).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with("error: no master answers"),
        "{}",
        ran.err
    );
}
