//! The slave as a process: what it reports, how it leaves, and how it finds its masters.

use anyhow::ensure;
use kontrol_proto::v1::LeaveReason;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{Slave, command},
    pod::from_proto,
    pod::key_of,
    small,
    wait::{eventually, throughout},
};
use serde_json::json;
use std::{fs, time::Duration};
use tempfile::TempDir;
use tokio::time::Instant;

const LABELS: &str = r#"{"app":"web","role":"worker","tier":"1"}"#;

fn masters(cluster: &Cluster) -> String {
    let addresses: Vec<String> = cluster
        .masters
        .iter()
        .map(kontrol_tests::node::Master::address)
        .collect();
    addresses.join("|")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reports_its_pod_and_each_good_payload_and_leaves_at_once() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let payload = cluster.dir.path().join("payload.json");
    fs::write(&payload, r#"{"load": 1}"#).unwrap();
    let mut slave = Slave::start(
        "slave",
        &[
            ("master", &masters(&cluster)),
            ("id", "one"),
            ("ip", "127.5.0.1"),
            ("labels", LABELS),
            ("payload", payload.to_str().unwrap()),
        ],
        cluster.dir.path(),
    );
    let key = key_of("127.5.0.1");
    let api = cluster.api(1);
    let told = async |wanted: serde_json::Value| {
        eventually(SOON, &format!("payload {wanted}"), async || {
            let pod = api.pod(&key).await?;
            let payload = from_proto(pod.payload.as_ref());
            ensure!(payload == wanted, "{payload}");
            Ok(pod)
        })
        .await
    };
    let pod = told(json!({"load": 1})).await;
    assert_eq!(
        (pod.id.as_str(), pod.app.as_str(), pod.role.as_str()),
        ("one", "web", "worker")
    );
    assert_eq!(pod.labels["tier"], "1");
    assert_eq!(pod.nonce.len(), 16);
    assert!(pod.nonce.chars().all(|digit| digit.is_ascii_hexdigit()));

    // Renamed into place, and written in place: both are seen.
    let new = cluster.dir.path().join("new");
    fs::write(&new, r#"{"load": 2}"#).unwrap();
    fs::rename(&new, &payload).unwrap();
    told(json!({"load": 2})).await;
    fs::write(&payload, r#"["three"]"#).unwrap();
    told(json!(["three"])).await;

    // The second one is within the limit as a file, and not as the JSON that masters measure.
    let grows = format!("[{}]", ["1e20"; 13_000].join(","));
    for (text, said) in [
        ("{ broken", "not valid JSON"),
        (grows.as_str(), "286001 bytes of canonical JSON"),
    ] {
        fs::write(&payload, text).unwrap();
        eventually(SOON, "complaint about the payload", async || {
            ensure!(slave.log().contains(said), "{}", slave.log());
            Ok(())
        })
        .await;
    }
    throughout(cluster.spec.ttl * 2, "the last good payload", async || {
        let pod = api.pod(&key).await?;
        ensure!(from_proto(pod.payload.as_ref()) == json!(["three"]));
        Ok(())
    })
    .await;
    assert_eq!(api.pod(&key).await.unwrap().seq, pod.seq);

    let mut watch = api.watch(0).await.unwrap();
    let start = Instant::now();
    assert!(slave.stop(Duration::from_secs(2) + SLACK).await.success());
    let (left, reason) = watch.left(SOON, &key).await;
    assert_eq!(reason, LeaveReason::Down);
    assert!(left - start < Duration::from_secs(2) + SLACK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_slave_expires_and_a_restarted_one_keeps_its_seq() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let (api, key) = (cluster.api(0), key_of("127.5.0.2"));
    let start = |name: &str| {
        let masters = masters(&cluster);
        let settings = [
            ("master", masters.as_str()),
            ("id", "two"),
            ("ip", "127.5.0.2"),
            ("labels", LABELS),
        ];
        Slave::start(name, &settings, cluster.dir.path())
    };
    let mut slave = start("first");
    let first = eventually(SOON, "pod", async || Ok(api.pod(&key).await?)).await;
    slave.kill();
    let mut slave = start("second");
    let second = eventually(SOON, "another incarnation", async || {
        let pod = api.pod(&key).await?;
        ensure!(pod.nonce != first.nonce);
        Ok(pod)
    })
    .await;
    assert_eq!(second.seq, first.seq);
    let mut watch = api.watch(0).await.unwrap();
    slave.kill();
    let killed = Instant::now();
    let (left, reason) = watch.left(SOON, &key).await;
    assert!(
        matches!(reason, LeaveReason::Expired | LeaveReason::Lost),
        "{reason:?}"
    );
    assert!(left - killed <= cluster.spec.ttl + Duration::from_secs(1) + SLACK);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_moves_to_the_next_master_when_its_own_dies() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(3).start().await;
    let key = key_of("127.5.0.3");
    let all = masters(&cluster);
    let settings = [
        ("master", all.as_str()),
        ("id", "three"),
        ("ip", "127.5.0.3"),
        ("labels", LABELS),
    ];
    let _slave = Slave::start("slave", &settings, cluster.dir.path());
    let first = eventually(SOON, "attached pod", async || {
        for index in 0..3 {
            let pod = cluster.api(index).pod(&key).await?;
            if !pod.attached_master.is_empty() {
                return Ok(pod);
            }
        }
        anyhow::bail!("no master knows where it is attached")
    })
    .await;
    // A master that is paused, and one that is dead: neither may cost the pod its place.
    let index: usize = first
        .attached_master
        .strip_prefix("master-")
        .unwrap()
        .parse()
        .unwrap();
    cluster.masters[index].pause();
    let others: Vec<usize> = (0..3).filter(|other| *other != index).collect();
    cluster.leader_among(&others, SOON).await;
    let api = cluster.api(others[0]);
    throughout(cluster.spec.ttl * 3, "a pod that lives", async || {
        ensure!(api.pod(&key).await?.seq == first.seq);
        Ok(())
    })
    .await;
    cluster.masters[index].kill();
    cluster.masters[others[1]].kill();
    cluster.leader_among(&others[..1], SOON).await;
    throughout(cluster.spec.ttl * 2, "a pod that lives", async || {
        ensure!(api.pod(&key).await?.seq == first.seq);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reports_to_several_tiers_and_a_dead_one_delays_no_other() {
    let _permit = small().await;
    let first = Cluster::on("memory:").start().await;
    let mut second = Cluster::on("memory:").start().await;
    let tiers = format!(
        "{},127.0.0.1:{},{}",
        first.masters[0].url(),
        kontrol_tests::ports::free(),
        second.masters[0].url()
    );
    let settings = [
        ("master", tiers.as_str()),
        ("id", "four"),
        ("ip", "127.5.0.4"),
        ("labels", LABELS),
    ];
    let mut slave = Slave::start("slave", &settings, first.dir.path());
    for tier in [&first, &second] {
        tier.ensemble(0, "one pod", |view| view.pod_count == 1)
            .await;
    }
    second.masters[0].pause();
    let api = first.api(0);
    throughout(first.spec.ttl * 2, "a pod that lives", async || {
        ensure!(api.ensemble().await?.pod_count == 1);
        Ok(())
    })
    .await;
    // Two tiers can't be told goodbye; the end must not wait for them.
    assert!(slave.stop(Duration::from_secs(2) + SLACK).await.success());
    first
        .ensemble(0, "empty roster", |view| view.pod_count == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_the_downward_api_folder() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").start().await;
    let folder = TempDir::new().unwrap();
    let podinfo = folder.path();
    fs::write(
        podinfo.join("labels"),
        "app=\"shop\"\nrole=\"cart\"\nquote=\"a \\\"b\\\"\"\n",
    )
    .unwrap();
    let annotation = format!("kontrol/master=\"{}\"\n", cluster.masters[0].address());
    fs::write(podinfo.join("annotations"), annotation).unwrap();
    fs::write(podinfo.join("name"), "cart-0").unwrap();
    let settings = [("podinfo", podinfo.to_str().unwrap()), ("ip", "127.5.0.5")];
    let _slave = Slave::start("slave", &settings, cluster.dir.path());
    let pod = eventually(SOON, "pod", async || {
        Ok(cluster.api(0).pod(&key_of("127.5.0.5")).await?)
    })
    .await;
    assert_eq!(
        (pod.id.as_str(), pod.app.as_str(), pod.role.as_str()),
        ("cart-0", "shop", "cart")
    );
    assert_eq!(pod.labels["quote"], "a \"b\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slave_is_small() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").start().await;
    let all = masters(&cluster);
    let settings = [
        ("master", all.as_str()),
        ("id", "six"),
        ("ip", "127.5.0.6"),
        ("labels", LABELS),
    ];
    let mut slave = Slave::start("slave", &settings, cluster.dir.path());
    cluster
        .ensemble(0, "one pod", |view| view.pod_count == 1)
        .await;
    let memory = slave.process().usage().resident_kib;
    assert!(memory < 64 * 1024, "{memory} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_one_line_that_names_it_and_exit_code_2() {
    let _permit = small().await;
    let good = [
        ("master", "127.0.0.1:9"),
        ("ip", "127.5.0.7"),
        ("labels", LABELS),
        ("id", "seven"),
    ];
    for (flag, value) in [
        ("master", ""),
        ("master", "http://"),
        ("ip", "nowhere"),
        ("labels", "app=web"),
        ("labels", r#"{"app":"web"}"#),
        ("labels", r#"{"app":1,"role":"a"}"#),
        ("annotations", "{"),
        ("podinfo", "/nonexistent/folder"),
    ] {
        let mut slave = command("kontrol-slave");
        for (name, fine) in good {
            if name != flag {
                slave.arg(format!("--{name}")).arg(fine);
            }
        }
        slave.arg(format!("--{flag}")).arg(value);
        let output = kontrol_tests::node::run(slave).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "--{flag} {value}: {text}");
        assert!(text.contains(flag), "--{flag} {value}: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
}
