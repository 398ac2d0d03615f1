//! Many pods in this process: each sends keepalives as a slave does, over a few shared connections, and goes to the
//! next master when one refuses.
//!
//! Every pod is one task that owns its beat and its place among the masters. It writes down what it was told, so that
//! a test can ask afterwards whether a seq ever changed.

use crate::{SOON, client::Api, pod::PodSpec, wait::eventually};
use anyhow::ensure;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

/// Most keepalives under way at once, of all pods of a fleet.
const UNDER_WAY: usize = 64;
/// How long a keepalive waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon a refused keepalive goes to the next master.
const RETRY: Duration = Duration::from_millis(100);

/// What a pod is told to do.
#[derive(Debug, Clone, PartialEq)]
enum Order {
    Report(PodSpec),
    /// Silence, as if its machine was switched off.
    Silence,
    /// A goodbye, then silence.
    Leave(PodSpec),
}

/// What became of a pod's keepalives.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The seqs that it was told, each once, in order. One that lives has one.
    pub seqs: Vec<u64>,
    /// How many keepalives were accepted.
    pub accepted: u64,
    /// How many were refused or not answered.
    pub refused: u64,
    /// When the last one was accepted (the time when it was sent).
    pub last: Option<Instant>,
    /// Why the last of them was.
    pub error: String,
    /// Whether its goodbye was accepted.
    pub left: bool,
}

#[derive(Debug)]
struct Member {
    spec: PodSpec,
    order: watch::Sender<Order>,
    record: Arc<Mutex<Record>>,
}

impl Member {
    /// What the pod says of itself at present.
    fn now(&self) -> PodSpec {
        match &*self.order.borrow() {
            Order::Report(spec) | Order::Leave(spec) => spec.clone(),
            Order::Silence => self.spec.clone(),
        }
    }
}

/// Pods that report.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Member>,
    /// Ends the pods with the fleet.
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Lets these pods report to masters, each a keepalive every interval.
    pub fn start(masters: &[String], interval: Duration, pods: Vec<PodSpec>) -> Self {
        let masters: Arc<Vec<Api>> = Arc::new(masters.iter().map(Api::new).collect());
        let under_way = Arc::new(Semaphore::new(UNDER_WAY));
        let mut tasks = JoinSet::new();
        let members = pods
            .into_iter()
            .enumerate()
            .map(|(index, spec)| {
                let (order, orders) = watch::channel(Order::Report(spec.clone()));
                let record = Arc::<Mutex<Record>>::default();
                let task = Task {
                    masters: masters.clone(),
                    at: index,
                    interval,
                    beat: 0,
                    under_way: under_way.clone(),
                    record: record.clone(),
                };
                tasks.spawn(task.run(orders));
                Member {
                    spec,
                    order,
                    record,
                }
            })
            .collect();
        Self {
            members,
            _tasks: tasks,
        }
    }

    /// The same for so many pods, from a number on.
    pub fn numbered(masters: &[String], interval: Duration, first: u32, count: u32) -> Self {
        let pods = (first..first + count).map(PodSpec::number).collect();
        Self::start(masters, interval, pods)
    }

    /// Waits until every pod was accepted, and tells each key's seq.
    pub async fn joined(&self) -> BTreeMap<String, u64> {
        eventually(SOON * 3, "seq for every pod", async || {
            let mut missing = self.records();
            missing.retain(|record| record.accepted == 0);
            ensure!(
                missing.is_empty(),
                "{} pods have none, like {:?}",
                missing.len(),
                missing[0]
            );
            Ok(())
        })
        .await;
        self.seqs()
    }

    /// Each key's present seq.
    pub fn seqs(&self) -> BTreeMap<String, u64> {
        self.members
            .iter()
            .filter_map(|member| {
                let seq = *member.record.lock().unwrap().seqs.last()?;
                Some((member.spec.expected_key(), seq))
            })
            .collect()
    }

    /// What became of each pod's keepalives, in the order of the pods.
    pub fn records(&self) -> Vec<Record> {
        self.members
            .iter()
            .map(|member| member.record.lock().unwrap().clone())
            .collect()
    }

    /// Waits until every pod that reports has been accepted again since now.
    pub async fn heard_again(&self) {
        let since = Instant::now();
        eventually(SOON, "keepalive of every pod", async || {
            for member in &self.members {
                let heard = member.record.lock().unwrap().last;
                let reports = matches!(*member.order.borrow(), Order::Report(_));
                ensure!(!reports || heard > Some(since), "{} waits", member.spec.id);
            }
            Ok(())
        })
        .await;
    }

    /// Panics when a pod was told another seq than at first: it was lost in between.
    pub fn nobody_was_lost(&self) {
        for member in &self.members {
            let seqs = member.record.lock().unwrap().seqs.clone();
            assert!(seqs.len() <= 1, "{} had seqs {seqs:?}", member.spec.id);
        }
    }

    /// Lets a pod say something else from now on, at once.
    pub fn change(&self, index: usize, change: impl FnOnce(PodSpec) -> PodSpec) {
        let member = &self.members[index];
        let spec = change(member.now());
        member.order.send_replace(Order::Report(spec));
    }

    /// Silences a pod.
    pub fn silence(&self, index: usize) {
        self.members[index].order.send_replace(Order::Silence);
    }

    /// Lets a pod say goodbye, and waits until that was accepted.
    pub async fn leave(&self, index: usize) {
        let member = &self.members[index];
        member.order.send_replace(Order::Leave(member.now()));
        eventually(SOON, "accepted goodbye", async || {
            ensure!(member.record.lock().unwrap().left, "{}", member.spec.id);
            Ok(())
        })
        .await;
    }
}

