//! PreviewCallback: byte for byte what the next run finds on its standard input, and what it waits for.

use super::{join, pair, seconds};
use anyhow::ensure;
use kontrol_proto::v1::{PreviewCallbackResponse, WaitReason, preview_callback_response::Wait};
use kontrol_tests::{
    SOON,
    client::Api,
    cluster::Cluster,
    etcd::Etcd,
    pod::PodSpec,
    script::{Plan, Recorder},
    small,
    wait::eventually,
};
use serde_json::{Value, json, value::RawValue};
use std::{collections::BTreeMap, fs, time::Duration};
use tonic::Code;

/// What the next run waits for.
fn waits(preview: &PreviewCallbackResponse) -> Vec<WaitReason> {
    let waits = preview.waits.iter();
    waits.map(|wait| wait.reason()).collect()
}

/// What it says of one thing that it waits for.
fn of(preview: &PreviewCallbackResponse, reason: WaitReason) -> Wait {
    let mut waits = preview.waits.iter();
    let found = waits.find(|wait| wait.reason() == reason);
    found.unwrap().clone()
}

/// Waits until the next run waits for this.
async fn waiting(api: &Api, reason: WaitReason) -> PreviewCallbackResponse {
    eventually(SOON, reason.as_str_name(), async || {
        let preview = api.preview().await?;
        ensure!(
            waits(&preview).contains(&reason),
            "{:?} {}",
            preview.waits,
            preview.digest
        );
        Ok(preview)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_byte_for_byte_what_the_run_is_handed() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    // The state that it prints has numbers that no double holds.
    let script = format!(
        "cat >{0}.new; mv {0}.new {0}; echo '{{\"big\": 12345678901234567890123, \"exact\": 1.10, \"é\": \"\\\"\"}}'",
        input.display()
    );
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .set("shell-callback", &script)
        .start()
        .await;
    let follower = cluster.follower().await;
    join(&cluster.api(0), 0..3).await;
    cluster.handled(follower, 3).await;
    let api = cluster.api(follower);
    api.hold("to look", Duration::from_secs(120)).await.unwrap();
    // Joined, changed and left since the last run, with what JSON has to write with care.
    join(&api, 3..5).await;
    let odd = PodSpec::number(0).payload(json!({"é'\"\n": [1, 2.5, null], "a": {"b": "\u{7f}"}}));
    api.ping(&odd).await.unwrap();
    api.ping(&PodSpec::number(1).down()).await.unwrap();
    let view = cluster
        .ensemble(1 - follower, "four pods", |view| {
            view.pod_count == 4 && view.digest != view.handled_digest
        })
        .await;
    let mut texts = Vec::new();
    for index in 0..2 {
        let api = cluster.api(index);
        let preview = eventually(SOON, "preview of the roster", async || {
            let preview = api.preview().await?;
            ensure!(preview.digest == view.digest, "{preview:?}");
            ensure!(waits(&preview) == [WaitReason::Held], "{preview:?}");
            Ok(preview)
        })
        .await;
        assert_eq!(preview.handled_digest, view.handled_digest);
        assert_eq!(preview.input, None, "over HTTP only");
        let body = api.http("GET", "/v1/callback:preview", None).await;
        assert_eq!(body.status, 200, "{}", body.body);
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&body.body).unwrap();
        assert!(!fields.contains_key("inputJson"), "{}", body.body);
        texts.push(fields["input"].get().to_owned());
        texts.push(preview.input_json);
        let whole = body.ok();
        assert_eq!(whole["waits"][0]["reason"], "WAIT_REASON_HELD");
        assert_eq!(whole["digest"], view.digest.as_str());
        assert_eq!(whole["input"]["hash"], view.digest.as_str());
    }
    fs::remove_file(&input).unwrap();
    api.resume("seen").await.unwrap();
    cluster.handled(follower, 4).await;
    let handed = fs::read_to_string(&input).unwrap();
    for text in &texts {
        assert_eq!(text, handed.trim_end_matches('\n'));
    }
    let handed: Value = serde_json::from_str(&handed).unwrap();
    let names: Vec<_> = handed.as_object().unwrap().keys().collect();
    for name in ["hash", "md5", "pods", "state", "changes", "epoch"] {
        assert!(names.iter().any(|has| *has == name), "{name} in {names:?}");
    }
    assert_eq!(handed["changes"]["joined"].as_array().unwrap().len(), 2);
    assert!(
        texts[0].contains("12345678901234567890123") && texts[0].contains("1.10"),
        "{}",
        texts[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_compaction_the_leader_tells_what_changed_and_the_others_name_it() {
    let _permit = small().await;
    let Some((etcd, _recorder, mut cluster)) = pair(None).await else {
        return;
    };
    let follower = cluster.follower().await;
    let leader = cluster.api(1 - follower);
    join(&leader, 0..2).await;
    cluster.handled(follower, 2).await;
    leader
        .hold("to look", Duration::from_secs(120))
        .await
        .unwrap();
    join(&leader, 2..3).await;
    etcd.compact().await;
    let preview = waiting(&leader, WaitReason::Held).await;
    let input: Value = serde_json::from_str(&preview.input_json).unwrap();
    let joined = input["changes"]["joined"].as_array().unwrap();
    assert_eq!(joined.len(), 1, "{joined:?}");
    let status = cluster.api(follower).preview().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let ensemble = leader.ensemble().await.unwrap();
    let address = ensemble.leader.unwrap().address;
    assert!(status.message().contains(&address), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_what_the_next_run_waits_for() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let damper = Duration::from_secs(3);
    let cluster = Cluster::on("memory:")
        .patient()
        .damper(damper)
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    // The damper, until a time that the leader tells as well.
    join(&api, 0..1).await;
    let preview = waiting(&api, WaitReason::Damper).await;
    let wait = of(&preview, WaitReason::Damper);
    let due = api.ensemble().await.unwrap().callback.unwrap().due;
    let apart = seconds(wait.until) - seconds(due);
    assert!(apart.abs() < 1.0, "{wait:?} and {due:?}");
    assert!(!wait.text.is_empty());
    let input: Value = serde_json::from_str(&preview.input_json).unwrap();
    assert_eq!(input["hash"], preview.digest.as_str());
    assert_eq!(preview.handled_digest, "");
    assert!(recorder.runs().is_empty(), "nothing runs for a preview");
    // Nothing new.
    let view = cluster.handled(0, 1).await;
    let preview = waiting(&api, WaitReason::NothingNew).await;
    assert_eq!(preview.handled_digest, view.digest);
    // A hold, until its end, and the damper beside it.
    let held = api.hold("why", Duration::from_secs(60)).await.unwrap().hold;
    join(&api, 1..2).await;
    let preview = waiting(&api, WaitReason::Held).await;
    let wait = of(&preview, WaitReason::Held);
    assert_eq!(wait.until, held.unwrap().until);
    assert!(wait.text.contains("why"), "{wait:?}");
    // A run that goes on.
    recorder.plan(&Plan {
        takes: Duration::from_secs(4),
        fails: u32::MAX,
        ..Plan::default()
    });
    api.resume("").await.unwrap();
    waiting(&api, WaitReason::Running).await;
    // One that failed.
    let preview = waiting(&api, WaitReason::Retry).await;
    let wait = of(&preview, WaitReason::Retry);
    assert!(wait.until.is_some() && !wait.text.is_empty(), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_callback_it_tells_that_there_is_none() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    join(&api, 0..2).await;
    let preview = waiting(&api, WaitReason::NoCallback).await;
    let list = api.pods().await.unwrap();
    assert_eq!(preview.digest, list.digest);
    let input: Value = serde_json::from_str(&preview.input_json).unwrap();
    assert_eq!(input["pods"].as_array().unwrap().len(), 2);
}
