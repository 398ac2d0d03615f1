//! Keepalives: the classic JSON, the stream, incarnations, beats and goodbyes.

use anyhow::ensure;
use kontrol_proto::v1::{
    LeaveReason, PingStreamRequest, ping_stream_request::Kind,
    ping_stream_response::Result as Answer,
};
use kontrol_tests::{
    SOON,
    client::Api,
    cluster::Cluster,
    etcd::Etcd,
    pod::{PodSpec, digest_of, from_proto, integer},
    small,
    wait::eventually,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

async fn payload(api: &Api, pod: &PodSpec) -> Value {
    from_proto(api.pod(&pod.expected_key()).await.unwrap().payload.as_ref())
}

async fn gone(api: &Api, pod: &PodSpec) {
    eventually(SOON, "absence of a pod", async || {
        let list = api.pods().await?;
        ensure!(list.pods.iter().all(|live| live.key != pod.expected_key()));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_classic_json_is_accepted_on_both_routes() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let api = cluster.api(0);
    for (seq, route) in ["/ping", "/v1/keepalive"].into_iter().enumerate() {
        let pod = PodSpec::number(seq as u32);
        let classic = json!({
            "app": "web", "id": pod.id, "ip": pod.ip, "key": pod.expected_key(), "nonce": pod.nonce, "payload": "",
            "role": "worker", "down": false,
        });
        let answer = cluster
            .api(seq)
            .http("PUT", route, Some(&classic))
            .await
            .ok();
        assert_eq!(answer["key"], pod.expected_key());
        assert_eq!(integer(&answer["seq"]), seq as i64);
        assert_eq!(answer["ttl"], "60s");
        assert!(answer["interval"].as_str().unwrap().ends_with('s'));
    }
    // Both as curl sends them by default, without a word of JSON in the header.
    let body = json!({"app": "web", "id": "curl", "ip": "127.9.9.9", "role": "worker"}).to_string();
    let answer = api
        .raw(
            "PUT",
            "/ping",
            "application/x-www-form-urlencoded",
            body.into_bytes(),
        )
        .await;
    assert_eq!(integer(&answer.ok()["seq"]), 2);

    let list = eventually(SOON, "three pods", async || {
        let list = api.pods().await?;
        ensure!(list.pods.len() == 3);
        Ok(list)
    })
    .await;
    assert_eq!(list.digest, digest_of(&list.pods));
    assert!(
        list.pods
            .iter()
            .all(|pod| from_proto(pod.payload.as_ref()) == json!(""))
    );
    let listed = api.http("GET", "/v1/pods", None).await.ok();
    assert_eq!(listed["digest"], list.digest.as_str());
    assert_eq!(listed["pods"][2]["id"], "curl");
    assert_eq!(integer(&listed["pods"][2]["seq"]), 2);
    let one = api
        .http("GET", &format!("/v1/pods/{}", list.pods[0].key), None)
        .await
        .ok();
    assert_eq!(one["pod"]["id"], "pod-0");
    assert!(
        one["pod"]["firstSeen"].is_string(),
        "camelCase comes out: {one}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_each_keepalive_in_order_and_outlives_a_bad_one() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    let mut pings: Vec<_> = (0..20).map(|n| PodSpec::number(n).request()).collect();
    pings[7].role.clear();
    let requests = pings.into_iter().map(PingStreamRequest::from);
    let stream = tokio_stream::iter(requests.collect::<Vec<_>>());
    let mut answers = api
        .keepalives()
        .ping_stream(stream)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = tokio::time::timeout(SOON, answers.message())
        .await
        .unwrap()
        .unwrap()
    {
        seen.push(answer.result.unwrap());
    }
    assert_eq!(seen.len(), 20);
    let mut seqs = Vec::new();
    for (number, answer) in (0_u32..).zip(seen) {
        match answer {
            Answer::Response(response) => {
                assert_eq!(response.key, PodSpec::number(number).expected_key());
                seqs.push(response.seq);
            }
            Answer::Error(error) => {
                assert_eq!((number, error.code), (7, 3));
                assert!(error.message.contains("role"), "{}", error.message);
            }
            Answer::Again(_) => panic!("{number}: a whole keepalive was asked for again"),
        }
    }
    assert_eq!(seqs, (0..19).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_keeps_a_pod_alive_until_its_record_is_another_and_then_asks_for_the_whole() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .ttl(Duration::from_secs(2));
    let cluster = cluster.start().await;
    let api = cluster.api(1);
    let (sender, requests) = mpsc::channel(1);
    let stream = ReceiverStream::new(requests);
    let answers = api.keepalives().ping_stream(stream).await;
    let mut answers = answers.unwrap().into_inner();
    let mut say = async |request: PingStreamRequest| {
        sender.send(request).await.unwrap();
        let answer = timeout(SOON, answers.message()).await.unwrap().unwrap();
        answer.unwrap().result.unwrap()
    };
    let beat = |beat| PingStreamRequest {
        kind: Some(Kind::Beat(beat)),
    };
    let pod = PodSpec::number(1).payload(json!({"load": 1}));
    let whole = |number| PingStreamRequest::from(pod.clone().beat(number).request());
    let Answer::Error(error) = say(PingStreamRequest { kind: None }).await else {
        panic!("nothing at all is taken");
    };
    assert_eq!(
        (error.code, error.message.as_str()),
        (3, "ping or beat is required")
    );
    assert_eq!(
        say(beat(1)).await,
        Answer::Again(true),
        "nothing was said yet"
    );
    let Answer::Response(first) = say(whole(2)).await else {
        panic!("the whole keepalive does not count");
    };
    // For twice as long as it may be silent.
    let mut number = 3;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_eq!(say(beat(number)).await, Answer::Response(first.clone()));
        number += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let Answer::Error(error) = say(beat(0)).await else {
        panic!("a beat of 0 is taken");
    };
    assert_eq!(error.code, 3);

    // The same pod says something else through another master.
    let other = pod.clone().beat(number).payload(json!({"load": 2}));
    cluster.api(0).ping(&other).await.unwrap();
    eventually(SOON, "the new record on the other master", async || {
        ensure!(payload(&api, &pod).await == json!({"load": 2}));
        Ok(())
    })
    .await;
    assert_eq!(say(beat(number + 1)).await, Answer::Again(true));
    let Answer::Response(_) = say(whole(number + 2)).await else {
        panic!("the whole keepalive does not count");
    };
    assert_eq!(payload(&api, &pod).await, json!({"load": 1}));
    assert_eq!(say(beat(number + 3)).await, Answer::Response(first.clone()));

    // A pod that was removed does not come back by a beat.
    let path = format!("/v1/pods/{}", pod.expected_key());
    api.http("DELETE", &path, None).await.ok();
    gone(&api, &pod).await;
    assert_eq!(say(beat(number + 4)).await, Answer::Again(true));
    gone(&api, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_beat_never_overwrites_a_newer_one() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let pod = PodSpec::number(0);
    let new = pod.clone().beat(5).payload(json!("new"));
    cluster.api(0).ping(&new).await.unwrap();
    // Whether the late one is answered or refused is the master's business; its word must not count.
    for api in [cluster.api(0), cluster.api(1)] {
        api.ping(&pod.clone().beat(4).payload(json!("old")))
            .await
            .ok();
    }
    cluster.api(0).ping(&pod.clone().beat(4).down()).await.ok();
    let newer = pod.clone().beat(6).payload(json!("newer"));
    assert_eq!(cluster.api(1).ping(&newer).await.unwrap().seq, 0);
    for index in 0..2 {
        let api = cluster.api(index);
        eventually(SOON, "newest payload", async || {
            ensure!(payload(&api, &pod).await == json!("newer"));
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_pod_keeps_its_seq_and_its_old_goodbye_is_ignored() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let (first, second) = (cluster.api(0), cluster.api(1));
    let old = PodSpec::number(0).beat(10);
    let new = PodSpec::number(0).nonce("00000000000000bb").beat(1);
    assert_eq!(first.ping(&old).await.unwrap().seq, 0);
    assert_eq!(second.ping(&new).await.unwrap().seq, 0);
    for api in [&first, &second] {
        api.ping(&old.clone().beat(11).down()).await.ok();
        eventually(SOON, "the new incarnation", async || {
            ensure!(api.pod(&new.expected_key()).await?.nonce == new.nonce);
            Ok(())
        })
        .await;
    }
    assert_eq!(first.ping(&new.clone().beat(2)).await.unwrap().seq, 0);
    second.ping(&new.clone().beat(3).down()).await.unwrap();
    gone(&first, &new).await;
    // Gone is gone: whoever comes back is new.
    assert_eq!(
        second
            .ping(&new.clone().nonce("cc").beat(1))
            .await
            .unwrap()
            .seq,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_on_an_address_replaces_the_one_before() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    let old = PodSpec::number(0);
    let mut new = PodSpec::number(0).nonce("00000000000000bb");
    new.id = "heir".into();
    assert_eq!(api.ping(&old).await.unwrap().seq, 0);
    let mut watch = api.watch(0).await.unwrap();
    assert_eq!(api.ping(&new).await.unwrap().seq, 1);
    let (_, reason) = watch.left(SOON, &old.expected_key()).await;
    assert_eq!(reason, LeaveReason::Replaced);
    eventually(SOON, "heir alone", async || {
        let list = api.pods().await?;
        ensure!(
            list.pods.len() == 1 && list.pods[0].id == "heir",
            "{:?}",
            list.pods
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_of_a_pod_that_nobody_knows_changes_nothing() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(3).down()).await.ok();
    assert_eq!(api.pods().await.unwrap().pods.len(), 0);
    assert_eq!(api.ping(&PodSpec::number(4)).await.unwrap().seq, 0);
}
