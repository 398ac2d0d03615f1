//! The main job as a user has it: three masters on etcd, slaves as processes, a callback, and pods that come, go, die,
//! restart and change, while the leader dies as well.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    heavy,
    node::{Master, Slave},
    pod::{digest_of, from_proto},
    script::Recorder,
    wait::eventually,
};
use serde_json::json;
use std::{fs, time::Duration};

const SLAVES: usize = 12;

fn slave(cluster: &Cluster, number: usize) -> Slave {
    let masters: Vec<String> = cluster.masters.iter().map(Master::address).collect();
    let payload = cluster.dir.path().join(format!("payload-{number}.json"));
    if !payload.exists() {
        fs::write(&payload, json!({"number": number}).to_string()).unwrap();
    }
    Slave::start(
        &format!("slave-{number}"),
        &[
            ("master", &masters.join("|")),
            ("id", &format!("slave-{number}")),
            ("ip", &format!("127.6.0.{}", number + 1)),
            ("labels", r#"{"app":"web","role":"worker"}"#),
            ("payload", payload.to_str().unwrap()),
        ],
        cluster.dir.path(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_works_from_slaves_to_callback_while_everything_changes() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .callback(&recorder)
        .start()
        .await;
    let mut slaves: Vec<Slave> = (0..SLAVES).map(|number| slave(&cluster, number)).collect();
    cluster.handled(0, SLAVES as u32).await;
    let before = cluster.api(0).pods().await.unwrap();

    // Two go, two die, one restarts, one changes; and the leader dies in the middle of it.
    let leader = cluster.leader().await;
    for number in [0, 1] {
        assert!(slaves[number].stop(SOON).await.success());
    }
    for number in [2, 3, 4] {
        slaves[number].kill();
    }
    cluster.masters[leader].kill();
    slaves[4] = slave(&cluster, 4);
    let changed = cluster.dir.path().join("payload-5.json");
    fs::write(changed, r#"{"number": "five"}"#).unwrap();

    let new = cluster.leader().await;
    let api = cluster.api(new);
    let left = SLAVES - 4;
    let list = eventually(SOON * 2, "final roster", async || {
        let list = api.pods().await?;
        ensure!(list.pods.len() == left, "{} pods", list.pods.len());
        let told = list.pods.iter().find(|pod| pod.id == "slave-5").unwrap();
        ensure!(from_proto(told.payload.as_ref()) == json!({"number": "five"}));
        Ok(list)
    })
    .await;
    assert_eq!(list.digest, digest_of(&list.pods));
    for pod in &list.pods {
        let old = before.pods.iter().find(|old| old.key == pod.key).unwrap();
        assert_eq!(pod.seq, old.seq, "{} kept its seq", pod.id);
        assert_eq!(pod.nonce != old.nonce, pod.id == "slave-4", "{}", pod.id);
    }
    let view = cluster.handled(new, left as u32).await;
    let last = recorder.successes().pop().unwrap();
    assert_eq!((&last.hash, last.read().pods), (&view.digest, left));
    recorder.check();

    // The tier ends in peace; whoever still reports is back in its place when it returns.
    for index in cluster.running() {
        assert!(cluster.masters[index].stop().await.success());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for index in 0..3 {
        cluster.masters[index].launch();
    }
    cluster.ready().await;
    let after = cluster.handled(0, left as u32).await;
    assert_eq!(after.digest, view.digest);
    recorder.check();
}
