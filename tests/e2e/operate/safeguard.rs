//! The safeguard as it is seen and released: what silence would remove stays, what says goodbye goes, whoever joins is told
//! of. What it is worth when hundreds of processes die is asked in `robustness`.

use super::{nothing_runs, post, seconds, told};
use anyhow::{Context, ensure};
use futures::future::join_all;
use kontrol_proto::v1::{
    GetEnsembleResponse, LeaveReason, Safeguard, WaitReason, WatchResponse, watch_response::Event,
};
use kontrol_tests::{
    SLACK, SOON,
    cluster::{Builder, Cluster},
    etcd::Etcd,
    fleet::Fleet,
    pod::PodSpec,
    script::Recorder,
    small,
    wait::{eventually, throughout},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

const BEAT: Duration = Duration::from_millis(700);

/// What a message says of the safeguard: that it stands, or that it is over.
fn of_safeguard(message: &WatchResponse) -> Option<Option<Safeguard>> {
    match &message.event {
        Some(Event::SafeguardChanged(changed)) => Some(changed.safeguard.clone()),
        _ => None,
    }
}

/// One master, so many pods that it has handled.
async fn tier(
    recorder: &Recorder,
    pods: u32,
    settings: impl FnOnce(Builder) -> Builder,
) -> (Cluster, Fleet) {
    let builder = Cluster::on("memory:").callback(recorder);
    let cluster = settings(builder).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), BEAT, 0, pods);
    fleet.joined().await;
    cluster.handled(0, pods).await;
    (cluster, fleet)
}

