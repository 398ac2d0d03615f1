//! RunCallback: now, without the damper; again, if that is asked for; never against a hold.

use super::{alone, join, nothing_runs, pair, post};
use anyhow::ensure;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    pod::PodSpec,
    script::{Plan, now},
    small,
    wait::eventually,
};
use serde_json::json;
use std::time::Duration;
use tonic::Code;

/// A damper that no test outlasts.
const NEVER: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_before_the_damper_whichever_master_is_asked() {
    let _permit = small().await;
    let Some((_etcd, recorder, mut cluster)) = pair(Some(NEVER)).await else {
        return;
    };
    let follower = cluster.follower().await;
    let leader = 1 - follower;
    for (round, index) in [follower, leader].into_iter().enumerate() {
        let api = cluster.api(index);
        let pods = round as u32 + 1;
        join(&api, round as u32..pods).await;
        let view = cluster
            .ensemble(leader, "join", |view| view.pod_count == pods)
            .await;
        // The answer is of what that master knows by then.
        cluster
            .ensemble(follower, "join", |follows| follows.digest == view.digest)
            .await;
        let asked = now();
        let answer = api.run_callback(false).await.unwrap();
        assert_eq!(answer.digest, view.digest);
        assert!(!answer.handled && answer.revision > 0, "{answer:?}");
        cluster.handled(index, pods).await;
        let runs = recorder.runs();
        assert_eq!(runs.len(), round + 1, "{runs:#?}");
        let run = runs.last().unwrap();
        assert_eq!((&run.hash, run.read().pods), (&view.digest, pods as usize));
        let took = run.start - asked;
        assert!(took <= SLACK.as_secs_f64() * 2.0, "started {took} s later");
    }
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handled_digest_runs_again_only_where_that_is_asked_for() {
    let _permit = small().await;
    let Some((_etcd, recorder, mut cluster)) = pair(None).await else {
        return;
    };
    let follower = cluster.follower().await;
    let api = cluster.api(follower);
    join(&api, 0..2).await;
    let view = cluster.handled(follower, 2).await;
    let runs = recorder.runs().len();
    let answer = api.run_callback(false).await.unwrap();
    assert!(answer.handled, "{answer:?}");
    assert_eq!(answer.digest, view.digest);
    let over_http = post(&api, "/v1/callback:run", &json!({})).await;
    assert_eq!(over_http["handled"], true);
    nothing_runs(&recorder, cluster.spec.damper * 4).await;

    let answer = api.run_callback(true).await.unwrap();
    assert!(!answer.handled, "{answer:?}");
    let ran = async |count: usize| {
        eventually(SOON, "run again", async || {
            let runs = recorder.successes();
            ensure!(runs.len() == count, "{runs:#?}");
            Ok(())
        })
        .await;
    };
    ran(runs + 1).await;
    let over_http = post(&api, "/v1/callback:run", &json!({"again": true})).await;
    assert_ne!(over_http["handled"], true);
    assert_eq!(over_http["digest"], view.digest.as_str());
    ran(runs + 2).await;
    // Asked for once, it is done once, whoever leads.
    nothing_runs(&recorder, cluster.spec.damper * 3).await;
    let leader = 1 - follower;
    cluster.masters[leader].kill();
    cluster.leader_among(&[follower], SOON).await;
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    let all = recorder.runs();
    assert!(
        all[runs..].iter().all(|run| run.hash == view.digest),
        "{all:#?}"
    );
    let state = recorder.runs()[runs].read().state.clone();
    assert_eq!(state.unwrap()["hash"], view.digest.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_or_not_there_is_not_run() {
    let _permit = small().await;
    let (recorder, cluster) = alone().await;
    let api = cluster.api(0);
    let long = Duration::from_secs(120);
    api.hold("not now, please", long).await.unwrap();
    join(&api, 0..1).await;
    for again in [false, true] {
        let status = api.run_callback(again).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let message = status.message();
        assert!(
            message.contains("not now, please"),
            "who and why: {message}"
        );
        let body = json!({ "again": again });
        let answer = api.http("POST", "/v1/callback:run", Some(&body)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
    nothing_runs(&recorder, cluster.spec.damper * 4).await;
    api.resume("").await.unwrap();
    cluster.handled(0, 1).await;
    // What was refused is forgotten.
    nothing_runs(&recorder, cluster.spec.damper * 3).await;
    assert_eq!(recorder.runs().len(), 1);

    let bare = Cluster::on("memory:").patient().start().await;
    let status = bare.api(0).run_callback(true).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_tried_again_at_once_and_behind_a_run_that_goes_on() {
    let _permit = small().await;
    let (recorder, cluster) = alone().await;
    recorder.plan(&Plan {
        fails: u32::MAX,
        ..Plan::default()
    });
    let api = cluster.api(0);
    join(&api, 0..1).await;
    // Until the next try by itself is far away.
    let retry = Duration::from_secs(2);
    let view = cluster
        .ensemble(0, "failures", |view| {
            let status = view.callback.clone().unwrap_or_default();
            let ended = status.last_run.as_ref().and_then(|run| run.start);
            status.running_since.is_none()
                && status
                    .retry_at
                    .is_some_and(|at| at.seconds - ended.unwrap().seconds > retry.as_secs() as i64)
        })
        .await;
    recorder.plan(&Plan {
        takes: Duration::from_secs(2),
        ..Plan::default()
    });
    let runs = recorder.runs().len();
    let asked = now();
    api.run_callback(false).await.unwrap();
    eventually(SOON, "run that is tried again", async || {
        ensure!(recorder.runs().len() > runs);
        Ok(())
    })
    .await;
    let took = recorder.runs()[runs].start - asked;
    assert!(
        took < SLACK.as_secs_f64(),
        "tried again {took} s later, {view:#?}"
    );
    // Something new while it runs waits for the end of it, and for nothing else.
    api.ping(&PodSpec::number(1)).await.unwrap();
    let answer = api.run_callback(false).await.unwrap();
    assert!(!answer.handled, "{answer:?}");
    cluster.handled(0, 2).await;
    let all = recorder.runs();
    assert_eq!(all.len(), runs + 2, "{all:#?}");
    assert!(all[runs + 1].start >= all[runs].last, "{all:#?}");
    recorder.check();
}
