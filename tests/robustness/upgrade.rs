//! An upgrade as the guide has it: from the last release to this version, one master after the other, then one slave after
//! the other, while pods report and change, the callback runs, and actions run. Then the masters go back.

use anyhow::ensure;
use kontrol_proto::v1::{ActionState, DispatchRequest, Outcome};
use kontrol_tests::{
    SOON,
    action::{Dispatch, Told, ids, shell, span},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    fleet::Fleet,
    heavy,
    node::Programs,
    script::Recorder,
    wait::eventually,
};
use rustix::process::Signal;
use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::sleep};

/// How many pods report by themselves.
const PODS: u32 = 30;
/// How many have a slave.
const SLAVES: usize = 8;
/// How often some pod says something new: not so often that the damper never ends.
const CHANGES: Duration = Duration::from_secs(1);

/// What is upgraded.
struct Tier {
    // Dropped first, so that its logs can be shown: they are in the folder of the cluster.
    crew: Crew,
    fleet: Arc<Fleet>,
    recorder: Recorder,
    cluster: Cluster,
    /// How many commands were given a gate.
    gates: usize,
}

impl Tier {
    async fn start(etcd: &Etcd, programs: &Programs) -> Self {
        let recorder = Recorder::python();
        let builder = Cluster::on(&etcd.store()).masters(3).callback(&recorder);
        let mut cluster = builder.build();
        for master in &mut cluster.masters {
            master.programs = programs.clone();
            master.start().await;
        }
        cluster.ready().await;
        let urls = cluster.urls();
        let fleet = Fleet::numbered(&urls, Duration::from_secs(1), 0, PODS);
        fleet.joined().await;
        let all = crew::masters(&cluster);
        let launch = |index| crew::launch_of(programs, &cluster, index, &all, &[]);
        let crew = Crew {
            slaves: (0..SLAVES).map(launch).collect(),
        };
        crew::attached(&mut cluster, SLAVES).await;
        Self {
            crew,
            fleet: Arc::new(fleet),
            recorder,
            cluster,
            gates: 0,
        }
    }

    /// Each pod's seq, as a master tells it.
    async fn seqs(&self, index: usize) -> BTreeMap<String, u64> {
        let api = self.cluster.api(index);
        eventually(SOON, "roster", async || {
            let pods = api.pods().await?.pods;
            Ok(pods.into_iter().map(|pod| (pod.id, pod.seq)).collect())
        })
        .await
    }