struct Task {
    masters: Arc<Vec<Api>>,
    at: usize,
    interval: Duration,
    beat: u64,
    under_way: Arc<Semaphore>,
    record: Arc<Mutex<Record>>,
}

impl Task {
    async fn run(mut self, mut orders: watch::Receiver<Order>) {
        loop {
            let order = orders.borrow_and_update().clone();
            let wait = match order {
                Order::Report(spec) => self.send(spec).await,
                Order::Leave(spec) if !self.record.lock().unwrap().left => {
                    self.send(spec.down()).await
                }
                Order::Leave(_) | Order::Silence => self.interval,
            };
            // Cut short by a new order, so that a change is sent at once.
            if let Ok(Err(_)) = timeout(wait, orders.changed()).await {
                return;
            }
        }
    }

    /// Sends one keepalive; how long to wait until the next.
    async fn send(&mut self, spec: PodSpec) -> Duration {
        let _permit = self.under_way.acquire().await;
        let api = &self.masters[self.at % self.masters.len()];
        self.beat += 1;
        let spec = spec.beat(self.beat);
        let sent = Instant::now();
        let answer = timeout(PATIENCE, api.ping(&spec)).await;
        let mut record = self.record.lock().unwrap();
        match answer {
            Ok(Ok(answer)) => {
                record.accepted += 1;
                record.last = Some(sent);
                record.left = spec.down;
                if !spec.down && record.seqs.last() != Some(&answer.seq) {
                    record.seqs.push(answer.seq);
                }
                self.interval
            }
            failure => {
                record.refused += 1;
                record.error = format!("{failure:?}");
                self.at += 1;
                RETRY
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_proto::v1::{
        PingRequest, PingResponse, PingStreamRequest, PingStreamResponse,
        keepalive_service_server::{KeepaliveService, KeepaliveServiceServer},
    };
    use tokio_stream::Empty;
    use tonic::{Request, Response, Status, Streaming};

    /// A master that gives every pod the next seq.
    #[derive(Clone, Default)]
    struct Fake {
        seqs: Arc<Mutex<BTreeMap<String, u64>>>,
        given: Arc<Mutex<u64>>,
        refuses: bool,
    }

    #[tonic::async_trait]
    impl KeepaliveService for Fake {
        type PingStreamStream = Empty<Result<PingStreamResponse, Status>>;

        async fn ping(&self, ping: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
            let ping = ping.into_inner();
            if self.refuses {
                return Err(Status::unavailable("ask another"));
            }
            let mut seqs = self.seqs.lock().unwrap();
            if ping.down {
                seqs.remove(&ping.ip);
                return Ok(Response::new(PingResponse::default()));
            }
            let seq = *seqs.entry(ping.ip).or_insert_with(|| {
                let mut given = self.given.lock().unwrap();
                *given += 1;
                *given
            });
            Ok(Response::new(PingResponse {
                seq,
                ..PingResponse::default()
            }))
        }

        async fn ping_stream(
            &self,
            _: Request<Streaming<PingStreamRequest>>,
        ) -> Result<Response<Self::PingStreamStream>, Status> {
            Err(Status::unimplemented("not here"))
        }
    }

    fn serve(fake: &Fake) -> String {
        let port = crate::ports::free();
        let service = KeepaliveServiceServer::new(fake.clone());
        let address = ([127, 0, 0, 1], port).into();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve(address),
        );
        format!("http://127.0.0.1:{port}")
    }

    #[tokio::test]
    async fn pods_go_on_past_a_master_that_refuses_and_notice_a_lost_place() {
        let good = Fake::default();
        let bad = Fake {
            refuses: true,
            ..Fake::default()
        };
        let dead = format!("http://127.0.0.1:{}", crate::ports::free());
        let masters = [serve(&bad), dead, serve(&good)];
        let fleet = Fleet::numbered(&masters, Duration::from_millis(50), 0, 300);
        assert_eq!(fleet.joined().await.len(), 300);
        fleet.heard_again().await;
        fleet.nobody_was_lost();
        fleet.leave(7).await;
        assert_eq!(good.seqs.lock().unwrap().len(), 299);
        good.seqs.lock().unwrap().clear();
        fleet.heard_again().await;
        assert!(fleet.records().iter().any(|record| record.seqs.len() == 2));
    }
}
