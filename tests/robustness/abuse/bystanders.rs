//! Pods that report while others abuse their master, and how long each of their keepalives took. They have a thread of their
//! own, so that what an abuser does in this process costs them processor time alone.

use kontrol_proto::v1::{
    PingResponse, PingStreamRequest, keepalive_service_client::KeepaliveServiceClient,
    ping_stream_response::Result as Answer,
};
use kontrol_runtime::dial::Channel;
use kontrol_tests::pod::PodSpec;
use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use tokio::{
    runtime,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;

/// How many there are.
pub(super) const PODS: u32 = 200;
/// How many share a connection.
const EACH: u32 = 25;
/// How often each reports.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a keepalive may take: two in a row that take longer would cost a pod its place at the usual TTL.
pub(super) const PATIENCE: Duration = Duration::from_secs(12);

/// What became of their keepalives, since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// How long each took.
    pub(super) latencies: Vec<Duration>,
    /// Why others failed.
    pub(super) failures: Vec<String>,
}

impl Heard {
    /// What this share of them did not exceed.
    pub(super) fn quantile(&mut self, share: f64) -> Duration {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Pods that report until this is dropped.
pub(super) struct Bystanders {
    heard: Arc<Mutex<Heard>>,
    _stop: DropGuard,
}

impl Bystanders {
    /// Lets them report. `dial` makes a connection.
    pub(super) fn start<F>(dial: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Channel>,
    {
        let (heard, stop) = (Arc::<Mutex<Heard>>::default(), CancellationToken::new());
        let (ours, stopped) = (Arc::clone(&heard), stop.clone());
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut pods = JoinSet::new();
                let mut channel = dial().await;
                for number in 0..PODS {
                    if number % EACH == 0 {
                        channel = dial().await;
                    }
                    let pod = Pod {
                        spec: PodSpec::number(number),
                        client: KeepaliveServiceClient::new(channel.clone()),
                        stream: None,
                        // Half of them by calls, half by streams.
                        streams: number % 2 == 0,
                        seq: None,
                        heard: Arc::clone(&ours),
                    };
                    pods.spawn(pod.run(INTERVAL * number / PODS));
                }
                stopped.cancelled().await;
            });
        });
        Self {
            heard,
            _stop: stop.drop_guard(),
        }
    }

    /// What became of their keepalives since it was asked last.
    pub(super) fn take(&self) -> Heard {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

type Open = (
    mpsc::Sender<PingStreamRequest>,
    Streaming<kontrol_proto::v1::PingStreamResponse>,
);

struct Pod {
    spec: PodSpec,
    client: KeepaliveServiceClient<Channel>,
    streams: bool,
    stream: Option<Open>,
    seq: Option<u64>,
    heard: Arc<Mutex<Heard>>,
}

impl Pod {
    async fn run(mut self, first: Duration) {
        sleep(first).await;
        for beat in 1.. {
            let sent = Instant::now();
            let answer = timeout(PATIENCE, self.report(beat)).await;
            let failure = match answer {
                Ok(Ok(answer)) if *self.seq.get_or_insert(answer.seq) == answer.seq => None,
                Ok(Ok(answer)) => Some(format!("seq {:?} became {}", self.seq, answer.seq)),
                Ok(Err(status)) => Some(format!("{status:?}")),
                Err(_) => Some(format!("no answer within {PATIENCE:?}")),
            };
            self.note(sent.elapsed(), failure);
            sleep(INTERVAL.saturating_sub(sent.elapsed())).await;
        }
    }

    fn note(&mut self, took: Duration, failure: Option<String>) {
        let mut heard = self.heard.lock().unwrap();
        match failure {
            None => heard.latencies.push(took),
            Some(reason) => {
                heard.failures.push(format!("{}: {reason}", self.spec.id));
                self.stream = None;
            }
        }
    }

    async fn report(&mut self, beat: u64) -> Result<PingResponse, tonic::Status> {
        let ping = self.spec.clone().beat(beat).request();
        if !self.streams {
            return self
                .client
                .ping(ping)
                .await
                .map(tonic::Response::into_inner);
        }
        let request = PingStreamRequest::from(ping);
        if self.stream.is_none() {
            let (sender, receiver) = mpsc::channel(1);
            let answers = self
                .client
                .ping_stream(ReceiverStream::new(receiver))
                .await?;
            self.stream = Some((sender, answers.into_inner()));
        }
        let ended = || tonic::Status::aborted("the stream has ended");
        let (sender, answers) = self.stream.as_mut().ok_or_else(ended)?;
        sender.send(request).await.map_err(|_| ended())?;
        match answers.message().await?.and_then(|answer| answer.result) {
            Some(Answer::Response(response)) => Ok(response),
            other => Err(tonic::Status::aborted(format!("{other:?}"))),
        }
    }
}
