//! Topologies: masters that are pods of their own tier (mixed), and tiers that report to tiers above (chain).

use anyhow::{Context, ensure};
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    pod::{PodSpec, from_proto},
    small,
    wait::eventually,
};
use serde_json::Value;
use std::time::Duration;

/// Whether a value, or anything in it, is what is looked for.
fn holds(value: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    wanted(value)
        || match value {
            Value::Array(items) => items.iter().any(|item| holds(item, wanted)),
            Value::Object(fields) => fields.values().any(|field| holds(field, wanted)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_masters_are_pods_of_their_own_tier() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .set("mode", "master,slave")
        .set("labels", r#"{"app":"web","role":"mixed"}"#)
        .build();
    for (index, master) in cluster.masters.iter_mut().enumerate() {
        master.set("ip", &format!("127.3.0.{}", index + 1));
        master.start().await;
    }
    cluster.ready().await;
    let view = cluster
        .ensemble(1, "three mixed pods", |view| view.pod_count == 3)
        .await;
    let list = cluster.api(2).pods().await.unwrap();
    assert!(list.pods.iter().all(|pod| pod.role == "mixed"), "{list:#?}");
    assert_eq!(view.masters.len(), 3);

    let gone = cluster.follower().await;
    assert!(cluster.masters[gone].stop().await.success());
    let rest = cluster.running();
    cluster
        .ensemble(rest[0], "two mixed pods", |view| view.pod_count == 2)
        .await;
    let leader = cluster.leader().await;
    cluster.masters[leader].kill();
    let rest = cluster.running();
    cluster
        .ensemble(rest[0], "one mixed pod", |view| view.pod_count == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_above_sees_digest_pod_count_and_leader_of_the_tier_below() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let upper = Cluster::on("memory:").start().await;
    let mut lower = Cluster::on(&etcd.store())
        .masters(2)
        .ttl(Duration::from_secs(60))
        .set("upstream", &upper.masters[0].url())
        .set("labels", r#"{"app":"lower","role":"master"}"#)
        .build();
    for (index, master) in lower.masters.iter_mut().enumerate() {
        master.set("ip", &format!("127.4.0.{}", index + 1));
        master.start().await;
    }
    lower.ready().await;
    for number in 0..7 {
        lower.api(0).ping(&PodSpec::number(number)).await.unwrap();
    }
    let below = lower
        .ensemble(0, "seven pods", |view| view.pod_count == 7)
        .await;
    let above = upper.api(0);
    eventually(SOON, "the tier below, as seen above", async || {
        let list = above.pods().await?;
        ensure!(list.pods.len() == 2, "{} pods", list.pods.len());
        let mut leading = 0;
        for pod in &list.pods {
            let payload = from_proto(pod.payload.as_ref());
            ensure!(
                holds(&payload, &|value| value == below.digest.as_str()),
                "no digest in {payload}"
            );
            ensure!(
                holds(&payload, &|value| *value == 7),
                "no pod count in {payload}"
            );
            leading += usize::from(holds(&payload, &|value| *value == true));
        }
        ensure!(leading == 1, "{leading} say that they lead");
        Ok(())
    })
    .await;
    // A change below is a change above.
    let digest = upper.api(0).ensemble().await.unwrap().digest;
    lower.api(1).ping(&PodSpec::number(7)).await.unwrap();
    upper
        .ensemble(0, "other digest above", |view| view.digest != digest)
        .await;

    let leader = lower.leader().await;
    let gone = lower.masters[leader].address();
    assert!(lower.masters[leader].stop().await.success());
    eventually(SOON, "one master below", async || {
        let list = above.pods().await?;
        let [pod] = &list.pods[..] else {
            anyhow::bail!("{} pods", list.pods.len())
        };
        let payload = from_proto(pod.payload.as_ref());
        ensure!(
            holds(&payload, &|value| *value == true),
            "nobody leads: {payload}"
        );
        Some(()).context(gone.clone())
    })
    .await;
}
