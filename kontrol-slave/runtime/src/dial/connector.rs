//! From a target to a stream of bytes: what it takes is read, TCP is connected, and TLS agreed on.
//!
//! A channel of tonic calls it for its first connection, and again when that broke.

use super::{Credentials, DialError, Target};
use crate::{cause::innermost, tls};
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderValue, Uri};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tower::Service;

/// What the requests of a channel share with its connection.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    token: Option<HeaderValue>,
    /// What TLS broke the connection with, explained.
    broke: Option<String>,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header of the token that was read for the connection.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.state().token.clone()
    }

    /// Why TLS broke the connection, if it did.
    pub(super) fn broke(&self) -> Option<String> {
        self.state().broke.clone()
    }
}

/// Makes connections to one target.
#[derive(Clone)]
pub(super) struct Connector {
    target: Arc<Target>,
    credentials: Credentials,
    limit: Duration,
    shared: Arc<Shared>,
}

type Stream = TokioIo<Either<TcpStream, Watched>>;

impl Connector {
    pub(super) fn new(target: Target, credentials: Credentials, limit: Duration) -> Self {
        Self {
            target: Arc::new(target),
            credentials,
            limit,
            shared: Arc::default(),
        }
    }

    /// Where the token of the latest connection is, and what broke it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    async fn connect(self, uri: Uri) -> Result<Stream, DialError> {
        let late = |words: &str| DialError(words.to_owned());
        let deadline = Instant::now() + self.limit;
        let material = timeout_at(deadline, self.credentials.read(self.target.tls)).await;
        let material =
            material.map_err(|_| late("the files of the credentials can't be read in time"))??;
        let tcp = timeout_at(deadline, reach(&self.target, uri)).await;
        let tcp = tcp.map_err(|_| late("no answer in time"))??;
        *self.shared.state() = State {
            token: material.token,
            broke: None,
        };
        let Some(config) = material.tls else {
            return Ok(TokioIo::new(Either::Left(tcp)));
        };
        let agreed = timeout_at(deadline, agree(&self.target, tcp, config)).await;
        let stream = agreed.map_err(|_| {
            late("no answer to the TLS handshake in time: does the other end speak TLS?")
        })??;
        Ok(TokioIo::new(Either::Right(Watched {
            stream,
            shared: self.shared,
        })))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Stream, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.clone().connect(uri).boxed()
    }
}

/// Connects TCP: to the address, or to whichever address of the host answers first.
async fn reach(target: &Target, uri: Uri) -> Result<TcpStream, DialError> {
    let failed = |error: &(dyn std::error::Error + 'static)| DialError(innermost(error));
    if let Some(address) = target.address {
        let connected = TcpStream::connect(address).await;
        let stream = connected.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        return Ok(stream);
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let connected = connector.call(uri).await;
    connected
        .map(TokioIo::into_inner)
        .map_err(|error| failed(&error))
}

/// Agrees on TLS with the other end, which proves that it is the host of the target.
async fn agree(
    target: &Target,
    stream: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let name = ServerName::try_from(target.host.clone()).map_err(|_| {
        let host = &target.host;
        DialError(format!(
            "no certificate can be for {host:?}: dial it by another name"
        ))
    })?;
    let agreed = TlsConnector::from(config).connect(name, stream).await;
    let stream = agreed.map_err(|error| DialError(broken(&error)))?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN_HTTP2) {
        return Err(DialError(tls::explain(
            &rustls::Error::NoApplicationProtocol,
        )));
    }
    Ok(stream)
}

/// Why TLS broke off.
fn broken(error: &io::Error) -> String {
    match of_tls(error) {
        Some(error) => tls::explain(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other end closed the connection in the TLS handshake: does it speak TLS?"
                .to_owned()
        }
        None => error.to_string(),
    }
}

fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A stream that notes with what TLS broke it. The other end refuses a client certificate after the handshake: the alert is
/// then what counts, and not that nothing can be written any more.
pub(super) struct Watched {
    stream: TlsStream<TcpStream>,
    shared: Arc<Shared>,
}

impl Watched {
    fn note<T>(&self, result: &io::Result<T>) -> bool {
        let error = result.as_ref().err().and_then(of_tls);
        if let Some(error) = error {
            let mut state = self.shared.state();
            state.broke.get_or_insert_with(|| tls::explain(error));
        }
        error.is_some()
    }

    /// Looks for an alert behind a write that failed.
    fn look<T>(&mut self, context: &mut Context<'_>, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() && !self.note(&result) {
            let mut bytes = [0; 1];
            let read = Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut bytes));
            if let Poll::Ready(read) = read
                && self.note(&read)
                && let Err(error) = read
            {
                return Err(error);
            }
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.note(&result);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.look(context, result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, pieces));
        Poll::Ready(self.look(context, result))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(self.look(context, result))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
