//! What `hold`, `resume`, `evict` and `release` do, and how `status`, `watch` and `explain` tell of it.

mod preview;
mod run;

use super::{
    ago, ensemble, from_now, pod,
    script::{Master, Operated, Script, run, run_with},
    seconds,
};
use kontrol_proto::v1::{
    EvictPodResponse, ExplainPodResponse, GetEnsembleResponse, Hold, LeaveReason, Removal,
    Safeguard, Settings, WatchResponse,
    watch_response::{Event, HoldChanged, SafeguardChanged},
};
use serde_json::{Value, json};
use std::sync::Mutex;
use tonic::Status;

/// Who the scripted master says it was.
const BY: &str = "10.0.0.9:4711 kontrol-master/0.1.0 (ann@desk) tonic/0.14.9";

fn hold() -> Hold {
    Hold {
        reason: "etcd moves\u{1b}[2J".to_owned(),
        by: BY.to_owned(),
        since: ago(300),
        until: from_now(3600),
    }
}

fn safeguard() -> Safeguard {
    Safeguard {
        since: ago(300),
        until: from_now(60),
        silent: 6,
        pods: 10,
        released_by: String::new(),
    }
}

async fn start(operated: Operated) -> Master {
    Master::start(Script {
        operated,
        ..Script::default()
    })
    .await
}

/// Text with each local time in it as `TIME`, whatever it is there.
fn timeless(text: &str) -> String {
    let is_time = |at: usize| {
        let shape = "dddd-dd-dd dd:dd:dd";
        let found = text.get(at..at + shape.len());
        found.is_some_and(|found| {
            found.chars().zip(shape.chars()).all(|(c, s)| match s {
                'd' => c.is_ascii_digit(),
                s => c == s,
            })
        })
    };
    let mut rest = 0;
    let mut told = String::new();
    while let Some(c) = text[rest..].chars().next() {
        if is_time(rest) {
            told += "TIME";
            rest += 19;
        } else {
            told.push(c);
            rest += c.len_utf8();
        }
    }
    told
}

#[tokio::test]
async fn a_hold_tells_until_when_by_whom_and_how_to_end_it() {
    let master = start(Operated {
        hold: Some(hold()),
        ..Operated::default()
    })
    .await;
    let url = &master.url;
    let ran = run(&format!("hold 'etcd moves' --endpoint {url}")).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        timeless(&ran.out),
        "the callback is held until TIME (in 1h00m) by ann@desk: etcd moves\u{fffd}[2J\n\
         no run starts before that, but one that goes on is not stopped; to end the hold: kontrol-master resume\n"
    );
    let line = format!("hold why --for 90m --output json --endpoint {url}");
    let answer: Value = serde_json::from_str(&run(&line).await.out).unwrap();
    assert_eq!(answer["hold"]["by"], BY);
    assert_eq!(answer["revision"], 7);
    assert_eq!(
        master.script.asked(),
        [
            r#"HoldCallbackRequest { reason: "etcd moves", duration: Some(Duration { seconds: 3600, nanos: 0 }) }"#,
            r#"HoldCallbackRequest { reason: "why", duration: Some(Duration { seconds: 5400, nanos: 0 }) }"#,
        ]
    );
}

