//! EvictPod: out at once, with its reason everywhere, and back as a new one where it lives.

use super::{pair, told};
use anyhow::ensure;
use kontrol_proto::v1::{LeaveReason, watch_response::Event};
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    pod::PodSpec,
    small,
    wait::eventually,
};
use tokio::time::Instant;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_pod_is_gone_at_once_and_every_master_tells_why_and_by_whom() {
    let _permit = small().await;
    let Some((_etcd, recorder, mut cluster)) = pair(None).await else {
        return;
    };
    let follower = cluster.follower().await;
    let pods: Vec<PodSpec> = (0..3).map(PodSpec::number).collect();
    for pod in &pods {
        cluster.api(0).ping(&pod.clone().beat(1)).await.unwrap();
    }
    cluster.handled(0, 3).await;
    cluster.handled(1, 3).await;
    // One over gRPC of a master that doesn't lead, one over HTTP of one that does.
    let keys = [pods[0].expected_key(), pods[1].expected_key()];
    let mut watches = Vec::new();
    for index in 0..2 {
        watches.push(cluster.api(index).watch(0).await.unwrap());
    }
    let asked = Instant::now();
    let answer = cluster.api(follower).evict(&keys[0], "it hangs").await;
    let answer = answer.unwrap();
    let pod = answer.pod.unwrap();
    assert_eq!((pod.key.as_str(), pod.id.as_str()), (&*keys[0], "pod-0"));
    assert!(!answer.next.is_empty() && answer.revision > 0);
    let path = format!("/v1/pods/{}?reason=it%20hangs%20as%20well", keys[1]);
    let leader = cluster.api(1 - follower);
    let over_http = leader.http("DELETE", &path, None).await.ok();
    assert_eq!(over_http["pod"]["id"], "pod-1");
    assert!(!over_http["next"].as_str().unwrap().is_empty());
    for watch in &mut watches {
        for key in &keys {
            let (left, reason) = watch.left(SOON, key).await;
            assert_eq!(reason, LeaveReason::Evicted);
            assert!(left - asked < SLACK * 2, "{:?}", left - asked);
        }
    }
    for index in 0..2 {
        let api = cluster.api(index);
        for (key, why) in keys.iter().zip(["it hangs", "it hangs as well"]) {
            let answer = eventually(SOON, "explanation", async || {
                let answer = api.explain(key).await?;
                ensure!(!answer.live && answer.removal.is_some(), "{answer:#?}");
                Ok(answer)
            })
            .await;
            let removal = answer.removal.unwrap();
            assert_eq!(removal.reason(), LeaveReason::Evicted);
            assert!(
                removal.by.contains("127.0.0.1") && removal.by.contains(why),
                "who and why: {removal:?}"
            );
            assert!(removal.time.is_some(), "{removal:?}");
            assert_eq!(api.pod(key).await.unwrap_err().code(), Code::NotFound);
        }
        let path = format!("/v1/pods/{}:explain", keys[0]);
        let explained = api.http("GET", &path, None).await.ok();
        assert_eq!(explained["removal"]["reason"], "LEAVE_REASON_EVICTED");
    }
    // The callback is told, as of any pod that leaves.
    cluster.handled(0, 1).await;
    assert_eq!(recorder.runs().last().unwrap().read().ids, ["pod-2"]);
    // Whoever reports again is a new one, behind all that ever were.
    for (place, pod) in pods[..2].iter().enumerate() {
        let api = cluster.api(place);
        let back = eventually(SOON, "return", async || {
            Ok(api.ping(&pod.clone().beat(2)).await?)
        })
        .await;
        assert_eq!(back.seq, 3 + place as u64);
    }
    assert_eq!(cluster.api(0).ping(&pods[2]).await.unwrap().seq, 2);
    cluster.handled(0, 3).await;
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_lives_is_back_with_its_next_keepalive() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let crew = Crew::start(&mut cluster, 2).await;
    let key = crew::key(0);
    let follower = cluster.follower().await;
    for round in 0..3 {
        let api = cluster.api([follower, 1 - follower][round % 2]);
        let before = api.pod(&key).await.unwrap();
        let mut watch = api.watch(0).await.unwrap();
        let gone = api.evict(&key, "").await.unwrap();
        assert_eq!(gone.pod.unwrap().seq, before.seq);
        let back = watch
            .until(SOON, "return", |message| match &message.event {
                Some(Event::PodJoined(joined)) => joined.pod.clone().filter(|pod| pod.key == key),
                _ => None,
            })
            .await;
        assert!(back.seq > before.seq, "{} and {}", back.seq, before.seq);
        assert_eq!(back.nonce, before.nonce, "the process was left alone");
        let left = told(&watch.seen, |message| match &message.event {
            Some(Event::PodLeft(left)) => Some(left.reason()),
            _ => None,
        });
        assert_eq!(left, [LeaveReason::Evicted]);
        // The other master knows the same of both.
        let other = cluster.api([1 - follower, follower][round % 2]);
        eventually(SOON, "the same pods", async || {
            ensure!(other.pod(&key).await?.seq == back.seq);
            Ok(())
        })
        .await;
    }
    let other = cluster.api(0).pod(&crew::key(1)).await.unwrap();
    assert!(other.seq < 2, "nobody else lost its place: {other:?}");
    drop(crew);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_can_not_be_evicted() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let pod = PodSpec::number(0);
    let key = pod.expected_key();
    api.ping(&pod).await.unwrap();
    api.evict(&key, "").await.unwrap();
    for key in [key.as_str(), "blXcB"] {
        let status = api.evict(key, "").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let path = format!("/v1/pods/{key}");
        let answer = api.http("DELETE", &path, None).await;
        assert_eq!(answer.status, 404, "{}", answer.body);
    }
    for key in ["", "not a key"] {
        let status = api.evict(key, "").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("key"), "{status}");
    }
    api.ping(&PodSpec::number(1)).await.unwrap();
    let key = PodSpec::number(1).expected_key();
    let status = api.evict(&key, &"x".repeat(1001)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("reason"), "{status}");
    assert!(api.pod(&key).await.is_ok(), "refused is not done");
}
