//! Masters that are restarted, one after another or all at once, with pods that go on reporting.

use crate::scene::Scene;
use kontrol_tests::{etcd::Etcd, heavy, pod::from_proto};

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_masters_harms_nobody() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    let state = scene.cluster.api(0).state().await.unwrap();
    for index in 0..3 {
        let status = scene.cluster.masters[index].stop().await;
        assert!(status.success(), "{status}");
        scene.cluster.restart(index).await;
    }
    let now = scene.cluster.api(2).state().await.unwrap();
    assert_eq!(
        from_proto(now.state.as_ref()),
        from_proto(state.state.as_ref())
    );
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_are_killed_one_after_another_harm_nobody() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    for index in 0..3 {
        scene.cluster.masters[index].kill();
        scene.cluster.restart(index).await;
    }
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_all_masters_harms_nobody() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd).await;
    for master in &mut scene.cluster.masters {
        master.kill();
    }
    tokio::time::sleep(scene.cluster.spec.ttl * 2).await;
    for index in 0..3 {
        scene.cluster.masters[index].launch();
    }
    scene.cluster.ready().await;
    scene.is_unharmed().await;
}
