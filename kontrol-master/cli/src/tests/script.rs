//! A master that answers from a script, and a run of the command line against it.

mod actions;
mod operate;

use actions::PAGE;
pub(super) use actions::{Dispatched, Then};
pub(super) use operate::Operated;

use super::super::{
    Command, finish,
    output::{Choice, Format, Output},
};
use clap::Parser;
use kontrol_proto::v1::{
    action_service_server::ActionServiceServer,
    ensemble_service_server::{EnsembleService, EnsembleServiceServer},
    operate_service_server::OperateServiceServer,
    *,
};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// The messages of a watch.
pub(super) type Messages = Vec<Result<WatchResponse, Status>>;

/// What the scripted master answers, and what it was asked.
#[derive(Default)]
pub(super) struct Script {
    pub(super) ensemble: GetEnsembleResponse,
    /// What is told of it before that, one after another.
    pub(super) ensembles: Mutex<VecDeque<Result<GetEnsembleResponse, Status>>>,
    /// What comes of operating it.
    pub(super) operated: Operated,
    pub(super) pods: Vec<Pod>,
    pub(super) state: GetStateResponse,
    /// What is known of these keys; of others, nothing.
    pub(super) explanations: Vec<ExplainPodResponse>,
    /// One after another, the messages of each watch, or its refusal; a watch beyond them stays silent.
    pub(super) watches: Mutex<VecDeque<Result<Messages, Status>>>,
    /// The history, the newest first.
    pub(super) actions: Vec<Action>,
    /// One after another, what comes of each dispatch, or its refusal.
    pub(super) dispatches: Mutex<VecDeque<Result<Dispatched, Status>>>,
    /// Refuses to cancel so.
    pub(super) refuse_cancel: Option<Status>,
    /// An action was cancelled.
    pub(super) cancelled: Arc<Notify>,
    /// A dispatcher went away.
    pub(super) left: Arc<Notify>,
    /// Refuses everything so.
    pub(super) refuse: Option<Status>,
    /// Never answers what changes something.
    pub(super) hang: bool,
    /// The requests, in the order they came.
    pub(super) asked: Mutex<Vec<String>>,
    /// What the last client called itself.
    pub(super) agent: Mutex<String>,
    /// The token that each request bore, if it did.
    pub(super) tokens: Mutex<Vec<Option<String>>>,
}

