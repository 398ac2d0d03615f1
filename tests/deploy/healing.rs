//! `deploy/examples/healing`: a Redis set that heals. Primaries are killed, a leading master in the midst of a fail-over, a
//! replica hangs; and no write that two have acknowledged is lost.

mod readme;
mod redis;
mod set;
mod writer;

use anyhow::{Context, bail, ensure};
use kontrol_tests::{SOON, heavy, wait::eventually};
use redis::info;
use rustix::process::Signal;
use set::Set;
use writer::Writer;

/// How many acknowledged writes show that the set works.
const SOME: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn healing_loses_no_write_that_two_have_acknowledged() {
    let _permit = heavy().await;
    let Some(mut set) = Set::start(4).await else {
        return;
    };
    assert_eq!(set.is_whole().await, 0, "the oldest is the primary");
    let writer = Writer::start(set.apis());
    writer.goes_on(SOME).await;

    // The machine of the primary dies, and so does the leader as soon as it has begun to do something about it.
    let leader = set.cluster.leader().await;
    set.pods[0].kill();
    eventually(SOON, "the beginning of a fail-over", async || {
        for pod in set.running() {
            let info = info(&pod.address()).await?;
            if info["role"] == "master" || info["master_port"] == "1" {
                return Ok(());
            }
        }
        bail!("all still wait for the old primary")
    })
    .await;
    set.cluster.masters[leader].kill();
    writer.goes_on(SOME).await;
    assert_ne!(set.is_whole().await, 0);

    // Both come back. The old primary has writes that nobody acknowledged; it replicates now.
    set.cluster.restart(leader).await;
    set.launch(0);
    let primary = set.is_whole().await;
    assert_ne!(primary, 0);
    writer.goes_on(SOME).await;

    // A replica hangs: its pod reports ill, and an action restarts it.
    let ill = (primary + 1) % 4;
    let hung = set.pods[ill].pid("redis").unwrap();
    set.pods[ill].signal("redis", Signal::STOP);
    eventually(SOON, "another Redis in its place", async || {
        let pid = set.pods[ill].pid("redis").context("it is down")?;
        ensure!(pid != hung);
        Ok(())
    })
    .await;
    let actions = set.cluster.api(0).history().await.unwrap();
    let restarts = |action: &&kontrol_proto::v1::Action| {
        let command = action.command.as_ref();
        command.is_some_and(|command| command.argv == ["pod", "restart"])
    };
    assert!(
        actions.iter().any(|action| restarts(&action)),
        "{actions:?}"
    );
    set.is_whole().await;
    writer.goes_on(SOME).await;

    // The one that has the writes is the youngest when the next primary is killed; its supervisor brings it back at once.
    let [oldest, next, youngest] = set.replicas(primary).await[..] else {
        panic!("three replicas");
    };
    let api = set.cluster.api(0);
    set.hold().await;
    set.pods[oldest].cut_off().await;
    set.pods[next].cut_off().await;
    writer.goes_on(SOME).await;
    for of in ["redis", "slave"] {
        set.pods[primary].signal(of, Signal::KILL);
    }
    api.resume("a test").await.unwrap();
    writer.goes_on(SOME).await;
    assert_eq!(set.is_whole().await, youngest, "it had the most");

    set.has_all(&writer.finish().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn healing_waits_for_the_old_primary_rather_than_lose_a_write() {
    let _permit = heavy().await;
    let Some(mut set) = Set::start(3).await else {
        return;
    };
    let primary = set.is_whole().await;
    let [behind, up_to_date] = set.replicas(primary).await[..] else {
        panic!("two replicas");
    };
    let writer = Writer::start(set.apis());
    let api = set.cluster.api(0);
    set.hold().await;
    set.pods[behind].cut_off().await;
    writer.goes_on(SOME).await;
    // Two of three die at once: the one that lives lacks what they have acknowledged.
    set.pods[up_to_date].kill();
    set.pods[primary].kill();
    let before = set.state().await.unwrap();
    let roster = set
        .cluster
        .ensemble(0, "one pod", |view| view.pod_count == 1);
    roster.await;
    api.resume("a test").await.unwrap();
    set.refuses(1).await;
    // The replica comes back. How far it had come nobody can tell.
    set.launch(up_to_date);
    set.refuses(2).await;
    let infos = set.infos().await.unwrap();
    assert!(infos.values().all(|info| info["role"] == "slave"));
    assert_eq!(set.state().await.unwrap(), before);

    // The old primary has all that it acknowledged on its disk.
    set.launch(primary);
    assert_eq!(set.is_whole().await, primary);
    writer.goes_on(SOME).await;
    set.has_all(&writer.finish().await).await;
}
