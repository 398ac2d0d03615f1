//! A load generator: many pods that report as fast as they can, or at their interval, and what that costs.
//!
//! ```text
//! worker ── pods, one after the other ──▶ link ──▶ master        flat out: few workers with many pods each
//! worker ── one pod                    ──▶ link ──▶ master        at an interval, gRPC
//! ```
//!
//! A [`Fleet`](crate::fleet::Fleet) is for tests that ask about single pods; this is for figures. A keepalive that fails
//! goes to the next master, as a slave's does. Latencies are those of single calls, from the sending to the answer;
//! what a pod waits in all, refusals and moves included, is `longest_wait`.

mod link;

use crate::pod::PodSpec;
use link::{Link, Message, Shared};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How soon a refused keepalive goes to the next master.
const RETRY: Duration = Duration::from_millis(200);

/// What to send, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `host:port` of each master.
    pub masters: Vec<String>,
    /// How many pods.
    pub pods: u32,
    /// The number of the first one.
    pub first: u32,
    /// How many connections, shared out among the masters.
    pub connections: usize,
    /// How many keepalives are under way on each connection when flat out. HTTP has one.
    pub in_flight: usize,
    /// How often each pod reports; zero is flat out.
    pub interval: Duration,
    /// Whether all pods send their first keepalive at once, and not spread over the interval.
    pub burst: bool,
    /// `PUT /ping` instead of gRPC.
    pub http: bool,
    /// How long a keepalive waits for its answer.
    pub patience: Duration,
}

/// What came of it, since the figures were taken last.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Latencies of accepted keepalives, in microseconds.
    pub latencies: Vec<u32>,
    /// How many keepalives failed.
    pub errors: u64,
    /// The last error.
    pub error: String,
    /// How often a pod was told another seq than before: it had been lost.
    pub lost: u64,
    /// The longest that a pod waited, from when its keepalive was due to when one was accepted.
    pub longest_wait: Duration,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.errors += other.errors;
        if !other.error.is_empty() {
            self.error = other.error;
        }
        self.lost += other.lost;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
    }

    /// The latency that this share of the accepted keepalives does not exceed.
    pub fn quantile(&mut self, share: f64) -> Duration {
        let Some(last) = self.latencies.len().checked_sub(1) else {
            return Duration::ZERO;
        };
        let (_, at, _) = self
            .latencies
            .select_nth_unstable((last as f64 * share).round() as usize);
        Duration::from_micros(u64::from(*at))
    }
}

/// Pods that report until this is dropped.
#[derive(Debug)]
pub struct Load {
    figures: Vec<Arc<Mutex<Figures>>>,
    accepted_once: Arc<AtomicU32>,
    _workers: JoinSet<()>,
}

impl Load {
    /// Starts to report.
    pub fn start(plan: &Plan) -> Self {
        let masters = Arc::new(plan.masters.clone());
        let spread_out = !plan.interval.is_zero();
        let per_connection = match (plan.http, spread_out) {
            (true, _) => 1,
            (false, false) => plan.in_flight,
            (false, true) => (plan.pods as usize).div_ceil(plan.connections),
        };
        let workers = (plan.connections * per_connection).min(plan.pods as usize);
        let connections = plan.connections.min(workers);
        let shared: Vec<_> = (0..connections)
            .map(|_| Arc::new(Shared::new(masters.clone())))
            .collect();
        let accepted_once = Arc::<AtomicU32>::default();
        let begin = Instant::now();
        // Behind those of an earlier load of the same pods, which would else be older keepalives come late.
        let first_beat = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let first_beat = u64::try_from(first_beat.as_micros()).unwrap();
        let mut load = Self {
            figures: Vec::with_capacity(workers),
            accepted_once: accepted_once.clone(),
            _workers: JoinSet::new(),
        };
        for number in 0..workers {
            let connection = number % connections;
            let link = if plan.http {
                Link::Http {
                    masters: masters.clone(),
                    open: None,
                }
            } else {
                Link::Grpc(shared[connection].clone())
            };
            let pods = (number as u32..plan.pods)
                .step_by(workers)
                .map(|pod| Reporter {
                    message: link.message(&PodSpec::number(plan.first + pod)),
                    offset: plan.interval * pod / plan.pods,
                    beat: first_beat,
                    seq: None,
                })
                .collect();
            let figures = Arc::<Mutex<Figures>>::default();
            load.figures.push(figures.clone());
            let worker = Worker {
                link,
                pods,
                master: connection % masters.len(),
                masters: masters.len(),
                interval: plan.interval,
                burst: plan.burst,
                patience: plan.patience,
                accepted_once: accepted_once.clone(),
                figures,
            };
            load._workers.spawn(worker.run(begin));
        }
        load
    }