#[tokio::test]
async fn resume_tells_what_it_ended_or_that_nothing_was_held() {
    let master = start(Operated {
        hold: Some(hold()),
        ..Operated::default()
    })
    .await;
    let ran = run(&format!("resume done --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        timeless(&ran.out),
        "the callback is no longer held; since 5m it was held until TIME (in 1h00m) by ann@desk: etcd moves\u{fffd}[2J\n\
         one run follows for all that has changed, if anything has\n"
    );
    assert_eq!(
        master.script.asked(),
        [r#"ResumeCallbackRequest { reason: "done" }"#]
    );
    let master = start(Operated::default()).await;
    let ran = run(&format!("resume --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "nothing was held\n"));
    let ran = run(&format!("resume --output json --endpoint {}", master.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "{\"revision\":8}\n"));
}

#[tokio::test]
async fn release_tells_what_it_lets_go_or_that_nothing_is_frozen() {
    let master = start(Operated {
        safeguard: Some(safeguard()),
        ..Operated::default()
    })
    .await;
    let ran = run(&format!(
        "release 'they are gone' --endpoint {}",
        master.url
    ))
    .await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "released, so that silent pods leave now: 6 of 10 pods are silent; removals were frozen for 5m\n"
    );
    assert_eq!(
        master.script.asked(),
        [r#"ReleaseSafeguardRequest { reason: "they are gone" }"#]
    );
    let ran = run(&format!("release --output json --endpoint {}", master.url)).await;
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["safeguard"]["silent"], 6);
    let master = start(Operated::default()).await;
    let ran = run(&format!("release --endpoint {}", master.url)).await;
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("nothing is frozen: "), "{}", ran.out);
}

#[tokio::test]
async fn evict_finds_the_pod_as_explain_does_and_tells_what_comes_next() {
    let explained = |key: &str| ExplainPodResponse {
        key: key.to_owned(),
        live: true,
        ..ExplainPodResponse::default()
    };
    let master = Master::start(Script {
        pods: vec![
            pod(1, "blXcB", "web"),
            pod(2, "a3", "twin"),
            pod(3, "a4", "twin"),
        ],
        explanations: vec![explained("blXcB")],
        operated: Operated {
            evicted: EvictPodResponse {
                pod: Some(pod(1, "blXcB", "we\u{1b}b")),
                next: "it is back with its next\nkeepalive".to_owned(),
                revision: 12,
            },
            ..Operated::default()
        },
        ..Script::default()
    })
    .await;
    let url = &master.url;
    for name in ["blXcB", "10.0.0.1", "web"] {
        let ran = run(&format!("evict {name} --reason broken --endpoint {url}")).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{name}");
        assert_eq!(
            ran.out,
            "removed we\u{fffd}b (blXcB) at 10.0.0.1, seq 1\nit is back with its next\u{fffd}keepalive\n"
        );
        assert_eq!(
            master.script.asked().last().unwrap(),
            r#"EvictPodRequest { key: "blXcB", reason: "broken" }"#
        );
    }
    let ran = run(&format!("evict web --output json --endpoint {url}")).await;
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["pod"]["seq"], 1);
    let before = master.script.asked().len();
    for (name, error) in [
        ("twin", "2 live pods have the id twin"),
        ("no-such-pod", "no live pod has the id no-such-pod"),
    ] {
        let ran = run(&format!("evict {name} --endpoint {url}")).await;
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains(error), "{}", ran.err);
    }
    let after = master.script.asked();
    let is_eviction = |asked: &String| asked.starts_with("EvictPod");
    assert!(!after[before..].iter().any(is_eviction), "{after:?}");
}

#[tokio::test]
async fn what_a_master_refuses_is_one_readable_line() {
    for (line, code, status, error) in [
        (
            "evict a1",
            1,
            Status::not_found("no live pod has the key a1"),
            "answers: no live pod has the key a1\n",
        ),
        (
            "run",
            1,
            Status::failed_precondition("the callback is held\nby ann"),
            "answers: the callback is held\u{fffd}by ann\n",
        ),
        (
            "hold why --for 200h",
            2,
            Status::invalid_argument("duration: at most 7 days"),
            "answers: duration: at most 7 days\n",
        ),
        (
            "release",
            1,
            Status::unimplemented(""),
            "does not know this request: is it a kontrol-master",
        ),
        (
            "resume",
            1,
            Status::unavailable("the store was not written in time"),
            "(not ready: the store was not written in time)",
        ),
    ] {
        let master = start(Operated {
            refuse: Some(status),
            ..Operated::default()
        })
        .await;
        let ran = run(&format!("{line} --endpoint {}", master.url)).await;
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{line}");
        assert!(ran.err.contains(error), "{line}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{line}: {}", ran.err);
    }
}

#[tokio::test]
async fn what_operates_a_tier_is_asked_twice_only_when_it_certainly_was_not_done() {
    let explanations = || {
        vec![ExplainPodResponse {
            key: "a1".to_owned(),
            live: true,
            ..ExplainPodResponse::default()
        }]
    };
    let mute = Master::start(Script {
        hang: true,
        explanations: explanations(),
        ..Script::default()
    })
    .await;
    let refuses = start(Operated {
        refuse: Some(Status::unavailable("no store")),
        ..Operated::default()
    })
    .await;
    let other = Master::start(Script {
        explanations: explanations(),
        ..Script::default()
    })
    .await;
    for line in ["hold why", "resume", "run", "evict a1", "release"] {
        let ran = run(&format!(
            "{line} --timeout 300ms --endpoint {},{}",
            mute.url, other.url
        ))
        .await;
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{line}");
        assert!(
            ran.err.contains("so it may or may not be done"),
            "{line}: {}",
            ran.err
        );
        assert!(other.script.asked().is_empty(), "{line}");
    }
    let ran = run(&format!("resume --endpoint {},{}", refuses.url, other.url)).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "nothing was held\n"));
    assert_eq!(other.script.asked().len(), 1);
}

