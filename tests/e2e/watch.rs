//! Watch: the snapshot, every change with its reason, resuming, and what becomes of a reader that doesn't read.

use anyhow::ensure;
use kontrol_proto::v1::{
    GetEnsembleResponse, LeaveReason, ListPodsRequest, WatchRequest, WatchResponse,
    ensemble_service_client::EnsembleServiceClient, watch_response::Event,
};
use kontrol_tests::{
    SOON,
    client::Watcher,
    cluster::Cluster,
    etcd::Etcd,
    pod::{PodSpec, digest_of},
    script::Recorder,
    small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Code;

async fn until_digest(watch: &mut Watcher, digest: &str) {
    watch
        .until(SOON, "digest", |message| match &message.event {
            Some(Event::DigestChanged(changed)) => (changed.digest == digest).then_some(()),
            _ => None,
        })
        .await;
}

/// What a message says, in a word.
fn word(message: &WatchResponse) -> &'static str {
    match message.event.as_ref().expect("a message without an event") {
        Event::Snapshot(_) => "snapshot",
        Event::PodJoined(_) => "joined",
        Event::PodChanged(changed) if changed.restarted => "restarted",
        Event::PodChanged(_) => "changed",
        Event::PodLeft(_) => "left",
        Event::DigestChanged(_) => "digest",
        Event::LeaderChanged(_) => "leader",
        Event::CallbackStarted(_) => "started",
        Event::CallbackFinished(_) => "finished",
        Event::ActionStarted(_) => "action started",
        Event::ActionFinished(_) => "action finished",
        Event::HoldChanged(_) => "hold",
        Event::SafeguardChanged(_) => "safeguard",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_the_snapshot_and_then_every_change_on_every_master() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    cluster.handled(0, 1).await;
    cluster.handled(1, 1).await;
    let mut watches = Vec::new();
    for index in 0..2 {
        let mut watch = cluster.api(index).watch(0).await.unwrap();
        let first = watch.next(SOON).await.unwrap().unwrap();
        let Some(Event::Snapshot(snapshot)) = first.event else {
            panic!("{first:?} came first")
        };
        assert_eq!(snapshot.pods.len(), 1);
        assert_eq!(snapshot.digest, digest_of(&snapshot.pods));
        assert!(snapshot.epoch > 0 && snapshot.leader.is_some() && first.revision > 0);
        watches.push(watch);
    }
    let pod = PodSpec::number(1);
    api.ping(&pod).await.unwrap();
    api.ping(&pod.clone().payload("new".into())).await.unwrap();
    api.ping(&pod.clone().payload("new".into()).nonce("bb"))
        .await
        .unwrap();
    api.ping(&pod.clone().nonce("bb").down()).await.unwrap();
    api.ping(&PodSpec::number(2)).await.unwrap();
    let digest = cluster.handled(0, 2).await.digest;
    for mut watch in watches {
        watch
            .until(SOON, "end of the callback", |message| {
                match &message.event {
                    Some(Event::CallbackFinished(finished)) => {
                        let run = finished.run.clone().unwrap();
                        (run.digest == digest && run.exit_code == 0).then_some(())
                    }
                    _ => None,
                }
            })
            .await;
        let words: Vec<_> = watch
            .seen
            .iter()
            .map(|(_, message)| word(message))
            .collect();
        let pods: Vec<_> = words
            .iter()
            .filter(|w| ["joined", "changed", "restarted", "left"].contains(w))
            .collect();
        assert_eq!(
            pods,
            [&"joined", &"changed", &"restarted", &"left", &"joined"],
            "{words:?}"
        );
        assert!(
            words.contains(&"started") && words.contains(&"digest"),
            "{words:?}"
        );
        let left = watch
            .seen
            .iter()
            .find_map(|(_, message)| match &message.event {
                Some(Event::PodLeft(left)) => Some(left.clone()),
                _ => None,
            });
        let left = left.unwrap();
        assert_eq!(
            (left.reason(), left.pod.unwrap().id),
            (LeaveReason::Down, pod.id.clone())
        );
        let revisions: Vec<_> = watch
            .seen
            .iter()
            .map(|(_, message)| message.revision)
            .collect();
        assert!(revisions.is_sorted(), "{revisions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_behind_a_revision_and_starts_over_where_that_is_forgotten() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let api = cluster.api(0);
    let mut watch = api.watch(0).await.unwrap();
    watch.next(SOON).await.unwrap();
    api.ping(&PodSpec::number(0)).await.unwrap();
    let view = cluster
        .ensemble(0, "one pod", |view| view.pod_count == 1)
        .await;
    until_digest(&mut watch, &view.digest).await;
    let seen = watch.seen.last().unwrap().1.revision;
    drop(watch);

    api.ping(&PodSpec::number(1)).await.unwrap();
    let mut resumed = api.watch(seen).await.unwrap();
    let joined = resumed
        .until(SOON, "second pod", |message| match &message.event {
            Some(Event::PodJoined(joined)) => Some(joined.pod.clone().unwrap()),
            Some(Event::Snapshot(_)) => panic!("a snapshot, though nothing was missed"),
            _ => None,
        })
        .await;
    assert_eq!(joined.id, "pod-1", "the first one was seen before");
    // A master that was started later knows nothing of that time: it says so by a snapshot, or tells all that was missed.
    cluster.masters[1].stop().await;
    cluster.restart(1).await;
    let mut other = cluster.api(1).watch(seen).await.unwrap();
    other
        .until(
            SOON,
            "second pod on another master",
            |message| match &message.event {
                Some(Event::Snapshot(snapshot)) => snapshot
                    .pods
                    .iter()
                    .any(|pod| pod.id == "pod-1")
                    .then_some(()),
                Some(Event::PodJoined(joined)) => {
                    (joined.pod.as_ref()?.id == "pod-1").then_some(())
                }
                _ => None,
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_streams_are_ndjson_or_server_sent_events() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    let mut plain = api.lines("/v1/watch", "*/*").await;
    let mut events = api.lines("/v1/watch", "text/event-stream").await;
    assert_eq!((plain.status, events.status), (200, 200));
    assert!(plain.kind.contains("ndjson"), "{}", plain.kind);
    assert!(
        events.kind.starts_with("text/event-stream"),
        "{}",
        events.kind
    );
    api.ping(&PodSpec::number(0)).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let line = plain.next(SOON).await.expect("the stream goes on");
        let message: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
        let done = message["podJoined"]["pod"]["id"] == "pod-0";
        seen.push(message);
        if done {
            break;
        }
    }
    assert!(seen[0]["snapshot"].is_object(), "{seen:#?}");
    let mut data = Vec::new();
    loop {
        let line = events.next(SOON).await.expect("the stream goes on");
        // Comments, ids and event names are all right beside the data.
        if let Some(text) = line.strip_prefix("data:") {
            let message: Value = serde_json::from_str(text).unwrap();
            let done = message["podJoined"]["pod"]["id"] == "pod-0";
            data.push(message);
            if done {
                break;
            }
        }
    }
    assert!(data[0]["snapshot"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_cut_off_with_a_clear_status() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    watch.next(SOON).await.unwrap();
    // Far more than any window between the two can hold.
    let text = "x".repeat(40_000);
    let pod = PodSpec::number(0);
    for round in 0..1500_u64 {
        api.ping(
            &pod.clone()
                .beat(round + 1)
                .payload(json!({"round": round, "text": text})),
        )
        .await
        .unwrap();
    }
    let end = loop {
        match watch.next(SOON).await {
            Ok(Some(message)) => {
                // Only the count is of interest, not 60 MB of text.
                watch.seen.clear();
                let last = matches!(&message.event, Some(Event::PodChanged(changed))
                    if format!("{:?}", changed.pod).contains("NumberValue(1499"));
                assert!(!last, "it was never cut off, and told everything");
            }
            Ok(None) => panic!("the watch ended in peace"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
    let metrics = api.http("GET", "/metrics", None).await.body;
    let counted = r#"kontrol_master_turned_away_total{queue="watches"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_end_when_the_master_ends() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).patient().start().await;
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    let mut lines = cluster.api(0).lines("/v1/watch", "*/*").await;
    watch.next(SOON).await.unwrap();
    assert!(cluster.masters[0].stop().await.success());
    while let Ok(Some(_)) = watch.next(Duration::from_secs(5)).await {}
    while lines.next(Duration::from_secs(5)).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_can_be_selected_by_role_and_labels() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    for number in 0..6 {
        let mut pod = PodSpec::number(number);
        pod.role = if number < 2 { "front" } else { "back" }.into();
        pod.labels.insert("tier".into(), (number % 3).to_string());
        api.ping(&pod).await.unwrap();
    }
    eventually(SOON, "six pods", async || {
        ensure!(api.pods().await?.pods.len() == 6);
        Ok(())
    })
    .await;
    for (query, ids) in [
        ("role=front", vec!["pod-0", "pod-1"]),
        (
            "selector=tier%20in%20(1,2)",
            vec!["pod-1", "pod-2", "pod-4", "pod-5"],
        ),
        ("role=back&selector=tier%3D0,app", vec!["pod-3"]),
        ("selector=!app", vec![]),
    ] {
        let answer = api
            .http("GET", &format!("/v1/pods?{query}"), None)
            .await
            .ok();
        let found: Vec<_> = answer["pods"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| &pod["id"])
            .collect();
        assert_eq!(found, ids.iter().collect::<Vec<_>>(), "{query}");
        assert_eq!(answer["digest"].as_str().unwrap().len(), 32);
    }
}

/// 6 MB of roster, and a client that takes 4 MiB in a message, as all do unless told otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_roster_comes_in_pages_and_a_snapshot_in_pieces() {
    const PODS: u32 = 100;
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let text = "x".repeat(60_000);
    for number in 0..PODS {
        let pod = PodSpec::number(number).payload(text.as_str().into());
        api.ping(&pod).await.unwrap();
    }
    let whole = |view: &GetEnsembleResponse| view.pod_count == PODS;
    let view = cluster.ensemble(0, "all pods", whole).await;

    let mut client = EnsembleServiceClient::new(api.channel());
    let (mut request, mut listed, mut pages) = (ListPodsRequest::default(), Vec::new(), 0);
    loop {
        let page = client.list_pods(request.clone()).await.unwrap();
        let page = page.into_inner();
        listed.extend(page.pods);
        pages += 1;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        // Whoever was told and leaves in between moves nobody else to or fro.
        let gone = PodSpec::number(pages).payload(text.as_str().into());
        api.ping(&gone.down()).await.unwrap();
    }
    assert!(pages > 3, "{pages} pages");
    assert_eq!(digest_of(&listed), view.digest);

    let watch = client.watch(WatchRequest::default()).await.unwrap();
    let (mut watch, mut shown, mut pieces) = (watch.into_inner(), Vec::new(), 0);
    loop {
        let message = watch.message().await.unwrap().unwrap();
        let Some(Event::Snapshot(piece)) = message.event else {
            panic!("not all of the snapshot came first: {pieces} pieces");
        };
        shown.extend(piece.pods);
        pieces += 1;
        assert_eq!(message.revision == 0, piece.more);
        if !piece.more {
            assert_eq!(digest_of(&shown), piece.digest);
            break;
        }
    }
    assert!(pieces > 3, "{pieces} pieces");

    let list = async |query: &str| api.http("GET", &format!("/v1/pods?{query}"), None).await;
    let first = list("pageSize=2").await.ok();
    let token = first["nextPageToken"].as_str().unwrap();
    let second = list(&format!("pageSize=2&pageToken={token}")).await.ok();
    let seqs = |page: &Value| -> Vec<u64> {
        let pods = page["pods"].as_array().unwrap();
        pods.iter()
            .map(|pod| pod["seq"].as_u64().unwrap())
            .collect()
    };
    let all: Vec<u64> = shown.iter().map(|pod| pod.seq).collect();
    assert_eq!([seqs(&first), seqs(&second)].concat(), all[..4]);
    assert_eq!(list("pageToken=x").await.status, 400);
}