/// Silences the first pods, and waits until that is told.
async fn freeze(cluster: &Cluster, fleet: &Fleet, silent: u32) -> GetEnsembleResponse {
    (0..silent).for_each(|index| fleet.silence(index as usize));
    cluster
        .ensemble(0, "all that are silent", |view| {
            let safeguard = view.safeguard.as_ref();
            safeguard.is_some_and(|safeguard| safeguard.silent == silent)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_everywhere_and_whoever_comes_or_says_goodbye_is_obeyed() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let (cluster, fleet) = tier(&recorder, 12, |builder| builder).await;
    let api = cluster.api(0);
    let before = api.pods().await.unwrap();
    let metrics = async || {
        let frozen = api.metric("kontrol_master_safeguard_frozen").await;
        let silent = api.metric("kontrol_master_safeguard_silent_pods").await;
        (frozen.unwrap(), silent.unwrap())
    };
    assert_eq!(metrics().await, (0.0, 0.0));
    let mut watch = api.watch(0).await.unwrap();
    (0..8).for_each(|index| fleet.silence(index));
    let silent = Instant::now();
    watch
        .until(SOON, "safeguard", |message| of_safeguard(message)?)
        .await;
    let took = silent.elapsed();
    let bound = cluster.spec.ttl + Duration::from_secs(1) + SLACK;
    assert!(took <= bound, "told {took:?} after the last keepalive");
    let view = cluster
        .ensemble(0, "eight of twelve", |view| {
            let safeguard = view.safeguard.as_ref();
            safeguard.is_some_and(|safeguard| (safeguard.silent, safeguard.pods) == (8, 12))
        })
        .await;
    let safeguard = view.safeguard.unwrap();
    assert_eq!(safeguard.released_by, "");
    let lasts = seconds(safeguard.until) - seconds(safeguard.since);
    let most = cluster.spec.ttl.as_secs_f64() * 10.0;
    assert!((lasts - most).abs() < 1.0, "{safeguard:?}");
    let settings = view.settings.unwrap();
    assert_eq!((settings.safeguard, settings.safeguard_min), (50, 10));
    assert_eq!(settings.safeguard_max.unwrap().seconds as f64, most);
    eventually(SOON, "gauges", async || {
        let now = metrics().await;
        ensure!(now == (1.0, 8.0), "{now:?}");
        Ok(())
    })
    .await;
    let over_http = api.http("GET", "/v1/ensemble", None).await.ok();
    assert_eq!(over_http["safeguard"]["silent"], 8);

    // Nobody left, and nothing runs for it.
    let runs = recorder.runs().len();
    throughout(cluster.spec.ttl, "the whole roster", async || {
        let list = api.pods().await?;
        ensure!(list.digest == before.digest, "{} pods", list.pods.len());
        Ok(())
    })
    .await;
    assert_eq!(recorder.runs().len(), runs);
    let log = cluster.masters[0].log();
    let warned = log.lines().filter(|line| {
        line.contains("WARN") && (line.contains("safeguard") || line.contains("frozen"))
    });
    assert_eq!(warned.count(), 1, "{log}");

    // A join, a change, a goodbye of one that lives and of one that was silent: each is obeyed, with the silent in the list.
    api.ping(&PodSpec::number(100)).await.unwrap();
    fleet.change(11, |pod| pod.payload("changed".into()));
    fleet.leave(10).await;
    api.ping(&PodSpec::number(0).beat(1000).down())
        .await
        .unwrap();
    let view = cluster.handled(0, 11).await;
    assert!(view.safeguard.is_some(), "seven of eleven are silent");
    let last = recorder.successes().pop().unwrap();
    assert_eq!(last.hash, view.digest);
    let ids = &last.read().ids;
    for number in (1..10).chain([11, 100]) {
        assert!(ids.contains(&format!("pod-{number}")), "{ids:?}");
    }
    let preview = api.preview().await.unwrap();
    let waits = preview.waits.iter().map(|wait| wait.reason());
    let waits: Vec<WaitReason> = waits.collect();
    assert!(waits.contains(&WaitReason::Safeguard), "{waits:?}");
    // One that is silent can be evicted.
    let key = PodSpec::number(1).expected_key();
    api.evict(&key, "").await.unwrap();
    let (_, reason) = watch.left(SOON, &key).await;
    assert_eq!(reason, LeaveReason::Evicted);
    let left = told(&watch.seen, |message| match &message.event {
        Some(Event::PodLeft(left)) => Some(left.reason()),
        _ => None,
    });
    assert!(!left.contains(&LeaveReason::Expired), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_come_back_keep_their_seqs_and_end_it() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let (cluster, fleet) = tier(&recorder, 12, |builder| builder).await;
    let api = cluster.api(0);
    let before = api.pods().await.unwrap();
    let runs = recorder.runs().len();
    let seqs = fleet.seqs();
    freeze(&cluster, &fleet, 8).await;
    let mut watch = api.watch(0).await.unwrap();
    // Five of twelve are less than may be silent, but not less than half of that.
    for index in 0..3 {
        fleet.change(index, |pod| pod);
    }
    cluster
        .ensemble(0, "five that are silent", |view| {
            let safeguard = view.safeguard.as_ref();
            safeguard.is_some_and(|safeguard| safeguard.silent == 5)
        })
        .await;
    throughout(cluster.spec.ttl, "the safeguard", async || {
        let view = api.ensemble().await?;
        ensure!(view.safeguard.is_some() && view.pod_count == 12, "{view:?}");
        Ok(())
    })
    .await;
    // Two are, and are not held to account for the time of the freeze: one is back a moment later, the other leaves as any
    // silent pod does, and nobody else.
    for index in 3..6 {
        fleet.change(index, |pod| pod);
    }
    watch
        .until(SOON, "end of the safeguard", |message| {
            of_safeguard(message)?.is_none().then_some(())
        })
        .await;
    fleet.change(6, |pod| pod);
    let view = cluster.handled(0, 11).await;
    assert_eq!(view.safeguard, None);
    fleet.heard_again().await;
    assert_eq!(fleet.seqs(), seqs);
    fleet.nobody_was_lost();
    watch.left(SOON, &PodSpec::number(7).expected_key()).await;
    assert_eq!(watch.departed().len(), 1);
    assert_eq!(recorder.runs().len(), runs + 1, "{:#?}", recorder.runs());
    let list = api.pods().await.unwrap();
    for pod in &list.pods {
        let old = before.pods.iter().find(|old| old.key == pod.key).unwrap();
        assert_eq!(pod.seq, old.seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_lets_the_silent_go_and_no_more() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let (cluster, fleet) = tier(&recorder, 12, |builder| builder).await;
    let api = cluster.api(0);
    let runs = recorder.runs().len();
    let frozen = freeze(&cluster, &fleet, 7).await.safeguard.unwrap();
    let mut watch = api.watch(0).await.unwrap();
    let released = Instant::now();
    let answer = api.release("they are gone").await.unwrap();
    assert!(answer.revision > 0);
    let was = answer.safeguard.unwrap();
    assert_eq!(was.since, frozen.since);
    assert_eq!((was.silent, was.pods), (7, 12));
    let by = watch
        .until(SOON, "release", |message| {
            let safeguard = of_safeguard(message)??;
            (!safeguard.released_by.is_empty()).then_some(safeguard.released_by)
        })
        .await;
    assert!(by.contains("127.0.0.1"), "{by}");
    let view = cluster.handled(0, 5).await;
    let took = released.elapsed();
    let bound = Duration::from_secs(1) + cluster.spec.damper + SLACK;
    assert!(took <= bound, "handled {took:?} after the release");
    let now = recorder.successes();
    assert_eq!(now.len(), runs + 1, "they leave together: {now:#?}");
    assert_eq!(now[runs].hash, view.digest);
    watch
        .until(SOON, "five pods", |message| match &message.event {
            Some(Event::DigestChanged(changed)) => (changed.pod_count == 5).then_some(()),
            _ => None,
        })
        .await;
    assert_eq!(watch.departed().len(), 7);
    cluster
        .ensemble(0, "end of the safeguard", |view| view.safeguard.is_none())
        .await;
    let reason = api.explain(&PodSpec::number(0).expected_key()).await;
    let reason = reason.unwrap().removal.unwrap().reason();
    assert_eq!(reason, LeaveReason::Expired);
    fleet.heard_again().await;
    fleet.nobody_was_lost();
    // There is nothing more to release, over HTTP neither.
    assert_eq!(api.release("").await.unwrap().safeguard, None);
    let again = post(&api, "/v1/safeguard:release", &json!({"reason": "again"})).await;
    assert_eq!(again.get("safeguard"), None);
    nothing_runs(&recorder, cluster.spec.damper * 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_by_itself_after_its_limit() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let settings = |builder: Builder| builder.set("safeguard-max", "4s");
    let (cluster, fleet) = tier(&recorder, 12, settings).await;
    let frozen = freeze(&cluster, &fleet, 9).await.safeguard.unwrap();
    let lasts = seconds(frozen.until) - seconds(frozen.since);
    assert!((lasts - 4.0).abs() < 0.5, "{frozen:?}");
    let view = cluster.handled(0, 3).await;
    assert_eq!(view.safeguard, None);
    let explained = cluster
        .api(0)
        .explain(&PodSpec::number(0).expected_key())
        .await
        .unwrap();
    let removed = seconds(explained.removal.unwrap().time);
    let late = removed - seconds(frozen.until);
    let bound = 1.0 + SLACK.as_secs_f64();
    assert!((-0.1..bound).contains(&late), "{late} s after its limit");
    fleet.nobody_was_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_pods_few_pods_or_none_that_it_guards_leave_in_time() {
    let _permit = small().await;
    type Settings = &'static [(&'static str, &'static str)];
    let several: [(u32, u32, Settings); 4] = [
        // No more than the share.
        (12, 6, &[]),
        // Fewer than the minimum.
        (9, 7, &[]),
        // Switched off.
        (12, 9, &[("safeguard", "0")]),
        // A wider share, a higher minimum.
        (12, 9, &[("safeguard", "80%"), ("safeguard-min", "12")]),
    ];
    let each = several.map(async |(pods, silent, settings)| {
        let recorder = Recorder::python();
        let (cluster, fleet) = tier(&recorder, pods, |builder| {
            settings
                .iter()
                .fold(builder, |builder, (flag, value)| builder.set(flag, value))
        })
        .await;
        let mut watch = cluster.api(0).watch(0).await.unwrap();
        (0..silent).for_each(|index| fleet.silence(index as usize));
        let since = Instant::now();
        cluster.handled(0, pods - silent).await;
        let took = since.elapsed();
        let bound = cluster.spec.ttl + Duration::from_secs(1) + cluster.spec.damper + SLACK;
        assert!(took <= bound, "{settings:?}: handled after {took:?}");
        watch
            .until(SOON, "goodbyes", |message| match &message.event {
                Some(Event::DigestChanged(changed)) => {
                    (changed.pod_count == pods - silent).then_some(())
                }
                _ => None,
            })
            .await;
        let frozen = told(&watch.seen, of_safeguard);
        assert!(frozen.is_empty(), "{settings:?}: {frozen:?}");
        fleet.nobody_was_lost();
    });
    join_all(each).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_die_one_after_another_within_a_ttl_are_counted_together() {
    let _permit = small().await;
    let recorder = Recorder::python();
    let (cluster, fleet) = tier(&recorder, 12, |builder| builder).await;
    let mut watch = cluster.api(0).watch(0).await.unwrap();
    for index in 0..10 {
        fleet.silence(index);
        // Paced, not waited for: the last dies before the first is missed.
        tokio::time::sleep(cluster.spec.ttl / 15).await;
    }
    watch
        .until(SOON, "safeguard", |message| of_safeguard(message)?)
        .await;
    let api = cluster.api(0);
    throughout(cluster.spec.ttl, "half of the roster", async || {
        let view = api.ensemble().await?;
        ensure!(view.pod_count >= 6, "{} pods are left", view.pod_count);
        ensure!(view.safeguard.is_some());
        Ok(())
    })
    .await;
    api.release("").await.unwrap();
    cluster.handled(0, 2).await;
    fleet.nobody_was_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_every_master() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), BEAT, 0, 12);
    let seqs = fleet.joined().await;
    cluster.handled(0, 12).await;
    let runs = recorder.runs().len();
    let frozen = freeze(&cluster, &fleet, 8).await.safeguard.unwrap();
    let stored = etcd.read(&format!("{}operate", cluster.prefix())).await;
    assert!(!stored.is_empty(), "it is in the store");
    for master in &mut cluster.masters {
        master.kill();
    }
    cluster.restart(0).await;
    cluster.restart(1).await;
    // Past the time that a new leader grants to all.
    let leader = cluster.leader().await;
    let api = cluster.api(leader);
    let time = cluster.spec.ttl + Duration::from_secs(1) + SLACK;
    throughout(time, "the freeze", async || {
        let view = api.ensemble().await?;
        let now = view.safeguard.as_ref().context("no safeguard")?;
        ensure!(now.since == frozen.since && now.until == frozen.until);
        ensure!(view.pod_count == 12, "{view:#?}");
        ensure!(recorder.runs().len() == runs);
        Ok(())
    })
    .await;
    for index in 0..8 {
        fleet.change(index, |pod| pod);
    }
    cluster
        .ensemble(leader, "end of the safeguard", |view| {
            view.safeguard.is_none()
        })
        .await;
    fleet.heard_again().await;
    assert_eq!(fleet.seqs(), seqs);
    fleet.nobody_was_lost();
    nothing_runs(&recorder, cluster.spec.damper * 3).await;
    assert_eq!(recorder.runs().len(), runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_settings_have_variables_and_are_told() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:")
        .patient()
        .env("KONTROL_SAFEGUARD", "30%")
        .env("KONTROL_SAFEGUARD_MIN", "5")
        .env("KONTROL_SAFEGUARD_MAX", "2m")
        .start()
        .await;
    let settings = cluster.api(0).ensemble().await.unwrap().settings.unwrap();
    assert_eq!((settings.safeguard, settings.safeguard_min), (30, 5));
    assert_eq!(settings.safeguard_max.unwrap().seconds, 120);
}
