//! What `preview` shows.

use super::{
    super::{
        DIGEST, from_now,
        script::{Operated, run},
    },
    start, timeless,
};
use kontrol_proto::v1::{PreviewCallbackResponse, WaitReason, preview_callback_response::Wait};
use serde_json::{Value, json};

fn pods(count: usize) -> Vec<Value> {
    let pod = |number| json!({"id": format!("web-{number}"), "key": format!("a{number}"), "seq": number, "payload": {}});
    (0..count).map(pod).collect()
}

fn preview(input: &str, waits: Vec<Wait>) -> Operated {
    Operated {
        preview: PreviewCallbackResponse {
            digest: DIGEST.to_owned(),
            handled_digest: "f".repeat(32),
            input: None,
            input_json: input.to_owned(),
            waits,
        },
        ..Operated::default()
    }
}

#[tokio::test]
async fn a_person_sees_how_much_it_is_the_first_pods_and_what_the_run_waits_for() {
    let input = json!({
        "hash": DIGEST, "md5": DIGEST, "epoch": 3, "state": {"a": 1}, "pods": pods(40),
        "changes": {
            "since": "f".repeat(32), "joined": pods(23), "changed": [{"key": "a\u{1b}", "id": ""}], "left": [],
        },
    });
    let waits = vec![
        Wait {
            reason: WaitReason::Held.into(),
            until: from_now(60),
            text: "held by ann\u{1b}[2J".to_owned(),
        },
        Wait {
            reason: WaitReason::Running.into(),
            ..Wait::default()
        },
    ];
    let master = start(preview(&input.to_string(), waits)).await;
    let ran = run(&format!("preview --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let named: String = (0..20)
        .map(|n| format!("            a{n} web-{n}\n"))
        .collect();
    assert_eq!(
        timeless(&ran.out),
        format!(
            "Digest      {DIGEST}\n\
             Handled     another: {old}\n\
             Pods        40\n\
             State       7 bytes\n\
             Since       {old}\n\
             Joined      23\n\
             {named}\
             \u{20}           and 3 more\n\
             Changed     1\n\
             \u{20}           a\u{fffd} -\n\
             Left        none\n\
             Waits for   held by ann\u{fffd}[2J; until TIME (in 1m)\n\
             \u{20}           the end of the run that goes on\n",
            old = "f".repeat(32)
        )
    );
}

#[tokio::test]
async fn the_first_run_and_one_that_waits_for_nothing_are_told() {
    let input = json!({"pods": pods(20), "state": null, "changes": {"since": null, "joined": pods(20), "changed": [], "left": []}});
    let master = start(preview(&input.to_string(), Vec::new())).await;
    let ran = run(&format!("preview --endpoint {}", master.url)).await;
    for line in [
        "State       null, or none yet\n",
        "Since       the beginning: every pod counts as joined\n",
        "            a19 web-19\nChanged     none\n",
        "Waits for   nothing: it starts in a moment, or goes on\n",
    ] {
        assert!(ran.out.contains(line), "{line:?} is not in\n{}", ran.out);
    }
}

#[tokio::test]
async fn a_program_gets_the_input_digit_for_digit() {
    let input = r#"{"state":18446744073709551616,"pods":[]}"#;
    let waits = vec![Wait {
        reason: WaitReason::Damper.into(),
        ..Wait::default()
    }];
    let master = start(preview(input, waits)).await;
    let ran = run(&format!("preview --output json --endpoint {}", master.url)).await;
    assert_eq!(
        ran.out,
        format!(
            "{{\"digest\":\"{DIGEST}\",\"handledDigest\":\"{}\",\"input\":{input},\"waits\":[{{\"reason\":\"WAIT_REASON_DAMPER\",\"text\":\"\"}}]}}\n",
            "f".repeat(32)
        )
    );
}

#[tokio::test]
async fn a_large_answer_is_taken() {
    let text = "x".repeat(17 * 1024 * 1024);
    let input = json!({"pods": [{"key": "a1", "id": "web", "payload": text}]}).to_string();
    let master = start(preview(&input, Vec::new())).await;
    let ran = run(&format!("preview --timeout 20s --endpoint {}", master.url)).await;
    assert!(
        ran.out.contains("Pods        1\n"),
        "{}{}",
        ran.out,
        ran.err
    );
}

#[tokio::test]
async fn an_input_that_is_none_is_an_error_and_none_at_all_is_left_out() {
    let master = start(preview("{\"pods\":7}", Vec::new())).await;
    let ran = run(&format!("preview --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(
        ran.err
            .starts_with("error: cannot read what the master answers: "),
        "{}",
        ran.err
    );
    let master = start(preview("", Vec::new())).await;
    let ran = run(&format!("preview --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.lines().count()), (0, 3), "{}", ran.out);
}
