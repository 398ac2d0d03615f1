//! The history of actions.

use super::{
    ago,
    script::{Master, Script, run},
    seconds,
};
use kontrol_proto::v1::{
    Action, ActionResult, ActionState, ActionSummary, Command, Outcome, Selector,
};

pub(super) fn action(id: &str) -> Action {
    Action {
        id: id.to_owned(),
        state: ActionState::Finished.into(),
        dispatcher: "10.0.0.9:4711 kontrol-master/0.1.0 (ann@desk) tonic/0.14.9".to_owned(),
        master: "m1".to_owned(),
        selector: Some(Selector {
            roles: vec!["web".to_owned()],
            ..Selector::default()
        }),
        command: Some(Command {
            argv: vec!["df".to_owned(), "-h".to_owned()],
            ..Command::default()
        }),
        created: ago(7265),
        timeout: seconds(60),
        summary: Some(ActionSummary {
            targets: 3,
            succeeded: 1,
            failed: 1,
            unreachable: 1,
            duration: seconds(2),
            ..ActionSummary::default()
        }),
        ..Action::default()
    }
}

#[tokio::test]
async fn actions_lists_the_history_page_by_page_up_to_the_limit() {
    let master = Master::start(Script {
        actions: ["a5", "a4", "a3", "a2", "a1"].map(action).into(),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("actions --limit 3 --endpoint {}", master.url)).await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "ID  STATE     AGE    TOOK  TARGETS  OK  FAILED  WHO       COMMAND",
            "a5  finished  2h01m  2s    3        1   2       ann@desk  df -h",
        ]
    );
    assert_eq!(lines.len(), 4);
    assert_eq!(
        master.script.asked(),
        [
            r#"ListActionsRequest { page_size: 3, page_token: "" }"#,
            r#"ListActionsRequest { page_size: 1, page_token: "2" }"#,
        ]
    );
    let ran = run(&format!("actions --output json --endpoint {}", master.url)).await;
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["actions"].as_array().unwrap().len(), 5);
    assert_eq!(answer["nextPageToken"], "");
}

#[tokio::test]
async fn one_action_is_shown_with_its_results_and_the_end_of_their_output() {
    let failed = ActionResult {
        key: "a1".to_owned(),
        id: "web-1".to_owned(),
        outcome: Outcome::Exited.into(),
        exit_code: 3,
        duration: seconds(1),
        stdout_bytes: 20,
        stdout_tail: "100%\t/\r\nend".into(),
        stderr_tail: "\u{1b}[2Jno\n".into(),
        stderr_bytes: 7,
        truncated: true,
        ..ActionResult::default()
    };
    let unreachable = ActionResult {
        id: "web-2".to_owned(),
        outcome: Outcome::Unreachable.into(),
        exit_code: -1,
        error: "no pod has that id".to_owned(),
        ..ActionResult::default()
    };
    let master = Master::start(Script {
        actions: vec![Action {
            results: vec![failed, unreachable],
            detach: true,
            ..action("a1")
        }],
        ..Script::default()
    })
    .await;
    let ran = run(&format!("actions show a1 --endpoint {}", master.url)).await;
    assert_eq!(
        ran.out,
        "Action      a1\n\
         State       finished\n\
         Command     df -h\n\
         For         roles web\n\
         Targets     3 targets: 1 ok, 1 failed, 1 unreachable in 2s\n\
         Accepted    2h01m ago\n\
         Timeout     1m; goes on without its dispatcher\n\
         By          10.0.0.9:4711 kontrol-master/0.1.0 (ann@desk) tonic/0.14.9\n\
         Master      m1\n\
         \n\
         web-1 (a1): exit code 3 in 1s, not all output was passed on\n\
         \u{20} out | … 9 bytes\n\
         \u{20} out | 100%\t/\n\
         \u{20} out | end\n\
         \u{20} err | \u{fffd}[2Jno\n\
         \n\
         web-2 (-): unreachable: no pod has that id\n\
         \n\
         and 1 more, not kept one by one\n"
    );
    let ran = run(&format!("actions show a9 --endpoint {}", master.url)).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("no action has that id"), "{}", ran.err);
}

#[tokio::test]
async fn an_action_is_cancelled_by_its_id() {
    let master = Master::start(Script {
        actions: vec![action("done")],
        ..Script::default()
    })
    .await;
    for (id, told) in [
        ("done", "done had ended before\n"),
        ("a1", "a1 is cancelled\n"),
    ] {
        let ran = run(&format!("actions cancel {id} --endpoint {}", master.url)).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, told), "{}", ran.err);
    }
    assert_eq!(
        master.script.asked()[1],
        r#"CancelActionRequest { id: "a1" }"#
    );
}
