//! Most slaves die at once, or seem to: with a callback that deletes the data of whoever left, nothing is deleted before an
//! operator, or the time that was given to one, says so. A replacement in good order is no such thing.

mod rack;
mod rolling;

use anyhow::{Context, ensure};
use kontrol_proto::v1::{
    GetEnsembleResponse, LeaveReason, Safeguard, WatchResponse, watch_response::Event,
};
use kontrol_tests::{
    SLACK, SOON,
    client::Api,
    cluster::{Builder, Cluster},
    crew::{self, Crew},
    etcd::Etcd,
    keeper::Keeper,
    wait::{eventually, throughout},
    whole,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How many slaves there are.
const SIZE: usize = 200;
/// How many of them die.
const DEAD: usize = 120;
const TTL: Duration = Duration::from_secs(5);
/// Long enough for masters that get little of the processors while a hundred slaves start.
const FOVER: Duration = Duration::from_secs(4);

/// Three masters, their slaves, the data of each.
struct Scene {
    // Dropped first, so that its logs can be shown: they are in the folder of the cluster.
    crew: Crew,
    cluster: Cluster,
    keeper: Keeper,
    /// The seqs before the death.
    seqs: BTreeMap<String, u64>,
    /// How often the callback had run before it.
    runs: usize,
}

/// The seq of each pod.
async fn seqs(api: &Api) -> anyhow::Result<BTreeMap<String, u64>> {
    let pods = api.pods().await?.pods.into_iter();
    Ok(pods.map(|pod| (pod.id, pod.seq)).collect())
}

/// The names of slaves.
fn names(indices: std::ops::Range<usize>) -> BTreeSet<String> {
    indices.map(crew::id).collect()
}

/// The safeguard, if a message says that there is one.
fn frozen(message: &WatchResponse) -> Option<Safeguard> {
    match &message.event {
        Some(Event::SafeguardChanged(changed)) => changed.safeguard.clone(),
        _ => None,
    }
}

impl Scene {
    async fn on(etcd: &Etcd, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let keeper = Keeper::new();
        let builder = Cluster::on(&etcd.store())
            .masters(3)
            .ttl(TTL)
            .fover(FOVER)
            .set("callback", keeper.program().to_str().unwrap());
        let mut cluster = settings(builder).start().await;
        let crew = Crew::start(&mut cluster, SIZE).await;
        cluster.handled(0, SIZE as u32).await;
        assert_eq!(keeper.data(), names(0..SIZE));
        let seqs = seqs(&cluster.api(0)).await.unwrap();
        let runs = keeper.runs().len();
        Self {
            crew,
            cluster,
            keeper,
            seqs,
            runs,
        }
    }

    /// Kills most slaves, and waits until every master tells that their removals are frozen, within a TTL and a second.
    async fn freeze(&mut self) -> Safeguard {
        let mut watch = self.cluster.api(0).watch(0).await.unwrap();
        self.crew.kill(0..DEAD);
        let killed = Instant::now();
        watch.until(SOON, "safeguard", frozen).await;
        let took = killed.elapsed();
        let bound = TTL + Duration::from_secs(1) + SLACK;
        assert!(took <= bound, "the operator is told after {took:?}");
        assert!(watch.departed().is_empty(), "{:?}", watch.departed());
        let mut told = None;
        for index in 0..3 {
            let view = self
                .cluster
                .ensemble(index, "all that are dead", |view| {
                    let safeguard = view.safeguard.as_ref();
                    safeguard.is_some_and(|safeguard| {
                        (safeguard.silent, safeguard.pods) == (DEAD as u32, SIZE as u32)
                    })
                })
                .await;
            told = view.safeguard;
        }
        told.unwrap()
    }

    /// Looks for so long, whoever leads: the roster is whole, removals are frozen, nothing is deleted.
    async fn nothing_happens(&self, index: usize, time: Duration, since: &Safeguard) {
        let api = self.cluster.api(index);
        throughout(time, "the freeze", async || {
            ensure!(self.keeper.deleted().is_empty());
            ensure!(self.keeper.runs().len() == self.runs, "a callback ran");
            let view = api.ensemble().await?;
            let now = view.safeguard.context("no safeguard")?;
            ensure!(now.since == since.since && now.until == since.until);
            ensure!(view.pod_count as usize == SIZE, "{} pods", view.pod_count);
            Ok(())
        })
        .await;
    }

    /// Waits until the callback handled the living, and nobody else lost anything.
    async fn the_dead_are_gone(&self, index: usize) -> GetEnsembleResponse {
        let view = self.cluster.handled(index, (SIZE - DEAD) as u32).await;
        assert_eq!(view.safeguard, None);
        let now = seqs(&self.cluster.api(index)).await.unwrap();
        let mut living = self.seqs.clone();
        living.retain(|id, _| names(DEAD..SIZE).contains(id));
        assert_eq!(now, living, "the living keep their seqs");
        assert_eq!(self.keeper.data(), names(DEAD..SIZE));
        assert_eq!(self.keeper.deleted(), names(0..DEAD));
        let last = self.keeper.runs().pop().unwrap();
        assert_eq!(last.hash, view.digest);
        view
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slaves_that_are_back_after_a_mass_death_find_their_seqs_and_data() {
    let _permit = whole().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd, |builder| builder).await;
    let safeguard = scene.freeze().await;
    scene.nothing_happens(0, TTL + SLACK, &safeguard).await;
    scene.crew.start_again(&scene.cluster, 0..DEAD);
    crew::attached(&mut scene.cluster, SIZE).await;
    for index in 0..3 {
        scene
            .cluster
            .ensemble(index, "end of the safeguard", |view| {
                view.safeguard.is_none() && view.handled_digest == view.digest
            })
            .await;
        let now = seqs(&scene.cluster.api(index)).await.unwrap();
        assert_eq!(now, scene.seqs, "of master {index}");
    }
    // Long enough for a wrong deadline to strike.
    let api = scene.cluster.api(1);
    throughout(TTL + SLACK, "the roster", async || {
        let view = api.ensemble().await?;
        ensure!(view.pod_count as usize == SIZE, "{view:#?}");
        Ok(())
    })
    .await;
    assert_eq!(scene.keeper.data(), names(0..SIZE));
    assert!(scene.keeper.deleted().is_empty());
    // It guards the next time as well.
    scene.freeze().await;
    assert!(scene.keeper.deleted().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_leave_when_an_operator_says_so() {
    let _permit = whole().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd, |builder| builder).await;
    let safeguard = scene.freeze().await;
    let follower = scene.cluster.follower().await;
    let before = etcd.revision().await;
    scene
        .nothing_happens(follower, TTL + SLACK, &safeguard)
        .await;
    let written = etcd.revision().await - before;
    assert!(written <= 10, "{written} writes while nothing happened");
    let api = scene.cluster.api(follower);
    let answer = api.release("the rack burnt down").await.unwrap();
    assert_eq!(answer.safeguard.unwrap().silent as usize, DEAD);
    let released = Instant::now();
    scene.the_dead_are_gone(follower).await;
    let took = released.elapsed();
    let bound = Duration::from_secs(1) + scene.cluster.spec.damper + SLACK;
    assert!(took <= bound, "handled {took:?} after the release");
    let explained = api.explain(&crew::key(0)).await.unwrap();
    let reason = explained.removal.unwrap().reason();
    assert!(matches!(reason, LeaveReason::Expired | LeaveReason::Lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_leave_when_the_time_for_an_operator_is_over() {
    let _permit = whole().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let most = Duration::from_secs(7);
    let mut scene = Scene::on(&etcd, |builder| builder.set("safeguard-max", "7s")).await;
    let safeguard = scene.freeze().await;
    let told = Instant::now();
    scene.nothing_happens(0, most / 2, &safeguard).await;
    scene.the_dead_are_gone(0).await;
    let took = told.elapsed();
    let bound = most + Duration::from_secs(1) + scene.cluster.spec.damper + SLACK;
    assert!(took <= bound, "handled {took:?} after it was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_outlives_its_leader() {
    let _permit = whole().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd, |builder| builder).await;
    let safeguard = scene.freeze().await;
    let old = scene.cluster.leader().await;
    let rest: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    scene.cluster.masters[old].kill();
    // No moment without it, before and after another leads, and past the time that a new leader grants to all.
    let fover = scene.cluster.spec.fover + Duration::from_secs(1);
    scene.nothing_happens(rest[0], fover, &safeguard).await;
    let new = scene.cluster.leader_among(&rest, SOON).await;
    scene
        .nothing_happens(new, TTL + SLACK * 2, &safeguard)
        .await;
    scene
        .cluster
        .ensemble(new, "all that are dead", |view| {
            let safeguard = view.safeguard.as_ref();
            safeguard.is_some_and(|safeguard| safeguard.silent as usize == DEAD)
        })
        .await;
    scene.cluster.restart(old).await;
    let answer = scene.cluster.api(old).release("they are dead").await;
    assert!(answer.unwrap().safeguard.is_some());
    scene.the_dead_are_gone(old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_safeguard_all_leave_within_the_ttl_and_a_second() {
    let _permit = whole().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut scene = Scene::on(&etcd, |builder| builder.set("safeguard", "0")).await;
    let mut watch = scene.cluster.api(0).watch(0).await.unwrap();
    scene.crew.kill(0..DEAD);
    let killed = Instant::now();
    let mut gone = BTreeSet::new();
    watch
        .until(SOON, "all that are dead", |message| {
            if let Some(Event::PodLeft(left)) = &message.event {
                let reason = left.reason();
                assert!(matches!(reason, LeaveReason::Expired | LeaveReason::Lost));
                gone.insert(left.pod.clone()?.id);
            }
            (gone.len() == DEAD).then_some(())
        })
        .await;
    let took = killed.elapsed();
    let bound = TTL + Duration::from_secs(1) + SLACK;
    assert!(took <= bound, "the last left after {took:?}");
    assert_eq!(gone, names(0..DEAD));
    assert!(!watch.seen.iter().any(|(_, told)| frozen(told).is_some()));
    scene.the_dead_are_gone(0).await;
}

/// Waits until a view of every one of these masters is as it should be.
async fn everywhere(apis: &[Api], what: &str, wanted: impl Fn(&GetEnsembleResponse) -> bool) {
    eventually(SOON * 2, what, async || {
        for api in apis {
            let view = api.ensemble().await?;
            ensure!(wanted(&view), "{}: {view:#?}", api.url());
        }
        Ok(())
    })
    .await;
}