impl Script {
    fn answer<Q: std::fmt::Debug, A>(
        &self,
        request: &Request<Q>,
        answer: A,
    ) -> Result<Response<A>, Status> {
        self.asked
            .lock()
            .unwrap()
            .push(format!("{:?}", request.get_ref()));
        let agent = request.metadata().get("user-agent").unwrap();
        agent
            .to_str()
            .unwrap()
            .clone_into(&mut self.agent.lock().unwrap());
        let token = request.metadata().get("authorization");
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        self.tokens.lock().unwrap().push(token);
        match &self.refuse {
            Some(status) => Err(status.clone()),
            None => Ok(Response::new(answer)),
        }
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The service of a script.
struct Scripted(Arc<Script>);

#[tonic::async_trait]
impl EnsembleService for Scripted {
    type WatchStream = futures::stream::BoxStream<'static, Result<WatchResponse, Status>>;

    async fn get_ensemble(
        &self,
        request: Request<GetEnsembleRequest>,
    ) -> Result<Response<GetEnsembleResponse>, Status> {
        let next = self.0.ensembles.lock().unwrap().pop_front();
        let next = next.transpose()?;
        let answer = next.unwrap_or_else(|| self.0.ensemble.clone());
        self.0.answer(&request, answer)
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let behind: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let end = self.0.pods.len().min(behind + PAGE);
        let more = end < self.0.pods.len();
        let answer = ListPodsResponse {
            pods: self.0.pods[behind..end].to_vec(),
            next_page_token: if more { end.to_string() } else { String::new() },
            digest: self.0.ensemble.digest.clone(),
            revision: self.0.ensemble.revision,
        };
        self.0.answer(&request, answer)
    }

    async fn get_pod(
        &self,
        _request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        Err(Status::unimplemented("no command asks for one pod"))
    }

    async fn explain_pod(
        &self,
        request: Request<ExplainPodRequest>,
    ) -> Result<Response<ExplainPodResponse>, Status> {
        let key = request.get_ref().key.clone();
        let known = self.0.explanations.iter().find(|known| known.key == key);
        let answer = known.cloned().unwrap_or(ExplainPodResponse {
            summary: "never heard of it".to_owned(),
            key,
            ..ExplainPodResponse::default()
        });
        self.0.answer(&request, answer)
    }

    async fn get_state(
        &self,
        request: Request<GetStateRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        self.0.answer(&request, self.0.state.clone())
    }

    async fn put_state(
        &self,
        request: Request<PutStateRequest>,
    ) -> Result<Response<PutStateResponse>, Status> {
        let answer = self.0.answer(&request, PutStateResponse { revision: 7 });
        if self.0.hang {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.0.answer(&request, ())?;
        let script = self.0.watches.lock().unwrap().pop_front();
        Ok(Response::new(match script {
            Some(messages) => Box::pin(futures::stream::iter(messages?)),
            None => Box::pin(futures::stream::pending()),
        }))
    }
}

/// A scripted master that serves until it is dropped.
pub(super) struct Master {
    pub(super) url: String,
    pub(super) script: Arc<Script>,
    _stop: oneshot::Sender<()>,
}

impl Master {
    pub(super) async fn start(script: Script) -> Self {
        Self::start_with(script, None).await
    }

    /// A master that speaks TLS, if it is told how.
    pub(super) async fn start_with(script: Script, tls: Option<ServerTlsConfig>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let script = Arc::new(script);
        let ensemble = EnsembleServiceServer::new(Scripted(Arc::clone(&script)));
        let actions = ActionServiceServer::new(Scripted(Arc::clone(&script)));
        let operate = OperateServiceServer::new(Scripted(Arc::clone(&script)));
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let serve = server
            .add_service(ensemble)
            .add_service(actions)
            .add_service(operate)
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(async move {
            tokio::select! {
                served = serve => served.unwrap(),
                _ = stopped => (),
            }
        });
        Self {
            url,
            script,
            _stop: stop,
        }
    }
}

/// An address where nobody listens.
pub(super) async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Text that is written by one and waited for by another.
#[derive(Clone, Default)]
pub(super) struct Sink {
    text: Arc<Mutex<Vec<u8>>>,
    written: Arc<Notify>,
}

impl Sink {
    /// Another one, waited for together with this.
    fn beside(&self) -> Self {
        Self {
            text: Arc::default(),
            written: Arc::clone(&self.written),
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.written.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: u8,
    pub(super) out: String,
    pub(super) err: String,
}

#[derive(Debug, Parser)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Parses a command as a shell would hand it over.
pub(super) fn parse(line: &str) -> Result<Command, clap::Error> {
    let words = shlex::split(&format!("kontrol-master {line}")).unwrap();
    Cli::try_parse_from(words).map(|cli| cli.command)
}

/// Runs a command to its end.
pub(super) async fn run(line: &str) -> Ran {
    run_with(line, "", None).await
}

/// Runs a command with this input to its end. It is asked to stop each time that what it wrote holds the next of `until`.
pub(super) async fn run_with<'a>(
    line: &str,
    input: &str,
    until: impl IntoIterator<Item = &'a str>,
) -> Ran {
    run_in(false, line, input, until).await
}

/// The same on a terminal, without input.
pub(super) async fn run_on_terminal<'a>(
    line: &str,
    until: impl IntoIterator<Item = &'a str>,
) -> Ran {
    run_in(true, line, "", until).await
}

async fn run_in<'a>(
    terminal: bool,
    line: &str,
    input: &str,
    until: impl IntoIterator<Item = &'a str>,
) -> Ran {
    let command = parse(line).unwrap();
    let mut out = Sink::default();
    let mut err = out.beside();
    let (seen, told) = (out.clone(), err.clone());
    let mut until: VecDeque<&str> = until.into_iter().collect();
    let mut stop = async || {
        let Some(part) = until.front() else {
            return std::future::pending().await;
        };
        while !(seen.text() + &told.text()).contains(part) {
            seen.written.notified().await;
        }
        until.pop_front();
    };
    let format = match command.client().output {
        Choice::Auto | Choice::Table => Format::Table,
        Choice::Json => Format::Json,
    };
    let mut output = Output::to(format, terminal, &mut out, &mut err);
    let mut input = input.as_bytes();
    let ended = finish(&command, &mut output, &mut input, &mut stop);
    let code = tokio::time::timeout(DEADLINE, ended)
        .await
        .unwrap_or_else(|_| panic!("{line} does not end: {} {}", seen.text(), told.text()));
    Ran {
        code,
        out: seen.text(),
        err: told.text(),
    }
}
