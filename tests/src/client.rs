//! A client of one master: gRPC by tonic, plain HTTP/1.1 by ureq. Every call has a deadline, so that a paused master
//! fails a call rather than hangs a test.

mod http;
mod operate;
mod watcher;

pub use http::{Http, Lines, exchange};
pub use watcher::Watcher;

use crate::pod::{PodSpec, to_proto};
use kontrol_proto::v1::{
    ExplainPodRequest, ExplainPodResponse, GetEnsembleRequest, GetEnsembleResponse, GetPodRequest,
    GetStateRequest, GetStateResponse, ListPodsRequest, ListPodsResponse, PingResponse, Pod,
    PutStateRequest, PutStateResponse, WatchRequest,
    ensemble_service_client::EnsembleServiceClient,
    keepalive_service_client::KeepaliveServiceClient,
};
use serde_json::Value;
use std::time::Duration;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// The largest answer that a test reads: a state.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// One master, seen from outside.
#[derive(Debug, Clone)]
pub struct Api {
    url: String,
    channel: Channel,
}

impl Api {
    /// A client of the master at this URL. It connects when it is first used, and again when needed.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        let channel = Endpoint::from_shared(url.clone())
            .unwrap()
            .connect_timeout(Duration::from_secs(2))
            .connect_lazy();
        Self { url, channel }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connection, for services that have no method here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The keepalive service.
    pub fn keepalives(&self) -> KeepaliveServiceClient<Channel> {
        KeepaliveServiceClient::new(self.channel.clone())
    }

    /// The ensemble service.
    pub fn ensembles(&self) -> EnsembleServiceClient<Channel> {
        EnsembleServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Sends one keepalive.
    pub async fn ping(&self, pod: &PodSpec) -> Result<PingResponse, Status> {
        let mut client = self.keepalives();
        answer(client.ping(pod.request())).await
    }

    /// Reads the ensemble.
    pub async fn ensemble(&self) -> Result<GetEnsembleResponse, Status> {
        let mut client = self.ensembles();
        answer(client.get_ensemble(GetEnsembleRequest {})).await
    }

    /// Lists all pods, page by page.
    pub async fn pods(&self) -> Result<ListPodsResponse, Status> {
        let mut request = ListPodsRequest::default();
        let mut pods = Vec::new();
        loop {
            let mut page = self.select(request.clone()).await?;
            pods.append(&mut page.pods);
            request.page_token = std::mem::take(&mut page.next_page_token);
            if request.page_token.is_empty() {
                return Ok(ListPodsResponse { pods, ..page });
            }
        }
    }

    /// Lists some pods.
    pub async fn select(&self, request: ListPodsRequest) -> Result<ListPodsResponse, Status> {
        let mut client = self.ensembles();
        answer(client.list_pods(request)).await
    }

    /// Reads one pod.
    pub async fn pod(&self, key: &str) -> Result<Pod, Status> {
        let mut client = self.ensembles();
        let key = key.to_owned();
        let answer = answer(client.get_pod(GetPodRequest { key })).await?;
        answer
            .pod
            .ok_or_else(|| Status::internal("GetPod answered without a pod"))
    }

    /// Asks why a pod is in or out.
    pub async fn explain(&self, key: &str) -> Result<ExplainPodResponse, Status> {
        let mut client = self.ensembles();
        let key = key.to_owned();
        answer(client.explain_pod(ExplainPodRequest { key })).await
    }

    /// Reads the callback's state.
    pub async fn state(&self) -> Result<GetStateResponse, Status> {
        let mut client = self.ensembles();
        answer(client.get_state(GetStateRequest {})).await
    }

    /// Replaces the callback's state.
    pub async fn put_state(&self, state: &Value) -> Result<PutStateResponse, Status> {
        let mut client = self.ensembles();
        let state = Some(to_proto(state));
        answer(client.put_state(PutStateRequest {
            state,
            ..PutStateRequest::default()
        }))
        .await
    }

    /// Follows the ensemble from behind a revision; 0 starts with a snapshot.
    pub async fn watch(&self, revision: i64) -> Result<Watcher, Status> {
        let mut client = self.ensembles();
        let stream = answer(client.watch(WatchRequest {
            revision,
            history: None,
        }))
        .await?;
        Ok(Watcher::new(stream))
    }

    /// Makes one HTTP/1.1 request with an optional JSON body.
    pub async fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Http {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.raw(method, path, "application/json", body.into_bytes())
            .await
    }

    /// Makes one HTTP/1.1 request with any body.
    pub async fn raw(&self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Http {
        let url = format!("{}{path}", self.url);
        exchange(method, &url, kind, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }

    /// Starts a GET whose answer is a stream of lines.
    pub async fn lines(&self, path: &str, accept: &str) -> Lines {
        Lines::open(&format!("{}{path}", self.url), accept).await
    }
}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the test waited long enough")),
    }
}
