//! A callback that a test plays: it is handed each run, and says how it ends.

use crate::ensemble::callback::{Failure, Input, Run, Runner, Validity};
use async_trait::async_trait;
use kontrol_core::model::Exact;
use kontrol_runtime::clock::Clock;
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a run takes to end after SIGTERM: the grace, as with a callback that ignores it.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// Long enough for whatever is to come.
const PATIENCE: Duration = Duration::from_secs(120);

/// The callback of one master. All masters of a tier share the stage.
#[derive(Debug, Clone)]
pub(super) struct Player {
    stage: Arc<Stage>,
    clock: Clock,
}

#[derive(Debug)]
struct Stage {
    acts: mpsc::Sender<Act>,
    running: AtomicUsize,
    most: AtomicUsize,
}

/// A run that has started.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) input: Input,
    pub(super) at: Instant,
    end: oneshot::Sender<Result<Option<Exact>, Failure>>,
}

/// The runs of all masters, in the order in which they started.
#[derive(Debug)]
pub(super) struct Acts {
    acts: mpsc::Receiver<Act>,
    stage: Arc<Stage>,
}

impl Acts {
    pub(super) fn new() -> Self {
        let (sender, acts) = mpsc::channel(16);
        let stage = Arc::new(Stage {
            acts: sender,
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        Self { acts, stage }
    }

    /// The callback of a master with this clock.
    pub(super) fn player(&self, clock: &Clock) -> Arc<dyn Runner> {
        Arc::new(Player {
            stage: self.stage.clone(),
            clock: clock.clone(),
        })
    }

    /// The next run, once it starts.
    pub(super) async fn next(&mut self) -> Act {
        let next = timeout(PATIENCE, self.acts.recv()).await;
        next.expect("no run starts").unwrap()
    }

    /// Sees to it that no run starts for so long.
    pub(super) async fn none_for(&mut self, length: Duration) {
        if let Ok(act) = timeout(length, self.acts.recv()).await {
            panic!("a run started: {act:?}");
        }
    }

    /// The most runs that there were at one time.
    pub(super) fn most(&self) -> usize {
        self.stage.most.load(Ordering::SeqCst)
    }

    /// How many run now.
    pub(super) fn running(&self) -> usize {
        self.stage.running.load(Ordering::SeqCst)
    }
}

impl Act {
    /// The run ends like that.
    pub(super) fn ends(self, outcome: Result<Option<Value>, Failure>) {
        let outcome = outcome.map(|state| state.map(|state| Exact::of(&state).unwrap()));
        self.end.send(outcome).expect("the run goes on");
    }

    pub(super) fn succeeds(self, state: Value) {
        self.ends(Ok(Some(state)));
    }

    pub(super) fn fails(self) {
        self.ends(Err(Failure::Exit(3)));
    }

    /// The run ends in a way that no run should.
    pub(super) fn breaks(self) {
        drop(self.end);
    }

    /// The ids of the pods that it is about.
    pub(super) fn pods(&self) -> Vec<String> {
        ids(&serde_json::from_slice(&self.input.pods).unwrap())
    }

    /// The ids of those that joined, as it is told.
    pub(super) fn joined(&self) -> Vec<String> {
        let changes: Value = serde_json::from_slice(&self.input.changes).unwrap();
        ids(&changes["joined"])
    }

    pub(super) fn state(&self) -> Option<Value> {
        self.input.state.as_ref().map(Exact::to_value)
    }
}

fn ids(pods: &Value) -> Vec<String> {
    let pods = pods.as_array().unwrap().iter();
    pods.map(|pod| pod["id"].as_str().unwrap().to_owned())
        .collect()
}

#[async_trait]
impl Runner for Player {
    async fn run(
        &self,
        input: Input,
        mut lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> Run {
        let (end, mut ended) = oneshot::channel();
        let at = Instant::now();
        let running = Counted::new(&self.stage);
        let act = Act { input, at, end };
        self.stage.acts.send(act).await.unwrap();
        let outcome = loop {
            let validity = *lease.borrow_and_update();
            let over = async {
                match validity {
                    Validity::Forever => std::future::pending().await,
                    Validity::Until { soft, hard } => {
                        self.clock.sleep_until(soft).await;
                        hard
                    }
                }
            };
            tokio::select! {
                biased;
                ended = &mut ended => break ended.expect("on purpose"),
                () = token.cancelled() => {
                    sleep(GRACE).await;
                    break Err(Failure::Stopped);
                }
                hard = over => {
                    self.clock.sleep_until(hard).await;
                    break Err(Failure::LeaseUnconfirmed);
                }
                Ok(()) = lease.changed() => {}
            }
        };
        running.ended();
        Run {
            exit_code: if outcome.is_ok() { 0 } else { 3 },
            duration: at.elapsed(),
            outcome,
        }
    }
}

/// Counts one run for as long as something of it is there: what nobody waits for any more takes its grace all the same.
struct Counted {
    stage: Arc<Stage>,
    left: Duration,
}

impl Counted {
    fn new(stage: &Arc<Stage>) -> Self {
        let running = 1 + stage.running.fetch_add(1, Ordering::SeqCst);
        stage.most.fetch_max(running, Ordering::SeqCst);
        Self {
            stage: stage.clone(),
            left: GRACE,
        }
    }

    fn ended(mut self) {
        self.left = Duration::ZERO;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let gone = |stage: &Stage| stage.running.fetch_sub(1, Ordering::SeqCst);
        if self.left.is_zero() {
            gone(&self.stage);
            return;
        }
        let (stage, left) = (self.stage.clone(), self.left);
        tokio::spawn(async move {
            sleep(left).await;
            gone(&stage);
        });
    }
}
