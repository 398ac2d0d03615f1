//! The `file:` store: one master whose roster, seqs and state survive a kill -9.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    fleet::Fleet,
    node::{command, run},
    pod::{PodSpec, from_proto},
    script::Recorder,
    small,
    wait::{eventually, throughout},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_comes_back_with_seqs_and_state_and_runs_nothing_again() {
    let _permit = small().await;
    let data = tempfile::tempdir().unwrap();
    let recorder = Recorder::python();
    let store = format!("file:{}", data.path().display());
    let mut cluster = Cluster::on(&store).callback(&recorder).start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 10);
    fleet.joined().await;
    let before = cluster.handled(0, 10).await;
    let state = cluster.api(0).state().await.unwrap();
    let runs = recorder.runs().len();
    for _ in 0..2 {
        cluster.masters[0].kill();
        cluster.restart(0).await;
        fleet.heard_again().await;
        let api = cluster.api(0);
        throughout(
            cluster.spec.ttl + Duration::from_secs(2),
            "the same roster",
            async || {
                let view = api.ensemble().await?;
                ensure!(view.digest == before.digest, "{view:#?}");
                ensure!(recorder.runs().len() == runs, "the callback ran again");
                Ok(())
            },
        )
        .await;
        assert_eq!(
            from_proto(api.state().await.unwrap().state.as_ref()),
            from_proto(state.state.as_ref())
        );
        assert!(
            api.ensemble().await.unwrap().epoch > before.epoch,
            "another term"
        );
    }
    fleet.nobody_was_lost();
    let next = cluster.api(0).ping(&PodSpec::number(99)).await.unwrap();
    assert_eq!(next.seq, 10);
    cluster.handled(0, 11).await;
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_as_stored_survives_a_kill_in_the_middle_of_joins() {
    let _permit = small().await;
    let data = tempfile::tempdir().unwrap();
    let store = format!("file:{}", data.path().display());
    let mut cluster = Cluster::on(&store).patient().start().await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(2), 0, 300);
    eventually(SOON, "some pods that joined", async || {
        let joined = fleet.seqs().len();
        ensure!(joined >= 50, "{joined}");
        Ok(())
    })
    .await;
    cluster.masters[0].kill();
    cluster.restart(0).await;
    fleet.joined().await;
    fleet.heard_again().await;
    fleet.nobody_was_lost();
    let list = cluster.api(0).pods().await.unwrap();
    let mut seqs: Vec<u64> = list.pods.iter().map(|pod| pod.seq).collect();
    seqs.dedup();
    assert_eq!(seqs.len(), 300, "each seq once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_masters_cannot_share_a_folder() {
    let _permit = small().await;
    let data = tempfile::tempdir().unwrap();
    let store = format!("file:{}", data.path().display());
    let _first = Cluster::on(&store).start().await;
    let mut second = command("kontrol-master");
    second.args([
        "--port",
        &kontrol_tests::ports::free().to_string(),
        "--store",
        &store,
    ]);
    let output = run(second).await;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        !output.status.success() && !text.contains("panicked"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_store_forgets_with_the_process() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    assert_eq!(
        cluster.api(0).ping(&PodSpec::number(0)).await.unwrap().seq,
        0
    );
    assert!(cluster.masters[0].stop().await.success());
    cluster.restart(0).await;
    assert_eq!(cluster.api(0).pods().await.unwrap().pods.len(), 0);
}
