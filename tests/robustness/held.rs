//! A hold in a storm: a thousand joins and the death of the leader, and then one run, which sees them all.

use anyhow::ensure;
use kontrol_tests::{
    SOON, cluster::Cluster, etcd::Etcd, fleet::Fleet, heavy, script::Recorder, wait::throughout,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_held_storm_and_the_leaders_death_end_in_one_run() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let first = Fleet::numbered(&cluster.urls(), Duration::from_secs(10), 5000, 3);
    first.joined().await;
    cluster.handled(0, 3).await;
    let runs = recorder.runs().len();
    let long = Duration::from_secs(300);
    let held = cluster.api(1).hold("a storm", long).await.unwrap().hold;

    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(10), 0, 1000);
    // In the middle of it.
    cluster
        .ensemble(1, "some joins", |view| view.pod_count > 200)
        .await;
    let old = cluster.leader().await;
    cluster.masters[old].kill();
    let rest: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    let new = cluster.leader_among(&rest, SOON).await;
    fleet.joined().await;
    let view = cluster
        .ensemble(new, "all joins", |view| view.pod_count == 1003)
        .await;
    assert_eq!(view.hold, held);
    let none = async |runs: usize, time: Duration| {
        throughout(time, "no run", async || {
            let now = recorder.runs();
            ensure!(now.len() == runs, "{:?}", now.last().map(|run| &run.hash));
            Ok(())
        })
        .await;
    };
    none(runs, cluster.spec.damper * 4).await;
    cluster.restart(old).await;
    let follower = cluster.follower().await;
    let before = cluster.api(follower).ensemble().await.unwrap();
    let ended = cluster.api(follower).resume("calm").await.unwrap();
    assert_eq!(ended.hold, held);
    let view = cluster.handled(follower, 1003).await;
    let all = recorder.runs();
    none(all.len(), cluster.spec.damper * 4).await;
    let last = recorder.successes().pop().unwrap();
    assert_eq!((&last.hash, last.read().pods), (&view.digest, 1003));
    // On a machine so busy that a leader can't confirm its lease, a run is stopped, and another begins.
    let rest = &all[runs..];
    assert!(rest.iter().all(|run| run.hash == view.digest), "{rest:?}");
    let whole = rest.iter().filter(|run| run.code == Some(0)).count();
    assert!(whole == 1 || view.epoch > before.epoch, "{rest:#?}");
    fleet.nobody_was_lost();
    recorder.check();
}
