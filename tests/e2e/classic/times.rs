//! The times, whole seconds without a unit: `KONTROL_TTL`, `KONTROL_DAMPER`, `KONTROL_FOVER`; each of them would be longer by
//! default.

use super::{Alone, master};
use anyhow::ensure;
use kontrol_proto::v1::LeaveReason;
use kontrol_tests::{
    SLACK, SOON,
    etcd::Etcd,
    pod::{PodSpec, integer},
    small,
    wait::{eventually, throughout},
};
use serde_json::json;
use std::{fs, time::Duration};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_ttl() {
    let _permit = small().await;
    let alone = Alone::start(&[("KONTROL_TTL", "2")]).await;
    let (api, pod) = (alone.master.api(), PodSpec::number(0));
    let mut watch = api.watch(0).await.unwrap();
    let heard = Instant::now();
    let answer = api.http("PUT", "/ping", Some(&pod.json())).await.ok();
    assert_eq!((&answer["ttl"], integer(&answer["seq"])), (&json!("2s"), 0));
    let (left, reason) = watch.left(SOON, &pod.expected_key()).await;
    assert_eq!(reason, LeaveReason::Expired);
    let after = left - heard;
    assert!(after >= Duration::from_secs(2), "{after:?}");
    assert!(after <= Duration::from_secs(3) + SLACK, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_damper() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let text = format!("touch {}", file.display());
    let alone = Alone::start(&[("KONTROL_DAMPER", "2"), ("KONTROL_SHELL_CALLBACK", &text)]).await;
    let changed = Instant::now();
    alone.master.api().ping(&PodSpec::number(0)).await.unwrap();
    // Looked at a little less long, so that the last look is before its time.
    throughout(Duration::from_millis(1700), "quiet", async || {
        ensure!(!file.exists() || changed.elapsed() >= Duration::from_secs(2));
        Ok(())
    })
    .await;
    eventually(SOON, "a run", async || Ok(fs::metadata(&file)?)).await;
    assert!(changed.elapsed() < Duration::from_secs(4) + SLACK);
}

#[tokio::test(flavor = "multi_thread")]
async fn kontrol_fover() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let endpoint = etcd.endpoints()[0].clone();
    let variables = [("KONTROL_ETCD", endpoint.as_str()), ("KONTROL_FOVER", "1")];
    let mut first = master("first", &variables, dir.path());
    first.start().await;
    first.ready().await;
    let mut second = master("second", &variables, dir.path());
    second.start().await;
    second.ready().await;
    let leader = async || {
        let view = second.api().ensemble().await?;
        anyhow::Ok(view.leader.map(|leader| leader.id))
    };
    eventually(SOON, "the first as the leader", async || {
        ensure!(leader().await? == Some("first".into()));
        Ok(())
    })
    .await;
    first.kill();
    let killed = Instant::now();
    eventually(SOON, "the second as the leader", async || {
        ensure!(leader().await? == Some("second".into()));
        Ok(())
    })
    .await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(2) + SLACK, "{took:?}");
}
