//! From a target to a stream of bytes: what it takes is read, TCP is connected, and TLS agreed on.
//!
//! A channel of tonic calls it for its first connection, and again when that broke.

use super::{Credentials, DialError, Target};
use crate::{cause::innermost, duration, tls};
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderValue, Uri};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, Once, PoisonError},
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
    /// What it was that broke the connection, explained.
    broke: Option<String>,
    /// Whether the other end has said something that is HTTP/2, or may be.
    heard: bool,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header of the token that was read for the connection.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.state().token.clone()
    }

    /// Whether the other end has said anything.
    pub(super) fn heard(&self) -> bool {
        self.state().heard
    }

    /// What was seen to break the connection.
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

type Stream = TokioIo<Watched>;

/// Says once that whoever is on the way can read the token.
fn warn_of_clear_text(target: &Target, stream: &TcpStream) {
    static SAID: Once = Once::new();
    let leaves = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
    if stream.peer_addr().is_ok_and(leaves) {
        SAID.call_once(|| {
            tracing::warn!(
                master = %target,
                "the token goes out in clear text, for everybody on the way to read: use https://"
            );
        });
    }
}

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
        let within = duration::show(self.limit);
        let late = |words: &str| DialError(format!("{words} within {within}"));
        let deadline = Instant::now() + self.limit;
        let material = timeout_at(deadline, self.credentials.read(self.target.tls)).await;
        let material =
            material.map_err(|_| late("the files of the credentials can't be read"))??;
        let tcp = timeout_at(deadline, reach(&self.target, uri)).await;
        let tcp = tcp.map_err(|_| late("no answer"))??;
        if material.token.is_some() && !self.target.tls {
            warn_of_clear_text(&self.target, &tcp);
        }
        *self.shared.state() = State {
            token: material.token,
            ..State::default()
        };
        let stream = match material.tls {
            None => Either::Left(tcp),
            Some(config) => {
                let agreed = timeout_at(deadline, agree(&self.target, tcp, config)).await;
                Either::Right(agreed.map_err(|_| {
                    late("does the other end speak TLS? It does not answer the handshake")
                })??)
            }
        };
        Ok(TokioIo::new(Watched {
            stream,
            shared: self.shared,
            silent: true,
            failed: None,
        }))
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

/// How TLS begins to say that it does not understand: an alert, and its version.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// A stream that notes what it is that breaks it, where HTTP/2 would only say that it broke.
///
/// With TLS 1.3 a client certificate is refused behind the handshake; and in clear text an end that speaks TLS says so in
/// its own way. Either is behind a write that failed, too: then it counts more than that nothing can be written.
pub(super) struct Watched {
    stream: Either<TcpStream, TlsStream<TcpStream>>,
    shared: Arc<Shared>,
    /// Whether the other end has said nothing yet.
    silent: bool,
    /// A write that failed, until it is known what is behind it.
    failed: Option<io::Error>,
}

impl Watched {
    /// Notes what was read, or why nothing was; tells whether that explains the end of the connection.
    fn note(&mut self, read: Result<&[u8], &io::Error>) -> bool {
        let why = match read {
            Ok(bytes) => {
                let first = std::mem::replace(&mut self.silent, false);
                let clear = matches!(self.stream, Either::Left(_));
                let alert = first && clear && bytes.starts_with(&TLS_ALERT);
                if first && !alert && !bytes.is_empty() {
                    self.shared.state().heard = true;
                }
                alert.then(|| "the other end speaks TLS: use https://".to_owned())
            }
            Err(error) => of_tls(error).map(tls::explain),
        };
        let noted = why.is_some();
        if let Some(why) = why {
            self.shared.state().broke.get_or_insert(why);
        }
        noted
    }

    /// What is told of a write: of one that failed, once it is known what is behind it.
    fn wrote<T>(&mut self, context: &mut Context<'_>, wrote: io::Result<T>) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let error = match wrote {
            Err(error) if [BrokenPipe, ConnectionReset].contains(&error.kind()) => error,
            other => return Poll::Ready(other),
        };
        let mut bytes = [0; TLS_ALERT.len()];
        let mut buffer = ReadBuf::new(&mut bytes);
        // That the other end is gone can be read too, if not at once.
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Pending => {
                self.failed = Some(error);
                return Poll::Pending;
            }
            Poll::Ready(Err(behind)) if self.note(Err(&behind)) => {
                return Poll::Ready(Err(behind));
            }
            Poll::Ready(Ok(())) => {
                self.note(Ok(buffer.filled()));
            }
            Poll::Ready(Err(_)) => {}
        }
        Poll::Ready(Err(error))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.note(result.as_ref().map(|()| &buffer.filled()[before..]));
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = match self.failed.take() {
            Some(error) => Err(error),
            None => ready!(Pin::new(&mut self.stream).poll_write(context, bytes)),
        };
        self.wrote(context, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = match self.failed.take() {
            Some(error) => Err(error),
            None => ready!(Pin::new(&mut self.stream).poll_write_vectored(context, pieces)),
        };
        self.wrote(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wrote = match self.failed.take() {
            Some(error) => Err(error),
            None => ready!(Pin::new(&mut self.stream).poll_flush(context)),
        };
        self.wrote(context, wrote)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
