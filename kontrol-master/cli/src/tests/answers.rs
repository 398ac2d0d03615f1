//! What each command shows.

use super::{
    DIGEST, ago, ensemble, master, object, pod,
    script::{Master, Script, run, run_with},
    seconds, string,
};
use kontrol_proto::v1::{
    CallbackRun, CallbackStatus, ExplainPodResponse, GetEnsembleResponse, GetStateResponse,
    LeaveReason, MasterView, Pod, Removal, Settings,
};
use serde_json::json;
use std::time::{Duration, SystemTime};

#[tokio::test]
async fn status_tells_the_ensemble_at_a_glance() {
    let master = Master::start(Script {
        ensemble: ensemble(),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("status --endpoint {}", master.url)).await;
    assert_eq!(
        ran.out,
        "Ensemble    default/demo\n\
         Pods        2\n\
         Digest      0123456789abcdef0123456789abcdef\n\
         Handled     this digest\n\
         Leader      m2 at m2.example:8000, epoch 42\n\
         Masters     m1 at m1.example:8000 (answered)\n\
         \u{20}           m2 at m2.example:8000 (leads)\n\
         Callback    idle\n\
         Settings    ttl 25s, interval 8s, damper 2.5s (at most 1m), fover 5s, lost 3s, history 1h00m, safeguard over 50% of 10 pods or more (at most 4m10s)\n\
         Revision    9007199254740993\n"
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let agent = master.script.agent.lock().unwrap().clone();
    let name = concat!("kontrol-master/", env!("CARGO_PKG_VERSION"), " (");
    let host = format!("@{}) ", kontrol_runtime::host::host_name());
    assert!(agent.starts_with(name) && agent.contains(&host), "{agent}");
}

#[tokio::test]
async fn status_shows_trouble() {
    let master = Master::start(Script {
        ensemble: GetEnsembleResponse {
            leader: None,
            epoch: 0,
            handled_digest: "f".repeat(32),
            callback: Some(CallbackStatus {
                configured: true,
                pending_since: ago(4),
                failures: 3,
                retry_at: Some((SystemTime::now() + Duration::from_secs(3600)).into()),
                last_run: Some(CallbackRun {
                    digest: DIGEST.to_owned(),
                    start: ago(90),
                    duration: seconds(2),
                    exit_code: 3,
                    error: "exit code 3\u{1b}[2J".to_owned(),
                }),
                error: "the state can't be read".to_owned(),
                ..CallbackStatus::default()
            }),
            settings: Some(Settings {
                lease: seconds(15),
                ..ensemble().settings.unwrap()
            }),
            ..ensemble()
        },
        ..Script::default()
    })
    .await;
    let ran = run(&format!("status --endpoint {}", master.url)).await;
    for line in [
        format!("Handled     another: {}\n", "f".repeat(32)),
        "Leader      none: nobody expires".to_owned(),
        "Callback    a change waits for the damper since 4".to_owned(),
        format!(
            "Last run    1m30s ago for {DIGEST}, failed after 2s, exit code 3: exit code 3\u{fffd}[2J\n"
        ),
        "Trouble     the state can't be read\n".to_owned(),
        "fover 5s (the store grants no lease under 15s), lost 3s".to_owned(),
        "Failures    3 since the last success, next try in 59m".to_owned(),
    ] {
        assert!(ran.out.contains(&line), "{line:?} is not in\n{}", ran.out);
    }
}

#[tokio::test]
async fn json_has_every_field_in_proto3_json_with_plain_numbers() {
    let master = Master::start(Script {
        ensemble: ensemble(),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("status --output json --endpoint {}", master.url)).await;
    assert_eq!(ran.out.lines().count(), 1);
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        answer,
        json!({
            "namespace": "default", "app": "demo", "digest": DIGEST, "podCount": 2, "epoch": 42,
            "leader": {"id": "m2", "address": "m2.example:8000"},
            "masters": [
                {"id": "m1", "address": "m1.example:8000"},
                {"id": "m2", "address": "m2.example:8000"},
            ],
            "callback": {"configured": true, "failures": 0, "runningDigest": "", "error": ""},
            "handledDigest": DIGEST, "revision": 9_007_199_254_740_993_i64,
            "settings": {"ttl": "25s", "interval": "8s", "damper": "2.500s", "damperMax": "60s", "fover": "5s", "lost": "3s", "history": "3600s", "safeguard": 50, "safeguardMin": 10, "safeguardMax": "250s"},
            "master": "m1",
        })
    );
}

#[tokio::test]
async fn pods_are_a_table_for_a_person() {
    let master = Master::start(Script {
        pods: vec![
            pod(0, "a1", "web-0"),
            Pod {
                payload: Some(string(&"x".repeat(99))),
                node: "n1".to_owned(),
                ..pod(11, "a2", "web-11")
            },
            pod(12, "a3", "web-12"),
        ],
        ..Script::default()
    })
    .await;
    let ran = run(&format!("pods --endpoint {}", master.url)).await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines[0],
        "SEQ  KEY  ID      IP         APP   ROLE  NODE  AGE    HEARD  MASTER  PAYLOAD"
    );
    assert!(lines[1].starts_with("0    a1   web-0   10.0.0.0   demo  web   -     2h01m  3"));
    assert!(lines[1].ends_with("  m1      {\"load\":1}"), "{}", lines[1]);
    assert!(lines[2].starts_with("11   a2   web-11  10.0.0.11  demo  web   n1    2h01m  3"));
    assert!(lines[2].ends_with(&format!("\"{}…", "x".repeat(39))));
    assert!(
        lines[3].starts_with("12   a3"),
        "of another page: {lines:?}"
    );
    assert_eq!(lines.len(), 4);
}

#[tokio::test]
async fn pods_are_asked_for_by_role_and_selector() {
    let master = Master::start(Script {
        pods: vec![pod(0, "a1", "web-0")],
        ..Script::default()
    })
    .await;
    let ran = run(&format!(
        "pods --role web --selector ' app == web , tier in (b,a)' --output json --endpoint {}",
        master.url
    ))
    .await;
    assert_eq!(
        master.script.asked(),
        [
            r#"ListPodsRequest { role: "web", selector: "app=web,tier in (a,b)", page_size: 0, page_token: "" }"#
        ]
    );
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["pods"][0]["payload"], json!({"load": 1}));
    assert_eq!(answer["pods"][0]["seq"], json!(0));
    assert_eq!(answer["pods"][0]["labels"], json!({}));
    assert!(ran.out.contains(r#""load":1}"#), "{}", ran.out);
}

#[tokio::test]
async fn state_prints_the_state_and_nothing_else() {
    let master = Master::start(Script {
        state: GetStateResponse {
            state: Some(object("runs", 3.0)),
            ..GetStateResponse::default()
        },
        ..Script::default()
    })
    .await;
    let ran = run(&format!("state --endpoint {}", master.url)).await;
    assert_eq!(ran.out, "{\n  \"runs\": 3\n}\n");
    let ran = run(&format!("state --output json --endpoint {}", master.url)).await;
    assert_eq!(ran.out, "{\"runs\":3}\n");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[tokio::test]
async fn a_state_is_shown_digit_for_digit_and_null_is_one() {
    for (kept, shown) in [
        (
            r#"{"id":18446744073709551616,"b":[]}"#,
            "{\n  \"id\": 18446744073709551616,\n  \"b\": []\n}\n",
        ),
        ("null", "null\n"),
    ] {
        let master = Master::start(Script {
            state: GetStateResponse {
                state: Some(string("the nearest double")),
                json: kept.to_owned(),
                ..GetStateResponse::default()
            },
            ..Script::default()
        })
        .await;
        let ran = run(&format!("state --endpoint {}", master.url)).await;
        assert_eq!((ran.out.as_str(), ran.err.as_str()), (shown, ""));
        let ran = run(&format!("state --output json --endpoint {}", master.url)).await;
        assert_eq!(ran.out, format!("{kept}\n"));
    }
}

#[tokio::test]
async fn no_state_is_null_and_a_note() {
    let master = Master::start(Script::default()).await;
    let ran = run(&format!("state --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "null\n"));
    assert!(ran.err.contains("no state yet"), "{}", ran.err);
}

#[tokio::test]
async fn state_is_put_from_an_argument_or_from_standard_input() {
    let master = Master::start(Script::default()).await;
    let url = &master.url;
    let ran = run(&format!("state put '{{\"a\":1}}' --endpoint {url}")).await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "stored at revision 7\n"),
        "{}",
        ran.err
    );
    let line = format!("state --endpoint {url} --output json put -");
    let ran = run_with(&line, "\n\"text\"\n", None).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "{\"revision\":7}\n"));
    let ran = run(&format!("state put --endpoint {url} -1")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let asked = master.script.asked();
    assert!(asked[0].contains(r#"json: "{\"a\":1}""#), "{asked:?}");
    assert!(asked[1].contains(r#"json: "\"text\"""#), "{asked:?}");
    assert!(asked[2].contains(r#"json: "-1""#), "{asked:?}");
}

#[tokio::test]
async fn a_state_that_is_no_json_is_a_usage_error_and_goes_nowhere() {
    let master = Master::start(Script::default()).await;
    let ran = run(&format!("state put '{{a:1}}' --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(
        ran.err
            .starts_with("error: the state must be one JSON value: "),
        "{}",
        ran.err
    );
    assert!(master.script.asked().is_empty());
}

fn explained(key: &str, live: bool) -> ExplainPodResponse {
    ExplainPodResponse {
        key: key.to_owned(),
        live,
        summary: format!("summary of {key}"),
        ..ExplainPodResponse::default()
    }
}

#[tokio::test]
async fn explain_takes_a_key_an_address_or_an_id() {
    let master = Master::start(Script {
        pods: vec![
            pod(0, "a1", "web"),
            pod(1, "a2", "twin"),
            pod(2, "a3", "twin"),
        ],
        explanations: vec![
            explained("a1", true),
            explained("blXcB", true),
            explained("gone", false),
        ],
        ..Script::default()
    })
    .await;
    for (pod, key) in [
        ("a1", "a1"),
        ("web", "a1"),
        ("10.0.0.1", "blXcB"),
        ("::ffff:10.0.0.1", "blXcB"),
        ("gone", "gone"),
    ] {
        let ran = run(&format!("explain {pod} --endpoint {}", master.url)).await;
        assert_eq!(ran.code, 0, "{pod}: {}", ran.err);
        assert!(
            ran.out.contains(&format!("summary of {key}\n")),
            "{pod}: {}",
            ran.out
        );
    }
    let ran = run(&format!("explain twin --endpoint {}", master.url)).await;
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "error: 2 live pods have the id twin: name one by its key: a2, a3\n"
    );
    let ran = run(&format!("explain no-such-pod --endpoint {}", master.url)).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("no live pod has the id no-such-pod"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn explain_shows_what_each_master_heard_and_the_last_removal() {
    let view = |id: &str| MasterView {
        master: Some(self::master(id)),
        ..MasterView::default()
    };
    let master = Master::start(Script {
        explanations: vec![ExplainPodResponse {
            views: vec![
                MasterView {
                    leads: true,
                    heard_ago: seconds(3),
                    expires_in: seconds(22),
                    ..view("m1")
                },
                view("m2"),
                MasterView {
                    error: "no answer".to_owned(),
                    ..view("m3")
                },
            ],
            removal: Some(Removal {
                pod: Some(pod(0, "a1", "web")),
                reason: LeaveReason::Expired.into(),
                time: ago(7265),
                silence: seconds(25),
                master: "m1".to_owned(),
                by: String::new(),
            }),
            ..explained("a1", true)
        }],
        ..Script::default()
    })
    .await;
    let ran = run(&format!("explain a1 --endpoint {}", master.url)).await;
    assert_eq!(
        ran.out,
        "summary of a1\n\
         last removal: 2h01m ago, web by m1: it was silent for its TTL; it had been silent for 25s\n\
         \n\
         MASTER                 LEADS  HEARD   EXPIRES  ERROR\n\
         m1 at m1.example:8000  yes    3s ago  in 22s   -\n\
         m2 at m2.example:8000  no     never   -        -\n\
         m3 at m3.example:8000  no     -       -        no answer\n"
    );
    let ran = run(&format!(
        "explain a1 --output json --endpoint {}",
        master.url
    ))
    .await;
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["removal"]["reason"], "LEAVE_REASON_EXPIRED");
    assert_eq!(answer["views"][0]["expiresIn"], "22s");
}
