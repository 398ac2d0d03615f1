//! Everything at once: three masters, three members of etcd, slaves and pods, each on a host of its own, of which a seed
//! decides what dies, hangs and is cut off when; all that happens is written down, and judged when it is over.
//!
//! `KONTROL_CHAOS_SECONDS` lets it take longer, with faults by the seed `KONTROL_CHAOS_SEED`; without it each kind of
//! fault strikes once that takes little time. With an even seed etcd runs without pre-vote, as 3.4 does by default. It
//! needs root or user namespaces, iproute2 and iptables.

mod actions;
mod faults;
mod pods;
mod watchers;
mod world;

use faults::{Faults, KINDS, Kind};
use kontrol_tests::{
    SOON,
    client::Api,
    heavy, net,
    script::{Plan, Recorder, now},
    storm::{
        judge,
        record::{History, Tick},
        silences,
    },
    wait::eventually,
};
use prost_types::Timestamp;
use std::{
    env,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use world::World;

/// What everybody writes into.
#[derive(Debug, Clone, Default)]
struct Shared {
    history: Arc<Mutex<History>>,
    over: Arc<AtomicBool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// Whether nothing more is to be begun, so that what is under way is written down to its end.
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// The faults of the short run.
const SHORT: [&[Kind]; 6] = [
    &[Kind::Kill],
    &[Kind::MemberPaused],
    &[Kind::Apart],
    &[Kind::SlavesRestart],
    &[Kind::Rolling],
    &[Kind::Blind, Kind::MemberKilled],
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_every_promise_is_kept() {
    let _permit = heavy().await;
    let here = "storm::whatever_breaks_every_promise_is_kept";
    if !tokio::task::spawn_blocking(|| net::inside(here))
        .await
        .unwrap()
    {
        return;
    }
    let seconds = number("KONTROL_CHAOS_SECONDS");
    let seed = number("KONTROL_CHAOS_SEED").unwrap_or(1);
    let (slaves, pods) = if seconds.is_some() { (12, 20) } else { (6, 8) };
    let data = env::var_os("KONTROL_TEST_DATA").map_or_else(env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(data).unwrap();
    // Commands may run as another user than this test.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = actions::file(dir.path());
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let recorder = Recorder::python();
    recorder.plan(&Plan {
        takes: Duration::from_millis(300),
        ..Plan::default()
    });

    let shared = Shared::default();
    shared.lock().ttl = world::TTL.as_secs_f64();
    let start = World::start(dir.path(), &recorder, slaves, pods, seed, shared.clone());
    let mut lookers = JoinSet::new();
    let mut actors = JoinSet::new();
    lookers.spawn(watchers::tick(shared.clone()));
    lookers.spawn(watchers::changes(shared.clone()));
    let mut world = start.await;
    for index in 0..world::MASTERS {
        lookers.spawn(watchers::views(index, shared.clone()));
        lookers.spawn(watchers::watch(index, shared.clone()));
    }
    for index in 0..pods {
        actors.spawn(pods::Pod::new(index, seed, shared.clone()).run());
    }
    actors.spawn(watchers::put(shared.clone()));
    actors.spawn(actions::dispatch(
        seed,
        slaves,
        dir.path().to_owned(),
        shared.clone(),
    ));
    world::pause(Duration::from_secs(2)).await;

    let mut faults = Faults::new(&mut world, seed, shared.clone());
    let end = now() + seconds.unwrap_or_default() as f64;
    match env::var("KONTROL_CHAOS_KIND") {
        Ok(kind) => {
            let kind = KINDS.into_iter().find(|of| format!("{of:?}") == kind);
            while now() < end {
                faults.strike(&[kind.expect("a kind of fault")]).await;
                world::pause(Duration::from_secs(2)).await;
            }
        }
        Err(_) if seconds.is_none() => {
            for kinds in SHORT {
                faults.strike(kinds).await;
                world::pause(Duration::from_millis(500)).await;
            }
        }
        Err(_) => {
            while now() < end {
                faults.any().await;
                let calm = faults.dice.roll(3000);
                world::pause(Duration::from_millis(500 + calm)).await;
            }
        }
    }
    let history = settle(&world, actors, lookers, &recorder, &shared, dir.path()).await;
    tell(&history, seed);
    let violations = judge(&history);
    if !violations.is_empty() {
        let kept = dir.keep();
        std::fs::write(kept.join("history"), format!("{history:#?}")).unwrap();
        panic!(
            "{} violations with seed {seed}, logs and history in {}:\n{}",
            violations.len(),
            kept.display(),
            violations.join("\n")
        );
    }
}

/// Lets everything come to rest, and gives the whole history.
async fn settle(
    world: &World,
    mut actors: JoinSet<()>,
    mut lookers: JoinSet<()>,
    recorder: &Recorder,
    shared: &Shared,
    dir: &std::path::Path,
) -> History {
    world.ready().await;
    world.nonces().await;
    // Long enough for whoever is late to be seen to be late.
    world::pause(Duration::from_secs(5)).await;
    shared.over.store(true, Ordering::Relaxed);
    world::pause(Duration::from_secs(2)).await;
    actors.shutdown().await;
    let revision = eventually(SOON, "revision of etcd", watchers::revision).await;
    eventually(SOON, "everything that etcd has", async || {
        let last = shared.lock().ticks.last().map(|tick| tick.revision);
        anyhow::ensure!(last > Some(revision), "{last:?} of {revision}");
        Ok(())
    })
    .await;
    let mut whole = shared.lock().clone();
    whole.end = now();
    actions::results(&mut whole, dir).await;
    // The pods that stopped reporting leave, and the callback is told the last of it.
    let api = Api::new(world::url(0));
    eventually(SOON * 2, "last digest to be handled", async || {
        let view = api.ensemble().await?;
        let slaves = view.pod_count as usize == world.slaves();
        anyhow::ensure!(slaves && view.handled_digest == view.digest, "{view:?}");
        Ok(())
    })
    .await;
    lookers.shutdown().await;
    let rest = shared.lock().clone();
    whole.changes = rest.changes;
    whole.ticks = rest.ticks;
    whole.watches = rest.watches;
    whole.views = rest.views;
    whole.runs = recorder.runs();
    whole.terms = terms(dir, &whole.ticks);
    whole
}

/// When masters began to lead, as their logs have it.
fn terms(dir: &std::path::Path, ticks: &[Tick]) -> Vec<f64> {
    let mut found = Vec::new();
    for index in 0..world::MASTERS {
        let log = std::fs::read_to_string(dir.join(format!("m{index}.log"))).unwrap();
        for line in log.lines().filter(|line| line.contains(" leading epoch=")) {
            let time: Timestamp = line.split(' ').next().unwrap().parse().unwrap();
            let wall = time.seconds as f64 + f64::from(time.nanos) / 1e9;
            let next = ticks.partition_point(|tick| tick.wall <= wall);
            let tick = &ticks[next.saturating_sub(1)];
            found.push(tick.answered + wall - tick.wall);
        }
    }
    assert!(!found.is_empty(), "no master's log says that it led");
    found.sort_by(f64::total_cmp);
    found
}

fn tell(history: &History, seed: u64) {
    eprintln!(
        "seed {seed}: {} faults, {} keepalives ({} accepted), {} revisions, {} runs, {} actions, {} executions, {} starts of slaves, {} messages of watches",
        history.faults.len(),
        history.beats.len(),
        history.beats.iter().filter(|beat| beat.accepted()).count(),
        history.changes.len(),
        history.runs.len(),
        history.actions.len(),
        history.executions.len(),
        history.slaves.len(),
        history
            .watches
            .iter()
            .map(|watch| watch.told.len())
            .sum::<usize>(),
    );
    eprintln!("longest time without acceptance of one pod's keepalives, by fault:");
    for (kind, time) in silences(history) {
        eprintln!("  {time:6.3} s  {kind}");
    }
}
