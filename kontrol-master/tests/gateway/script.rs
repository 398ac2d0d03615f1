//! Scripted services behind the real gateway and the real listener, on a port of 127.0.0.1.

use futures::{Stream, StreamExt, stream};
use kontrol_master::serve::{gateway, listener::Port};
use kontrol_proto::v1::{
    self,
    ensemble_service_server::{EnsembleService, EnsembleServiceServer},
    keepalive_service_server::{KeepaliveService, KeepaliveServiceServer},
    ping_stream_request::Kind as Said,
    watch_response::{Event, PodLeft},
    *,
};
use prost_types::{Duration as ProtoDuration, Value, value::Kind};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

/// Revisions that a watch is asked to go on from, and what the script then does.
pub(crate) const FAIL_AT_ONCE: i64 = 1;
pub(crate) const FAIL_AFTER_ONE: i64 = 2;
pub(crate) const FLOOD: i64 = 3;
pub(crate) const END_AFTER_ONE: i64 = 4;
pub(crate) const FAIL_AS_FIRST_MESSAGE: i64 = 5;
/// Never ends, whatever the token says.
pub(crate) const STUBBORN: i64 = 6;
pub(crate) const SILENT: i64 = 7;
/// Tells the history that it was asked for.
pub(crate) const WITH_HISTORY: i64 = 8;

pub(crate) const FLOOD_BYTES: usize = 64 * 1024;

/// What the services were asked, and how they answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pings: Mutex<Vec<SeenPing>>,
    listed: Mutex<Option<ListPodsRequest>>,
    stored: Mutex<Option<PutStateRequest>>,
    watched: Mutex<Vec<WatchRequest>>,
    open_watches: AtomicI32,
    flooded: AtomicU64,
    token: CancellationToken,
}

/// A keepalive and who sent it.
#[derive(Debug, Clone)]
pub(crate) struct SeenPing {
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) authorization: Option<String>,
    pub(crate) ping: PingRequest,
}

/// Counts a watch for as long as somebody holds it.
struct OpenWatch(Script);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.0.open_watches.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Script {
    pub(crate) fn last_ping(&self) -> SeenPing {
        self.0.pings.lock().unwrap().last().unwrap().clone()
    }
    pub(crate) fn pings(&self) -> usize {
        self.0.pings.lock().unwrap().len()
    }
    pub(crate) fn listed(&self) -> ListPodsRequest {
        self.0.listed.lock().unwrap().clone().unwrap()
    }
    pub(crate) fn stored(&self) -> Option<PutStateRequest> {
        self.0.stored.lock().unwrap().clone()
    }
    pub(crate) fn last_watched_from(&self) -> i64 {
        self.last_watch().revision
    }
    pub(crate) fn last_watch(&self) -> WatchRequest {
        self.0.watched.lock().unwrap().last().unwrap().clone()
    }
    pub(crate) fn open_watches(&self) -> i32 {
        self.0.open_watches.load(Ordering::SeqCst)
    }
    pub(crate) fn flooded(&self) -> u64 {
        self.0.flooded.load(Ordering::SeqCst)
    }
}

