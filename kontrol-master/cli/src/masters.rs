//! The masters of a tier as a client sees them: asked in the order given, until one can answer.
//!
//! A read moves on to the next master when one can't be reached, breaks off or is not ready. A write moves on only
//! when the master certainly did not do it: sent twice, it could undo what the callback wrote in between.

use super::{
    endpoint::{MasterUrl, MasterUrls},
    error::CliError,
};
use kontrol_proto::v1::{
    WatchRequest, WatchResponse, action_service_client::ActionServiceClient,
    ensemble_service_client::EnsembleServiceClient, operate_service_client::OperateServiceClient,
};
use kontrol_runtime::{
    dial::{self, Channel, Credentials},
    host::host_name,
};
use std::{env, error::Error, time::Duration};
use tonic::{Code, Response, Status, Streaming};

/// Largest answer: a state of 1 MiB can take 7.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How often a silent connection is probed, so that a dead one is noticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection to a master, and whom to ask over it.
#[derive(Debug, Clone)]
pub(super) struct Client(Channel);

impl Client {
    /// Knows the roster and the callback.
    pub(super) fn ensemble(&self) -> EnsembleServiceClient<Channel> {
        EnsembleServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Runs commands on slaves.
    pub(super) fn actions(&self) -> ActionServiceClient<Channel> {
        ActionServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Operates the callback and the roster.
    pub(super) fn operate(&self) -> OperateServiceClient<Channel> {
        OperateServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// The masters to ask.
#[derive(Debug)]
pub(super) struct Masters {
    urls: Vec<MasterUrl>,
    credentials: Credentials,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// What became of asking one master.
enum Failure {
    /// This master can't answer now, and did nothing: another may.
    Elsewhere(String),
    /// It broke off without an answer.
    Unclear(String),
    /// It answered that it won't.
    Refused(CliError),
}

impl Masters {
    pub(super) fn new(urls: &MasterUrls, credentials: Credentials, timeout: Duration) -> Self {
        Self {
            urls: urls.0.clone(),
            credentials,
            timeout,
        }
    }

    /// Asks a question of the first master that can answer it.
    pub(super) async fn read<T>(
        &self,
        call: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, CliError> {
        self.ask(Kind::Read, call).await
    }

    /// Has something changed by the first master that can.
    pub(super) async fn write<T>(
        &self,
        call: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, CliError> {
        self.ask(Kind::Write, call).await
    }

    /// Opens a watch behind a revision.
    pub(super) async fn watch(
        &self,
        request: &WatchRequest,
    ) -> Result<Streaming<WatchResponse>, CliError> {
        self.read(async |client| client.ensemble().watch(request.clone()).await)
            .await
    }

    async fn ask<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, CliError> {
        let mut reasons = Vec::new();
        for url in &self.urls {
            match self.ask_one(url, &call).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Unclear(reason)) if kind == Kind::Write => {
                    return Err(CliError::Unclear(format!(
                        "{url} did not answer ({reason})"
                    )));
                }
                Err(Failure::Elsewhere(reason) | Failure::Unclear(reason)) => {
                    reasons.push(format!("{url} ({reason})"));
                }
            }
        }
        Err(CliError::Unreachable(reasons.join(", ")))
    }

    async fn ask_one<T>(
        &self,
        url: &MasterUrl,
        call: &impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let options = dial::Options {
            limit: self.timeout,
            ping: PROBE_INTERVAL,
            ping_timeout: self.timeout,
            while_idle: true,
            user_agent: Some(user_agent()),
        };
        let deadline = tokio::time::Instant::now() + self.timeout;
        let channel = dial::connect(url.target(), &self.credentials, options)
            .await
            .map_err(|error| Failure::Elsewhere(root_cause(&error)))?;
        let client = Client(channel.clone());
        match tokio::time::timeout_at(deadline, call(client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(judge(url, &status, &channel)),
            Err(_) => Err(Failure::Unclear(format!(
                "no answer within {}",
                super::text::span(self.timeout)
            ))),
        }
    }
}

/// What masters are told of who asks; the history of actions keeps it, and so does what an operator does.
fn user_agent() -> String {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .filter_map(|name| env::var(name).ok())
        .find(|user| !user.is_empty())
        .unwrap_or_else(|| format!("uid-{}", rustix::process::getuid()));
    let version = env!("CARGO_PKG_VERSION");
    format!("kontrol-master/{version} ({user}@{})", host_name())
        .replace(|c: char| c != ' ' && !c.is_ascii_graphic(), "?")
}

fn judge(url: &MasterUrl, status: &Status, channel: &Channel) -> Failure {
    if let Some(source) = status.source() {
        let reason = readable(&channel.reason(source));
        return if channel.is_unheard() {
            Failure::Elsewhere(reason)
        } else {
            Failure::Unclear(reason)
        };
    }
    if status.code() == Code::Unavailable {
        return Failure::Elsewhere(format!("not ready: {}", reason(status)));
    }
    Failure::Refused(refusal(&url.to_string(), status))
}

/// Whether the connection failed, rather than the master answered. Only such a status has a source.
fn is_broken(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether somebody ended the stream and left the connection: a master says why it ends one, a proxy does not.
pub(super) fn is_cut(status: &Status) -> bool {
    is_broken(status) && matches!(status.code(), Code::Internal | Code::Cancelled)
}

/// Whether a stream that ended so may go on when it is opened again.
pub(super) fn may_resume(status: &Status) -> bool {
    is_broken(status)
        || matches!(
            status.code(),
            Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Internal
                | Code::Unknown
                // The token of the stream may be over, and that in the file new.
                | Code::Unauthenticated
        )
}

/// The error of a master that answered, but not with what was asked for.
pub(super) fn refusal(who: &str, status: &Status) -> CliError {
    let message = reason(status);
    let code = status.code();
    if code == Code::InvalidArgument {
        return CliError::Usage(format!("{who} answers: {message}"));
    }
    let said = |what: &str| match status.message() {
        "" => format!("{who} {what}"),
        _ => format!("{who} {what} ({message})"),
    };
    CliError::Failed(if code == Code::Unauthenticated {
        let what = said("does not know who asks");
        format!(
            "{what}: give --token-file, or KONTROL_TOKEN, or a certificate with --cert and --key (UNAUTHENTICATED)"
        )
    } else if code == Code::PermissionDenied {
        let what = said("does not allow it");
        format!("{what}: it takes another token, or another certificate (PERMISSION_DENIED)")
    } else if code == Code::Unimplemented {
        let version = env!("CARGO_PKG_VERSION");
        format!("{who} does not know this request: is it a kontrol-master {version}?")
    } else if matches!(code, Code::NotFound | Code::FailedPrecondition) {
        format!("{who} answers: {message}")
    } else {
        format!("{who} answers: {message} ({code:?})")
    })
}

/// What a status says, for a person.
pub(super) fn reason(status: &Status) -> String {
    if let Some(source) = status.source() {
        return root_cause(source);
    }
    if status.message().is_empty() {
        return status.code().description().to_lowercase();
    }
    super::text::clean(status.message())
}

/// Why a connection failed, for a person.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    readable(&dial::reason(error))
}

/// A cause within a sentence: without the number of the operating system, and without a capital in front.
fn readable(cause: &str) -> String {
    let text = match cause.find(" (os error") {
        Some(end) => &cause[..end],
        None => cause,
    };
    let mut letters = text.chars();
    let text = match letters.next() {
        // An abbreviation stays one.
        Some(first) if !letters.as_str().starts_with(char::is_uppercase) => {
            format!("{}{}", first.to_lowercase(), letters.as_str())
        }
        Some(_) | None => text.to_owned(),
    };
    super::text::clean(&text)
}