#[tokio::test]
async fn status_tells_a_hold_a_safeguard_and_the_ways_out() {
    let held = |safeguard: Safeguard| GetEnsembleResponse {
        hold: Some(hold()),
        safeguard: Some(safeguard),
        settings: Some(Settings {
            safeguard: 0,
            ..ensemble().settings.unwrap()
        }),
        ..ensemble()
    };
    let released = Safeguard {
        released_by: BY.to_owned(),
        silent: 1,
        ..safeguard()
    };
    let master = Master::start(Script {
        ensembles: Mutex::new([Ok(held(safeguard())), Ok(held(released))].into()),
        ..Script::default()
    })
    .await;
    let ran = run(&format!("status --endpoint {}", master.url)).await;
    let told = timeless(&ran.out);
    for line in [
        "Callback    idle\n\
         Held        until TIME (in 1h00m) by ann@desk: etcd moves\u{fffd}[2J, since 5m; to end it: kontrol-master resume\n\
         Safeguard   removals are frozen until TIME (in 1m) at the latest: 6 of 10 pods are silent, since 5m\n\
         \u{20}           it ends when pods come back, with kontrol-master release, or at that time\n\
         Settings ",
        ", history 1h00m, safeguard off\n",
    ] {
        assert!(told.contains(line), "{line:?} is not in\n{told}");
    }
    let ran = run(&format!("status --endpoint {}", master.url)).await;
    assert!(
        ran.out.contains(
            "Safeguard   released by ann@desk, so that silent pods leave now: 1 of 10 pods is silent, since 5m\n\
             Settings "
        ),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn watch_tells_of_holds_and_of_the_safeguard() {
    let held = |hold| Event::HoldChanged(HoldChanged { hold });
    let frozen = |safeguard| Event::SafeguardChanged(SafeguardChanged { safeguard });
    let released = Safeguard {
        released_by: "10.0.0.9:4711 curl/8.5.0".to_owned(),
        ..safeguard()
    };
    let events = [
        held(Some(hold())),
        held(None),
        frozen(Some(safeguard())),
        frozen(Some(released)),
        frozen(None),
    ];
    let message = |event| {
        Ok(WatchResponse {
            revision: 5,
            event: Some(event),
            ..WatchResponse::default()
        })
    };
    let watch = || Ok(events.clone().map(message).into());
    let master = Master::start(Script {
        watches: Mutex::new([watch(), watch()].into()),
        ..Script::default()
    })
    .await;
    let line = format!("watch --endpoint {}", master.url);
    let ran = run_with(&line, "", Some("go on")).await;
    assert_eq!(
        timeless(&ran.out),
        "TIME  5         callback  held until TIME (in 1h00m) by ann@desk: etcd moves\u{fffd}[2J\n\
         TIME  5         callback  no longer held\n\
         TIME  5         safeguard removals are frozen until TIME (in 1m) at the latest: 6 of 10 pods are silent\n\
         TIME  5         safeguard released by 10.0.0.9:4711 curl/8.5.0, so that silent pods leave now: 6 of 10 pods are silent\n\
         TIME  5         safeguard removals for silence go on\n"
    );
    let ran = run_with(
        &format!("{line} --output json"),
        "",
        Some("\"safeguardChanged\":{}"),
    )
    .await;
    let second = ran.out.lines().nth(1).unwrap();
    let second: Value = serde_json::from_str(second).unwrap();
    assert_eq!(second, json!({"revision": 5, "holdChanged": {}}));
}

#[tokio::test]
async fn explain_tells_who_evicted_a_pod() {
    let removal = |by: &str| Removal {
        pod: Some(pod(0, "a1", "web")),
        reason: LeaveReason::Evicted.into(),
        time: ago(7265),
        silence: seconds(2),
        master: "m1".to_owned(),
        by: by.to_owned(),
    };
    let explained = |key: &str, live, summary: &str, by| ExplainPodResponse {
        key: key.to_owned(),
        live,
        summary: summary.to_owned(),
        removal: Some(removal(by)),
        ..ExplainPodResponse::default()
    };
    let master = Master::start(Script {
        explanations: vec![
            explained("a1", true, "it is back", "ann\u{1b}: broken"),
            explained("a2", false, "it is out", "ann\u{1b}: broken"),
            explained("a3", false, "evicted by ann: broken", "ann: broken"),
        ],
        ..Script::default()
    })
    .await;
    for (key, told) in [
        (
            "a1",
            "it is back\nlast removal: 2h01m ago, web by m1: an operator evicted it (ann\u{fffd}: broken); it had been silent for 2s\n",
        ),
        ("a2", "it is out\nevicted by ann\u{fffd}: broken\n"),
        ("a3", "evicted by ann: broken\n"),
    ] {
        let ran = run(&format!("explain {key} --endpoint {}", master.url)).await;
        assert_eq!(ran.out, told);
    }
    let ran = run(&format!(
        "explain a1 --output json --endpoint {}",
        master.url
    ))
    .await;
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["removal"]["reason"], "LEAVE_REASON_EVICTED");
}