    /// How many pods have been accepted at least once.
    pub fn accepted_once(&self) -> u32 {
        self.accepted_once.load(Ordering::Relaxed)
    }

    /// Takes the figures; they begin anew.
    pub fn take(&self) -> Figures {
        let mut all = Figures::default();
        for figures in &self.figures {
            let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(std::mem::take(&mut figures));
        }
        all
    }
}

/// A pod of a worker.
#[derive(Debug)]
struct Reporter {
    message: Message,
    offset: Duration,
    beat: u64,
    seq: Option<u64>,
}

/// Reports pods in turn.
#[derive(Debug)]
struct Worker {
    link: Link,
    pods: Vec<Reporter>,
    /// The one in use.
    master: usize,
    masters: usize,
    interval: Duration,
    burst: bool,
    patience: Duration,
    accepted_once: Arc<AtomicU32>,
    figures: Arc<Mutex<Figures>>,
}

impl Worker {
    async fn run(mut self, begin: Instant) {
        for round in 0.. {
            for index in 0..self.pods.len() {
                let mut due = Instant::now();
                // A timer is no finer than a millisecond: flat out does without.
                if !self.interval.is_zero() {
                    due = if round == 0 && self.burst {
                        begin
                    } else {
                        // After a burst the pods are spread.
                        begin + self.interval * round + self.pods[index].offset
                    };
                    sleep_until(due).await;
                }
                self.report(index, due).await;
            }
        }
    }

    /// Sends a pod's keepalive until some master accepts it.
    async fn report(&mut self, index: usize, due: Instant) {
        loop {
            let pod = &mut self.pods[index];
            pod.beat += 1;
            let sent = Instant::now();
            let answer = self.link.send(self.master, &pod.message, pod.beat);
            match timeout(self.patience, answer).await {
                Ok(Ok(seq)) => return self.accepted(index, seq, sent.elapsed(), due.elapsed()),
                Ok(Err(error)) => self.refused(format!("{error:#}")),
                Err(_) => self.refused("no answer in time".to_owned()),
            }
            self.master = (self.master + 1) % self.masters;
            sleep(RETRY).await;
        }
    }

    fn accepted(&mut self, index: usize, seq: u64, took: Duration, waited: Duration) {
        let before = self.pods[index].seq.replace(seq);
        if before.is_none() {
            self.accepted_once.fetch_add(1, Ordering::Relaxed);
        }
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.latencies.push(took);
        figures.longest_wait = figures.longest_wait.max(waited);
        figures.lost += u64::from(before.is_some_and(|before| before != seq));
    }

    fn refused(&self, error: String) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.errors += 1;
        figures.error = error;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_latencies() {
        let mut figures = Figures {
            latencies: (0..=100).rev().collect(),
            ..Figures::default()
        };
        assert_eq!(figures.quantile(0.5), Duration::from_micros(50));
        assert_eq!(figures.quantile(0.99), Duration::from_micros(99));
        assert_eq!(Figures::default().quantile(0.5), Duration::ZERO);
    }
}