    /// Lets pods say something new again and again, until it is dropped.
    fn changes(&self) -> JoinSet<()> {
        let fleet = Arc::clone(&self.fleet);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            for number in 0_u32.. {
                fleet.change((number % PODS) as usize, |pod| pod.payload(number.into()));
                sleep(CHANGES).await;
            }
        });
        tasks
    }

    /// Has every slave run a command that says something, waits for a gate, and says something else.
    async fn begun(&mut self, master: usize, detach: bool) -> (Dispatch, Gate) {
        self.gates += 1;
        let dir = self.cluster.dir.path();
        let gate = Gate {
            file: dir.join(format!("gate-{}", self.gates)),
            log: dir.join(format!("runs-{}", self.gates)),
        };
        let text = format!(
            "echo $KONTROL_ID >> {}; echo before; until [ -e {} ]; do sleep 0.05; done; echo after",
            gate.log.display(),
            gate.file.display()
        );
        let names: Vec<String> = (0..SLAVES).map(crew::id).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let request = DispatchRequest {
            detach,
            timeout: span(Duration::from_secs(90)),
            ..shell(ids(&names), &text)
        };
        let mut dispatch = self.cluster.api(master).dispatch(request).await.unwrap();
        dispatch
            .until(SOON, "output of all", |told| told.stdout.len() == SLAVES)
            .await;
        (dispatch, gate)
    }

    /// Replaces a master by one of these programs. What slaves run meanwhile goes on: what another master carries, and what
    /// this one does, where nobody need wait for it.
    async fn replace_master(&mut self, index: usize, programs: &Programs) {
        let (others, gate) = self.begun((index + 1) % 3, false).await;
        let (own, own_gate) = self.begun(index, true).await;
        let own = own.told.action.clone();
        let status = self.cluster.masters[index].stop().await;
        assert!(status.success(), "{status}");
        self.cluster.masters[index].programs = programs.clone();
        self.cluster.restart(index).await;
        crew::attached(&mut self.cluster, SLAVES).await;
        gate.open();
        own_gate.open();
        let told = others.finish(SOON * 2).await;
        assert_eq!(told.count(Outcome::Exited), SLAVES, "{told:?}");
        assert!(is_whole(&told), "{told:?}");
        let api = self.cluster.api(index);
        let own = eventually(SOON * 2, "end of a detached action", async || {
            let action = api.action(&own).await?;
            ensure!(action.state() == ActionState::Finished, "{action:#?}");
            Ok(action)
        })
        .await;
        for result in &own.results {
            assert_eq!((result.outcome(), result.exit_code), (Outcome::Exited, 0));
        }
        assert_eq!(own.results.len(), SLAVES);
        gate.was_passed_once();
        own_gate.was_passed_once();
    }

    /// Replaces a slave by one of these programs, without a goodbye. What it runs is cancelled, and what others run goes on.
    async fn replace_slave(&mut self, index: usize, programs: &Programs) {
        let (dispatch, gate) = self.begun(index % 3, false).await;
        let process = self.crew.slaves[index].process();
        process.signal(Signal::HUP);
        assert!(process.ended(SOON).await.success());
        let all = crew::masters(&self.cluster);
        self.crew.slaves[index] = crew::launch_of(programs, &self.cluster, index, &all, &[]);
        crew::attached(&mut self.cluster, SLAVES).await;
        gate.open();
        let told = dispatch.finish(SOON * 2).await;
        let own = &told.finished[&crew::key(index)];
        assert_eq!(own.outcome(), Outcome::Cancelled, "{own:?}");
        assert_eq!(told.count(Outcome::Exited), SLAVES - 1, "{told:?}");
        gate.was_passed_once();
    }

    /// Panics unless nobody was lost and the callback had its due.
    async fn is_unharmed(&self, seqs: &BTreeMap<String, u64>) {
        self.fleet.heard_again().await;
        self.fleet.nobody_was_lost();
        for index in 0..self.cluster.masters.len() {
            assert_eq!(self.seqs(index).await, *seqs, "on master {index}");
        }
        self.recorder.check();
        for run in self.recorder.successes() {
            let changes = run.read().changes.as_ref().unwrap();
            assert_eq!(changes["left"], serde_json::json!([]), "{changes}");
        }
    }
}

/// What a command waits for, and where it says that it runs.
struct Gate {
    file: PathBuf,
    log: PathBuf,
}

impl Gate {
    fn open(&self) {
        fs::write(&self.file, "").unwrap();
    }

    fn was_passed_once(&self) {
        let log = fs::read_to_string(&self.log).unwrap();
        let mut names: Vec<&str> = log.lines().collect();
        names.sort_unstable();
        let all: Vec<String> = (0..SLAVES).map(crew::id).collect();
        assert_eq!(names, all);
    }
}

/// Whether all of the output came, in order.
fn is_whole(told: &Told) -> bool {
    told.stdout.values().all(|text| text == b"before\nafter\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_the_last_release_loses_nothing_and_nor_does_the_way_back() {
    let Some(released) = Programs::released() else {
        return;
    };
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut tier = Tier::start(&etcd, &released).await;
    let seqs = tier.seqs(0).await;
    assert_eq!(seqs.len(), PODS as usize + SLAVES);
    let changes = tier.changes();
    for index in 0..3 {
        tier.replace_master(index, &Programs::Built).await;
    }
    tier.is_unharmed(&seqs).await;
    for index in 0..SLAVES {
        tier.replace_slave(index, &Programs::Built).await;
    }
    tier.is_unharmed(&seqs).await;
    for index in 0..3 {
        tier.replace_master(index, &released).await;
    }
    drop(changes);
    let all = PODS + u32::try_from(SLAVES).unwrap();
    for index in 0..3 {
        tier.cluster.handled(index, all).await;
    }
    tier.is_unharmed(&seqs).await;
    let records = tier.fleet.records();
    let accepted: u64 = records.iter().map(|record| record.accepted).sum();
    let refused: u64 = records.iter().map(|record| record.refused).sum();
    let runs = tier.recorder.runs().len();
    println!("{accepted} keepalives accepted, {refused} asked again elsewhere; {runs} runs");
    assert!(runs > 3 * 2, "the callback ran all the time: {runs}");
}
