//! The pods that are rendered, run by podman: without a cluster, and what a kubelet does for a pod is done by `play`.

use super::{
    objects::{list, text},
    of_a_tier,
    play::Cluster,
    rendered,
};
use anyhow::ensure;
use kontrol_tests::{SOON, heavy, wait::eventually};
use serde_json::Value;

/// The pods of some ways to deploy, together. None, said aloud, where podman can't run them.
async fn cluster(rendered: &Value, secrets: Vec<Value>, sets: &[&str]) -> Option<Cluster> {
    let sets = sets.iter().flat_map(|name| list(&rendered["sets"][name]));
    let objects = secrets.into_iter().chain(sets.cloned()).collect();
    let mut cluster = Cluster::make(objects).await?;
    cluster.start();
    Some(cluster)
}

/// What the operator is told of the roster, once these pods are in it.
async fn roster(cluster: &Cluster, master: &str, at: &str, wanted: &[&str]) -> Vec<Value> {
    eventually(2 * SOON, "pods in the roster", async || {
        let ask = ["pods", "--endpoint", at, "--output", "json"];
        let said: Value = serde_json::from_str(&cluster.ask(master, &ask)?)?;
        let mut pods = list(&said["pods"]).to_vec();
        pods.sort_by_key(|pod| pod["id"].to_string());
        let ids: Vec<&str> = pods.iter().map(|pod| text(&pod["id"])).collect();
        ensure!(ids == wanted, "{ids:?}");
        Ok(pods)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_the_base_run_and_those_of_the_app_are_in_their_roster() {
    let _permit = heavy().await;
    let Some(rendered) = rendered() else { return };
    let Some(cluster) = cluster(rendered, of_a_tier(), &["base", "app"]).await else {
        return;
    };
    cluster.is_ready().await;
    let master = "kontrol-masters-0";
    let pods = roster(
        &cluster,
        master,
        "https://kontrol-masters",
        &["web-0", "web-1"],
    )
    .await;
    for pod in &pods {
        let given = cluster.pods.iter().find(|it| it.name == text(&pod["id"]));
        assert_eq!(text(&pod["ip"]), given.unwrap().ip, "{pod}");
        assert_eq!(
            (text(&pod["app"]), text(&pod["role"])),
            ("shop", "web"),
            "{pod}"
        );
        assert_eq!(pod["labels"]["kontrol-client"], "yes", "{pod}");
        assert_eq!(text(&pod["node"]), "node-1", "{pod}");
    }
    // By the name that it advertises as well, which the star of its certificate covers.
    let own = "https://kontrol-masters-0.kontrol-masters.kontrol.svc";
    cluster.ask(master, &["status", "--endpoint", own]).unwrap();

    // A command runs, as the user of the pod, and may write to /tmp alone.
    let exec = [
        "exec",
        "--endpoint",
        own,
        "--all",
        "--output",
        "raw",
        "--shell",
    ];
    let shell =
        "id -u; touch /tmp/x && ! touch /x 2>/dev/null && grep -c '^CapEff:.0*$' /proc/self/status";
    let ran = eventually(SOON, "command on both pods", async || {
        cluster.ask(master, &[&exec[..], &[shell]].concat())
    })
    .await;
    let mut lines: Vec<&str> = ran.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "1", "10001", "10001"], "{ran}");

    // The callback is the one of the ConfigMap.
    eventually(2 * SOON, "run of the callback", async || {
        let log = cluster.logs(master);
        ensure!(log.contains("bytes of pods in"), "{log}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_looked_at_runs_without_any_secret() {
    let _permit = heavy().await;
    let Some(rendered) = rendered() else { return };
    for (set, master, pods) in [
        ("overlays/memory", "kontrol-masters-0", ["web-0", "web-1"]),
        (
            "chart/memory",
            "kontrol-masters-0",
            ["kontrol-web-0", "kontrol-web-1"],
        ),
    ] {
        let Some(cluster) = cluster(rendered, Vec::new(), &[set]).await else {
            return;
        };
        cluster.is_ready().await;
        // As the guide has it, without an endpoint.
        roster(&cluster, master, "http://kontrol.kontrol.svc", &pods).await;
        let ran = cluster.ask(
            master,
            &["exec", "--all", "--output", "raw", "--", "id", "-u"],
        );
        assert_eq!(ran.unwrap(), "10001\n10001\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "six more containers, more than a minute: compose.rs brings up the same tier; run it with --ignored"]
async fn three_masters_over_three_etcd_find_one_another_and_go_on_without_their_leader() {
    let _permit = heavy().await;
    let Some(rendered) = rendered() else { return };
    let Some(cluster) = cluster(rendered, of_a_tier(), &["overlays/mixed"]).await else {
        return;
    };
    cluster.is_ready().await;
    let masters = [
        "kontrol-masters-0",
        "kontrol-masters-1",
        "kontrol-masters-2",
    ];
    let status = async |of: &str| -> Value {
        eventually(2 * SOON, "three masters", async || {
            let own = format!("https://{of}.kontrol-masters.kontrol.svc");
            let ask = ["status", "--endpoint", &own, "--output", "json"];
            let said: Value = serde_json::from_str(&cluster.ask(of, &ask)?)?;
            ensure!(list(&said["masters"]).len() == masters.len(), "{said}");
            Ok(said)
        })
        .await
    };
    let before = status(masters[0]).await;
    // Each is a pod of the tier as well, and tells of all of them.
    for master in masters {
        roster(&cluster, master, "https://kontrol", &masters).await;
    }
    let leader = text(&before["leader"]["id"]).to_owned();
    let other = masters.iter().find(|name| **name != leader).unwrap();
    cluster.kill(&leader);
    eventually(2 * SOON, "another leader", async || {
        let own = format!("https://{other}.kontrol-masters.kontrol.svc");
        let ask = ["status", "--endpoint", &own, "--output", "json"];
        let said: Value = serde_json::from_str(&cluster.ask(other, &ask)?)?;
        let leads = said["leader"]["id"].as_str().unwrap_or_default();
        ensure!(!leads.is_empty() && leads != leader, "{said}");
        ensure!(
            said["podCount"] == 2,
            "the one that was killed has left: {said}"
        );
        Ok(())
    })
    .await;
}
