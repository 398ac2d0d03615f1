//! The one way to dial a master: for slaves, for the command line, and among masters.
//!
//! ```text
//! connect ── reads --ca, --cert, --key and the token ── TCP ── TLS for https ── HTTP/2 ──▶ Channel
//!                                                                              each request: authorization: Bearer ...
//! ```
//!
//! What always holds:
//!
//! 1. The files are read anew for every connection, also for one that is made again under a [`Channel`]: a certificate or
//!    a token that was replaced needs no restart, and nothing that was read before is kept.
//! 2. Over TLS the certificate is checked for the host of the [`Target`], whatever address was dialled.
//! 3. Every step is bounded by [`Options::limit`].
//! 4. Why there is no connection is one line, with what to do. Neither a token nor a key is ever in it.

mod args;
mod connector;
mod credentials;
#[cfg(test)]
mod tests;

pub use args::DialArgs;
pub use credentials::{Credentials, TOKEN_VARIABLE, TokenError};

use crate::{
    cause::innermost,
    host::{HostPort, HostPortError, MASTER_PORT},
    tls,
};
use connector::{Connector, Shared};
use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tonic::{
    body::Body,
    transport::{Endpoint, channel::ResponseFuture},
};

/// A master to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The name, or the address without brackets, that a certificate is checked for. Requests bear it too.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether TLS is spoken (`https://`).
    pub tls: bool,
    /// Where to connect to. None: to an address that the host stands for.
    pub address: Option<SocketAddr>,
}

impl fmt::Display for Target {
    /// As an URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let at = HostPort {
            host: self.host.clone(),
            port: Some(self.port),
        };
        write!(f, "{scheme}://{at}")
    }
}

/// A text that names no master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// It has another scheme than http and https: this one.
    Scheme(String),
    /// What is behind the scheme is no `host[:port]`.
    At(HostPortError),
}

impl FromStr for Target {
    type Err = TargetError;

    /// Reads `[http[s]://]host[:port][/]`; without a scheme it is clear text, without a port that of masters.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let tls = scheme.eq_ignore_ascii_case("https");
        if !tls && !scheme.eq_ignore_ascii_case("http") {
            return Err(TargetError::Scheme(scheme.to_owned()));
        }
        let at = rest.strip_suffix('/').unwrap_or(rest);
        let HostPort { host, port } = at.parse().map_err(TargetError::At)?;
        Ok(Self {
            host,
            port: port.unwrap_or(MASTER_PORT),
            tls,
            address: None,
        })
    }
}

/// How to dial.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the whole of it may take.
    pub limit: Duration,
    /// How long a connection may be silent before an HTTP/2 ping asks whether the other end is still there.
    pub ping: Duration,
    /// How long such a ping may go unanswered before the connection counts as broken.
    pub ping_timeout: Duration,
    /// Whether it is asked while there is no request, too.
    pub while_idle: bool,
    /// What masters are told of who dials.
    pub user_agent: Option<String>,
}

/// Why there is no connection, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

/// A connection to a master, whose requests bear the token that was read for it. Cheap to clone.
///
/// When it breaks, the next request makes it again: with the files as they are then.
#[derive(Debug, Clone)]
pub struct Channel {
    channel: tonic::transport::Channel,
    shared: Arc<Shared>,
    tls: bool,
}

impl Channel {
    /// Whether TLS is spoken, so that the master has proved who it is.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether the master has said nothing over this connection, not even that it speaks HTTP/2: then it has done nothing.
    pub fn is_unheard(&self) -> bool {
        !self.shared.heard()
    }

    /// Why a request found no answer, from its error: what broke the connection, and what to do.
    pub fn reason(&self, error: &(dyn Error + 'static)) -> String {
        self.shared.broke().unwrap_or_else(|| reason(error))
    }
}

/// The token in the variable KONTROL_TOKEN, if that is set.
pub fn token_variable() -> Option<String> {
    // What is no UTF-8 is no token, which is told when it is checked.
    let value = std::env::var_os(TOKEN_VARIABLE)?;
    Some(value.to_string_lossy().into_owned())
}

/// The innermost cause of an error, explained where it is one of TLS.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        // What is below it is told in it.
        if let Some(known) = cause.downcast_ref::<DialError>() {
            return known.to_string();
        }
        next = cause.source();
    }
    let cause = innermost(error);
    tls::explain_text(&cause).unwrap_or(cause)
}

/// Connects to a master.
pub async fn connect(
    target: Target,
    credentials: &Credentials,
    options: Options,
) -> Result<Channel, DialError> {
    let failed = |error: &dyn Error| DialError(innermost(error));
    let origin = target.to_string();
    // That TLS is spoken is the connector's business; this end of HTTP/2 only asks for a stream.
    let mut endpoint = Endpoint::from_shared(origin.replacen("https://", "http://", 1))
        .map_err(|error| failed(&error))?
        .origin(origin.parse().map_err(|error| failed(&error))?)
        .http2_keep_alive_interval(options.ping)
        .keep_alive_timeout(options.ping_timeout)
        .keep_alive_while_idle(options.while_idle);
    if let Some(user_agent) = options.user_agent {
        endpoint = endpoint
            .user_agent(user_agent)
            .map_err(|error| failed(&error))?;
    }
    let tls = target.tls;
    let connector = Connector::new(target, credentials.clone(), options.limit);
    let shared = connector.shared();
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(Channel {
            channel,
            shared,
            tls,
        }),
        Err(error) => Err(DialError(reason(&error))),
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(token) = self.shared.token() {
            request
                .headers_mut()
                .insert(http::header::AUTHORIZATION, token);
        }
        tower::Service::call(&mut self.channel, request)
    }
}
