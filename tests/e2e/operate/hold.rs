//! A hold: nothing runs while it stands, one run follows it, and it outlives whoever took it.

use super::{alone, join, nothing_runs, pair, post, runs_since, seconds, told};
use anyhow::ensure;
use kontrol_proto::v1::{Hold, HoldCallbackRequest, WatchResponse, watch_response::Event};
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    pod::PodSpec,
    script::{Plan, now},
    small,
    wait::eventually,
};
use prost_types::Duration as Span;
use serde_json::json;
use std::time::Duration;
use tonic::Code;

const LONG: Duration = Duration::from_secs(120);

/// What a message says of a hold: one that stands, or none any more.
fn of_hold(message: &WatchResponse) -> Option<Option<Hold>> {
    match &message.event {
        Some(Event::HoldChanged(changed)) => Some(changed.hold.clone()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_during_a_hold_and_one_run_with_the_final_roster_follows_it() {
    let _permit = small().await;
    let Some((etcd, recorder, mut cluster)) = pair(None).await else {
        return;
    };
    let follower = cluster.follower().await;
    let api = cluster.api(follower);
    join(&api, 0..1).await;
    cluster.handled(0, 1).await;
    let runs = recorder.runs().len();
    let mut watches = Vec::new();
    for index in 0..2 {
        watches.push(cluster.api(index).watch(0).await.unwrap());
    }

    let answer = api.hold("a move of the data", LONG).await.unwrap();
    let hold = answer.hold.unwrap();
    assert!(answer.revision > 0);
    assert_eq!(hold.reason, "a move of the data");
    assert!(hold.by.contains("127.0.0.1"), "{hold:?}");
    let lasts = seconds(hold.until) - seconds(hold.since);
    assert!((lasts - LONG.as_secs_f64()).abs() < 1.0, "{hold:?}");
    for watch in &mut watches {
        let told = watch.until(SOON, "hold", of_hold).await;
        assert_eq!(told, Some(hold.clone()));
    }
    for index in 0..2 {
        let view = cluster
            .ensemble(index, "hold", |view| view.hold.is_some())
            .await;
        assert_eq!(view.hold, Some(hold.clone()));
        let view = cluster.api(index).http("GET", "/v1/ensemble", None).await;
        assert_eq!(view.ok()["hold"]["reason"], "a move of the data");
    }
    let held = async || api.metric("kontrol_master_callback_held").await;
    eventually(SOON, "gauge", async || {
        ensure!(held().await == Some(1.0));
        Ok(())
    })
    .await;
    let key = format!("{}operate", cluster.prefix());
    let stored = etcd.read(&key).await;
    let readable = stored.values().any(|text| text.contains("a move"));
    assert!(readable, "by etcdctl as well: {stored:?}");
    join(&api, 1..4).await;
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    join(&api, 4..6).await;
    api.ping(&PodSpec::number(1).down()).await.unwrap();
    nothing_runs(&recorder, cluster.spec.damper * 4).await;

    let ended = api.resume("moved").await.unwrap();
    assert_eq!(ended.hold, Some(hold));
    let (view, runs) = runs_since(&cluster, &recorder, runs, 5).await;
    let [run] = &runs[..] else {
        panic!("one run follows a hold: {runs:#?}")
    };
    assert_eq!(run.hash, view.digest);
    assert_eq!(
        run.read().ids,
        ["pod-0", "pod-2", "pod-3", "pod-4", "pod-5"]
    );
    assert_eq!(view.hold, None);
    for watch in &mut watches {
        watch
            .until(SOON, "end of the hold", |message| {
                of_hold(message)?.is_none().then_some(())
            })
            .await;
        let of_holds = told(&watch.seen, of_hold);
        assert_eq!(of_holds.len(), 2, "{of_holds:?}");
    }
    let again = api.resume("").await.unwrap();
    assert_eq!(again.hold, None, "there is nothing to end");
    eventually(SOON, "gauge", async || {
        ensure!(held().await == Some(0.0));
        Ok(())
    })
    .await;
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_by_itself() {
    let _permit = small().await;
    let (recorder, cluster) = alone().await;
    let api = cluster.api(0);
    let lasts = Duration::from_secs(3);
    let before = now();
    let held = api.hold("a moment", lasts).await.unwrap().hold.unwrap();
    let after = now();
    let mut watch = api.watch(0).await.unwrap();
    join(&api, 0..3).await;
    let (view, runs) = runs_since(&cluster, &recorder, 0, 3).await;
    let [run] = &runs[..] else {
        panic!("one run follows a hold: {runs:#?}")
    };
    assert_eq!(run.hash, view.digest);
    assert!(
        run.start >= before + lasts.as_secs_f64(),
        "{} s after the hold began",
        run.start - before
    );
    let latest = after + (lasts + cluster.spec.damper + SLACK).as_secs_f64();
    assert!(
        run.start <= latest,
        "{} s after the hold",
        run.start - latest
    );
    assert_eq!(view.hold, None, "{held:?} is over");
    watch
        .until(SOON, "end of the hold", |message| {
            of_hold(message)?.is_none().then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_stands_is_replaced_by_a_longer_and_by_a_shorter_one() {
    let _permit = small().await;
    let (recorder, cluster) = alone().await;
    let api = cluster.api(0);
    let short = Duration::from_secs(1);
    api.hold("first", short).await.unwrap();
    let body = json!({"reason": "second", "duration": "120s"});
    let second = post(&api, "/v1/callback:hold", &body).await;
    assert_eq!(second["hold"]["reason"], "second");
    assert!(
        second["hold"]["by"].as_str().unwrap().contains("ureq"),
        "what the client calls itself: {second}"
    );
    assert!(second["revision"].as_i64().unwrap() > 0);
    join(&api, 0..2).await;
    // The end of the first would be long past.
    nothing_runs(&recorder, short * 2 + cluster.spec.damper).await;
    let view = api.ensemble().await.unwrap();
    assert_eq!(view.hold.unwrap().reason, "second");
    api.hold("third", short).await.unwrap();
    let (view, runs) = runs_since(&cluster, &recorder, 0, 2).await;
    assert_eq!(runs.len(), 1, "{runs:#?}");
    assert_eq!(runs[0].hash, view.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_survives_its_leader_and_then_every_master() {
    let _permit = small().await;
    let Some((_etcd, recorder, mut cluster)) = pair(None).await else {
        return;
    };
    let leader = cluster.leader().await;
    let other = 1 - leader;
    join(&cluster.api(leader), 0..2).await;
    cluster.handled(leader, 2).await;
    let runs = recorder.runs().len();
    let held = cluster.api(leader).hold("by one that dies", LONG).await;
    let held = held.unwrap().hold;
    join(&cluster.api(leader), 2..4).await;
    cluster.masters[leader].kill();
    cluster.leader_among(&[other], SOON).await;
    let api = cluster.api(other);
    eventually(SOON, "join", async || {
        Ok(api.ping(&PodSpec::number(4)).await?)
    })
    .await;
    assert_eq!(api.ensemble().await.unwrap().hold, held);
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    cluster.masters[other].kill();
    cluster.masters[leader].launch();
    cluster.masters[other].launch();
    cluster.ready().await;
    let leader = cluster.leader().await;
    let view = cluster
        .ensemble(leader, "five pods", |view| view.pod_count == 5)
        .await;
    assert_eq!(view.hold, held);
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    let ended = cluster.api(1).resume("it is well").await.unwrap();
    assert_eq!(ended.hold, held);
    let (view, runs) = runs_since(&cluster, &recorder, runs, 5).await;
    assert_eq!(runs.len(), 1, "{runs:#?}");
    assert_eq!(
        (&runs[0].hash, runs[0].read().pods),
        (&view.digest, 5),
        "with the final roster"
    );
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_stops_no_run_and_what_goes_back_meanwhile_is_no_news() {
    let _permit = small().await;
    let (recorder, cluster) = alone().await;
    recorder.plan(&Plan {
        takes: Duration::from_secs(2),
        ..Plan::default()
    });
    let api = cluster.api(0);
    join(&api, 0..1).await;
    eventually(SOON, "running callback", async || {
        ensure!(recorder.runs().iter().any(|run| run.read.is_some()));
        Ok(())
    })
    .await;
    api.hold("too late for this one", LONG).await.unwrap();
    let view = cluster.handled(0, 1).await;
    assert_eq!(recorder.successes().len(), 1);
    let pod = PodSpec::number(0);
    api.ping(&pod.clone().payload("away".into())).await.unwrap();
    let away = api.ensemble().await.unwrap();
    assert_ne!(away.digest, view.digest);
    nothing_runs(&recorder, cluster.spec.damper * 3).await;
    api.ping(&pod).await.unwrap();
    api.resume("").await.unwrap();
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    assert_eq!(recorder.runs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_refused_by_field_and_changes_nothing() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let span = |seconds, nanos| Some(Span { seconds, nanos });
    let long = "x".repeat(1001);
    let wide = "é".repeat(501);
    let week = 7 * 24 * 60 * 60;
    for (field, reason, duration) in [
        ("reason", "", None),
        ("reason", &long, None),
        ("reason", &wide, None),
        ("duration", "why", span(-5, 0)),
        ("duration", "why", span(0, -1)),
        ("duration", "why", span(week, 1)),
        ("duration", "why", span(week + 1, 0)),
        ("duration", "why", span(i64::MAX, 0)),
    ] {
        let request = HoldCallbackRequest {
            reason: reason.to_owned(),
            duration,
        };
        let status = api.ask_hold(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{duration:?}");
        let message = status.message();
        assert!(message.contains(field), "{field} is not named: {message}");
        assert!(message.len() < 500, "a message for people: {message}");
    }
    for (field, route, body) in [
        ("reason", "hold", json!({})),
        ("reason", "hold", json!({"reason": ""})),
        ("reason", "hold", json!({"reason": 5})),
        (
            "duration",
            "hold",
            json!({"reason": "why", "duration": "soon"}),
        ),
        (
            "duration",
            "hold",
            json!({"reason": "why", "duration": "604801s"}),
        ),
        ("reason", "resume", json!({"reason": long})),
        ("reason", "run", json!({"reason": long})),
        ("again", "run", json!({"again": "perhaps"})),
    ] {
        let route = format!("/v1/callback:{route}");
        let answer = api.http("POST", &route, Some(&body)).await;
        assert_eq!(answer.status, 400, "{route}: {}", answer.body);
        let message = answer.json()["message"].to_string();
        assert!(message.contains(field), "{field} is not named: {message}");
    }
    let body = json!({ "reason": long });
    let answer = api.http("POST", "/v1/safeguard:release", Some(&body)).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(api.ensemble().await.unwrap().hold, None);

    // What is at the limits is good, and an hour is the default.
    let reason = "x".repeat(1000);
    let request = HoldCallbackRequest {
        reason: reason.clone(),
        duration: span(week, 0),
    };
    let held = api.ask_hold(request).await.unwrap().hold.unwrap();
    assert_eq!(held.reason, reason);
    let request = HoldCallbackRequest {
        reason: "why".into(),
        duration: None,
    };
    let held = api.ask_hold(request).await.unwrap().hold.unwrap();
    let lasts = seconds(held.until) - seconds(held.since);
    assert!((lasts - 3600.0).abs() < 1.0, "{held:?}");
    // A hold is of the callback that the leader will have, and may come before it.
    assert_eq!(api.ensemble().await.unwrap().hold, Some(held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_over_http_tells_of_a_hold_and_of_its_end() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let mut lines = api.lines("/v1/watch", "application/x-ndjson").await;
    let first = lines.next(SOON).await.unwrap();
    assert!(first.contains("\"snapshot\""), "{first}");
    let body = json!({"reason": "told", "duration": "60s"});
    post(&api, "/v1/callback:hold", &body).await;
    post(&api, "/v1/callback:resume", &json!({})).await;
    let mut next = async || loop {
        let line = lines.next(SOON).await.unwrap();
        let message: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(changed) = message.get("holdChanged") {
            return changed.clone();
        }
    };
    assert_eq!(next().await["hold"]["reason"], "told");
    assert_eq!(next().await.get("hold"), None);
}
