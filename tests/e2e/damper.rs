//! When the callback runs and when it must not: the damper, its bound, and rosters that change while it runs.

use anyhow::ensure;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    etcd::Etcd,
    fleet::Fleet,
    heavy,
    pod::PodSpec,
    script::{Plan, Recorder},
    small,
    wait::{eventually, throughout},
};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_a_run_is_handled_by_a_later_one() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    recorder.plan(&Plan {
        takes: Duration::from_secs(2),
        ..Plan::default()
    });
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    eventually(SOON, "running callback", async || {
        ensure!(
            recorder
                .runs()
                .iter()
                .any(|run| run.read.as_ref().is_some_and(|read| read.pods == 1))
        );
        Ok(())
    })
    .await;
    api.ping(&PodSpec::number(1)).await.unwrap();
    let view = cluster.handled(0, 2).await;
    assert_eq!(recorder.successes().last().unwrap().hash, view.digest);
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roster_that_goes_back_to_what_was_handled_runs_nothing() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let damper = Duration::from_secs(2);
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .damper(damper)
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    let pod = PodSpec::number(0);
    api.ping(&pod).await.unwrap();
    cluster.handled(0, 1).await;
    let runs = recorder.runs().len();
    api.ping(&pod.clone().payload("away".into())).await.unwrap();
    api.ping(&pod).await.unwrap();
    throughout(damper * 2, "no run", async || {
        ensure!(recorder.runs().len() == runs, "{:#?}", recorder.runs());
        Ok(())
    })
    .await;
    // Nor does a state that is put by hand.
    api.put_state(&json!({"by": "hand"})).await.unwrap();
    throughout(damper * 2, "no run", async || {
        ensure!(recorder.runs().len() == runs, "{:#?}", recorder.runs());
        Ok(())
    })
    .await;
    let put = api
        .http(
            "PUT",
            "/v1/state",
            Some(&json!({"state": {"by": "http", "runs": 40}})),
        )
        .await;
    put.ok();
    api.ping(&PodSpec::number(1)).await.unwrap();
    cluster.handled(0, 2).await;
    let last = recorder.runs().pop().unwrap();
    assert_eq!(last.read().state, Some(json!({"by": "http", "runs": 40})));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_endless_change_runs_start_within_the_dampers_bound() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let bound = Duration::from_secs(3);
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .damper(Duration::from_secs(1))
        .set("damper-max", "3s")
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 20);
    fleet.joined().await;
    cluster.handled(0, 20).await;
    let quiet = recorder.runs().len();
    let start = kontrol_tests::script::now();
    // A change every 200 ms or less: the damper alone would never fire.
    for round in 0..60 {
        fleet.change(round % 20, |pod| pod.payload(round.into()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let end = kontrol_tests::script::now();
    let runs = recorder.runs();
    let mut starts = vec![start];
    starts.extend(runs[quiet..].iter().map(|run| run.start));
    starts.push(end);
    assert!(starts.len() >= 4, "{starts:?}");
    for pair in starts.windows(2) {
        let gap = Duration::from_secs_f64((pair[1] - pair[0]).max(0.0));
        assert!(gap <= bound + SLACK, "{gap:?} without a start: {starts:?}");
    }
    let most = (end - start).ceil() as usize;
    assert!(
        runs.len() - quiet <= most,
        "the damper holds back: {} runs in {most} s",
        runs.len() - quiet
    );
    fleet.heard_again().await;
    let view = cluster
        .ensemble(0, "handled storm", |view| {
            view.handled_digest == view.digest
        })
        .await;
    let list = cluster.api(1).pods().await.unwrap();
    assert_eq!(list.digest, view.digest);
    assert_eq!(
        recorder.successes().last().unwrap().hash,
        view.digest,
        "the last run saw the final roster"
    );
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_pods_reach_it_whole() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .damper(Duration::from_secs(2))
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(15), 0, 3000);
    let seqs = fleet.joined().await;
    let mut given: Vec<u64> = seqs.into_values().collect();
    given.sort_unstable();
    assert_eq!(
        given,
        (0..3000).collect::<Vec<u64>>(),
        "each seq once, and none lost"
    );
    let view = cluster.handled(0, 3000).await;
    let run = recorder.successes().pop().unwrap();
    let read = run.read();
    assert_eq!((read.pods, &run.hash), (3000, &view.digest));
    assert_eq!(
        read.md5_of_pods, None,
        "PODS is over 128 KiB, so there is no such variable"
    );
    assert_eq!(read.md5_of_file.as_ref(), Some(&run.hash));
    assert_eq!(read.stdin_agrees, Some(true));
    recorder.check();
    let log = cluster
        .masters
        .iter()
        .map(kontrol_tests::node::Master::log)
        .collect::<String>();
    assert!(log.contains("PODS"), "the log says that PODS was left out");

    // A callback that doesn't read its standard input is fine as well.
    recorder.plan(&Plan {
        reads_stdin: false,
        ..Plan::default()
    });
    fleet.leave(0).await;
    cluster.handled(0, 2999).await;
    fleet.nobody_was_lost();
    recorder.check();
}