pub(crate) fn text(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

pub(crate) fn pod(key: &str) -> Pod {
    Pod {
        key: key.into(),
        seq: 9_007_199_254_740_993,
        payload: Some(Value {
            kind: Some(Kind::NumberValue(3.0)),
        }),
        ..Pod::default()
    }
}

fn left(revision: i64, payload: &str) -> WatchResponse {
    let pod = Pod {
        payload: Some(text(payload)),
        ..pod("a")
    };
    let left = PodLeft {
        pod: Some(pod),
        reason: LeaveReason::Lost.into(),
    };
    WatchResponse {
        revision,
        history: None,
        event: Some(Event::PodLeft(left)),
    }
}

#[tonic::async_trait]
impl KeepaliveService for Script {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        let peer = request.remote_addr();
        let ping = request.into_inner();
        let code = ping
            .app
            .strip_prefix("fail-")
            .map(|code| code.parse::<i32>().unwrap());
        self.0.pings.lock().unwrap().push(SeenPing {
            peer,
            authorization,
            ping,
        });
        if let Some(code) = code {
            return Err(Status::new(Code::from(code), "scripted: é"));
        }
        let (ttl, interval) = ((25, 0), (8, 333_000_000));
        let duration = |(seconds, nanos)| Some(ProtoDuration { seconds, nanos });
        Ok(Response::new(PingResponse {
            key: "2kce4N".into(),
            seq: 0,
            ttl: duration(ttl),
            interval: duration(interval),
        }))
    }

    type PingStreamStream = Pin<Box<dyn Stream<Item = Result<PingStreamResponse, Status>> + Send>>;

    async fn ping_stream(
        &self,
        request: Request<Streaming<PingStreamRequest>>,
    ) -> Result<Response<Self::PingStreamStream>, Status> {
        let answers = request.into_inner().map(|ping| {
            let seq = match ping?.kind {
                Some(Said::Ping(ping)) => ping.beat,
                Some(Said::Beat(beat)) => beat,
                None => 0,
            };
            let response = PingResponse {
                seq,
                ..PingResponse::default()
            };
            let result = Some(ping_stream_response::Result::Response(response));
            Ok(PingStreamResponse { result })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl EnsembleService for Script {
    async fn get_ensemble(
        &self,
        _: Request<GetEnsembleRequest>,
    ) -> Result<Response<GetEnsembleResponse>, Status> {
        Ok(Response::new(GetEnsembleResponse {
            epoch: 1 << 60,
            callback: Some(CallbackStatus {
                pending_since: Some(prost_types::Timestamp {
                    seconds: 0,
                    nanos: 0,
                }),
                ..CallbackStatus::default()
            }),
            ..GetEnsembleResponse::default()
        }))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        *self.0.listed.lock().unwrap() = Some(request.into_inner());
        let pods = vec![pod("a"), pod("b")];
        Ok(Response::new(ListPodsResponse {
            pods,
            ..ListPodsResponse::default()
        }))
    }

    async fn get_pod(
        &self,
        request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        match request.into_inner().key.as_str() {
            "missing" => Err(Status::not_found("no live pod has the key missing")),
            key => Ok(Response::new(GetPodResponse {
                pod: Some(pod(key)),
            })),
        }
    }

    async fn explain_pod(
        &self,
        request: Request<ExplainPodRequest>,
    ) -> Result<Response<ExplainPodResponse>, Status> {
        let key = request.into_inner().key;
        Ok(Response::new(ExplainPodResponse {
            key,
            ..ExplainPodResponse::default()
        }))
    }

    async fn get_state(
        &self,
        _: Request<GetStateRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        let stored = self.stored().unwrap_or_default();
        Ok(Response::new(GetStateResponse {
            state: stored.state,
            json: stored.json,
            ..GetStateResponse::default()
        }))
    }

    async fn put_state(
        &self,
        request: Request<PutStateRequest>,
    ) -> Result<Response<PutStateResponse>, Status> {
        *self.0.stored.lock().unwrap() = Some(request.into_inner());
        Ok(Response::new(PutStateResponse { revision: 5 }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let revision = request.revision;
        self.0.watched.lock().unwrap().push(request.clone());
        if revision == FAIL_AT_ONCE {
            return Err(Status::unavailable("no roster yet"));
        }
        self.0.open_watches.fetch_add(1, Ordering::SeqCst);
        let open = OpenWatch(self.clone());
        let cut_off = || Err(Status::resource_exhausted("reads too slowly"));
        let two = || stream::iter([Ok(left(11, "x")), Ok(left(12, "y"))]);
        let events: Self::WatchStream = match revision {
            FAIL_AFTER_ONE => Box::pin(stream::iter([Ok(left(11, "x")), cut_off()])),
            FAIL_AS_FIRST_MESSAGE => Box::pin(stream::iter([cut_off()])),
            WITH_HISTORY => Box::pin(stream::iter([Ok(WatchResponse {
                history: request.history,
                ..left(11, "x")
            })])),
            END_AFTER_ONE => Box::pin(stream::iter([Ok(left(11, "x"))])),
            FLOOD => {
                let script = self.clone();
                let payload = "x".repeat(FLOOD_BYTES);
                Box::pin(stream::repeat_with(move || {
                    script.0.flooded.fetch_add(1, Ordering::SeqCst);
                    Ok(left(11, &payload))
                }))
            }
            STUBBORN => Box::pin(two().chain(stream::pending())),
            SILENT => {
                Box::pin(stream::pending().take_until(self.0.token.clone().cancelled_owned()))
            }
            _ => {
                let until = self.0.token.clone().cancelled_owned();
                Box::pin(two().chain(stream::pending()).take_until(until))
            }
        };
        let events = events.map(move |event| {
            let _held = &open;
            event
        });
        Ok(Response::new(Box::pin(events)))
    }
}

/// A running listener.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) script: Script,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with_drain(Duration::from_secs(20)).await
    }

    pub(crate) async fn start_with_drain(drain: Duration) -> Self {
        let script = Script::default();
        let mut grpc = Routes::builder();
        grpc.add_service(KeepaliveServiceServer::new(script.clone()))
            .add_service(EnsembleServiceServer::new(script.clone()));
        let router = gateway::router(grpc.routes()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = script.0.token.clone();
        let serving = tokio::spawn(Port::new(listener, router).serve(token, drain));
        Self {
            address,
            script,
            serving,
        }
    }

    /// Tells the listener and the services to stop.
    pub(crate) fn cancel(&self) {
        self.script.0.token.cancel();
    }

    /// Stops it and shows its panics.
    pub(crate) async fn stop(self) {
        self.cancel();
        self.serving.await.unwrap().unwrap();
    }
}
