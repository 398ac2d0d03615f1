//! The port: HTTP/1.1 and HTTP/2 on one socket, in TLS or in clear text, so gRPC and the HTTP gateway share it.
//!
//! One task accepts and owns every connection's task; nothing outlives `serve`. What a peer can hold is bounded: the number
//! of connections, streams a connection, header size, and the time to say anything at all. Connections take turns, however
//! fast one sends. Peers that vanish without a word are found by HTTP/2 pings, those of HTTP/1.1 by TCP's.
//!
//! At shutdown nothing new is accepted and each connection ends with its last response. Long streams must end on the
//! same token, by themselves; what is still open at the deadline is dropped.

mod clear_text;
mod connection;
mod fair;
mod greeting;
#[cfg(test)]
mod tests;
mod unsent;

use super::access::{Audit, Credentials, Link, certificate::Certificate};
use crate::metrics::{Metrics, Queue};
use axum::Router;
pub use connection::Streams;
use connection::{Activity, Counted, Patience};
use fair::Fair;
use greeting::{Greeting, PREFACE, greeting};
use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use kontrol_runtime::connection::{Ending, Observed, Received};
use rustix::net::sockopt;
use rustls::ServerConfig;
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{Id, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;
pub use unsent::Unsent;

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most bytes of responses that wait for a slow reader, for each stream.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// Most bytes of one HTTP/2 stream that wait to be read here, and of all streams of a connection: a stream that is not read,
/// such as one of much output, leaves room for the keepalives beside it.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// How often an HTTP/2 peer is asked whether it is there, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for TCP, which is all that HTTP/1.1 has.
const TCP_IDLE: Duration = Duration::from_secs(30);
const TCP_PROBE_INTERVAL: Duration = Duration::from_secs(5);
const TCP_PROBES: u32 = 3;
/// First and longest pause when the system has no room for another connection.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long requests whose connection was dropped get to notice.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// What a peer can hold of the port at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. The next ones wait in the kernel's backlog.
    pub connections: usize,
    /// Connections at a time from one address. The next ones are closed.
    pub connections_each: usize,
    /// Requests and streams at a time on one HTTP/2 connection.
    pub streams: u32,
    /// How long TLS may take.
    pub handshake: Duration,
    /// How long a peer may take to say its first word, and the head of each HTTP/1.1 request.
    pub head: Duration,
    /// How long a connection may have no request at all.
    pub idle: Duration,
    /// How long a peer may take nothing of what it is sent: of TCP, and of an answer of HTTP/2. A reader of a stream may pause
    /// for as long as a connection may be idle.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connections: 15_000,
            connections_each: 10_000,
            streams: 512,
            handshake: seconds(10),
            head: seconds(30),
            idle: seconds(300),
            stalled: seconds(30),
        }
    }
}

/// A socket that listens, and what is served there.
#[derive(Debug)]
pub struct Port {
    /// The socket.
    pub listener: TcpListener,
    /// What is served.
    pub router: Router,
    /// TLS of the port, as it goes on; without it the port speaks clear text.
    pub credentials: Credentials,
    /// What a peer can hold.
    pub limits: Limits,
    /// Where it is counted who was turned away.
    pub metrics: Arc<Metrics>,
    /// Where it is told who was.
    pub audit: Audit,
}

impl Port {
    /// A port in clear text, with the usual limits.
    pub fn new(listener: TcpListener, router: Router) -> Self {
        Self {
            listener,
            router,
            credentials: Credentials::default(),
            limits: Limits::default(),
            metrics: Arc::default(),
            audit: Audit::new(Arc::default()),
        }
    }

    /// Serves until the token is cancelled, then drains: connections that are not done after `drain` are dropped. Fails only
    /// when the listener itself is of no use.
    pub async fn serve(self, token: CancellationToken, drain: Duration) -> io::Result<()> {
        let local = self.listener.local_addr()?;
        let streams = TaskTracker::new();
        let shared = Arc::new(Shared {
            // Saves the router from finishing itself at each request.
            router: self.router.with_state(()),
            server: server(streams.clone(), &self.limits),
            local,
            limits: self.limits,
            token: token.clone(),
            unsent: Unsent::new(Arc::clone(&self.metrics)),
            metrics: self.metrics,
            audit: self.audit,
        });
        let mut open = Open::default();
        let mut pause = FIRST_PAUSE;
        loop {
            // All three are cancel-safe: a connection is either accepted or still in the backlog.
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(ended) = open.tasks.join_next_with_id() => open.ended(ended),
                accepted = self.listener.accept(), if open.tasks.len() < shared.limits.connections => match accepted {
                    Ok((stream, peer)) => {
                        pause = FIRST_PAUSE;
                        let ip = peer.ip().to_canonical();
                        if open.of(ip) >= shared.limits.connections_each {
                            // Closed without a word: whoever holds that many would only be told as often.
                            shared.metrics.turned_away(Queue::Connections);
                            continue;
                        }
                        let tls = self.credentials.now().tls().cloned();
                        let connection = Connection { stream, peer, tls, shared: Arc::clone(&shared) };
                        open.begin(ip, connection.run());
                    }
                    Err(error) if is_of_one_connection(&error) => {
                        tracing::debug!(%error, "accept a connection");
                    }
                    Err(error) => {
                        tracing::error!(%error, ?pause, "accept a connection: is the limit of open files too low?");
                        wait(&token, pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                },
            }
        }
        // Who connects from now on is refused at once and can try another master.
        drop(self.listener);
        let drained = timeout(drain, async {
            while let Some(ended) = open.tasks.join_next_with_id().await {
                open.ended(ended);
            }
        });
        if drained.await.is_err() {
            let open_still = open.tasks.len();
            tracing::warn!(
                open = open_still,
                ?drain,
                "drop connections that did not end in time"
            );
            open.tasks.shutdown().await;
        }
        streams.close();
        if timeout(STRAGGLERS, streams.wait()).await.is_err() {
            tracing::warn!(
                open = streams.len(),
                "requests did not notice that their connections are gone"
            );
        }
        Ok(())
    }
}

/// The connections, and how many each address has.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    addresses: HashMap<Id, IpAddr>,
    counts: HashMap<IpAddr, usize>,
}

impl Open {
    fn of(&self, ip: IpAddr) -> usize {
        self.counts.get(&ip).copied().unwrap_or_default()
    }

    fn begin(&mut self, ip: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(connection).id();
        self.addresses.insert(id, ip);
        *self.counts.entry(ip).or_default() += 1;
    }

    /// A panic in a handler ends its connection, not the master.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        if let Some(ip) = self.addresses.remove(&id)
            && let Some(count) = self.counts.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ip);
            }
        }
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a connection's task failed");
        }
    }
}

/// What all connections have in common.
struct Shared {
    router: Router,
    server: Builder<Tracked>,
    local: SocketAddr,
    limits: Limits,
    token: CancellationToken,
    metrics: Arc<Metrics>,
    audit: Audit,
    unsent: Unsent,
}

fn server(streams: TaskTracker, limits: &Limits) -> Builder<Tracked> {
    let mut server = Builder::new(Tracked(streams));
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams)
        .max_send_buf_size(MAX_SEND_BYTES);
    server
}

/// Runs the streams of HTTP/2 connections where they can be waited for.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// One accepted connection.
struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    shared: Arc<Shared>,
}

impl Connection {
    /// Serves the connection to its end. At shutdown, that is the end of the responses under way.
    async fn run(self) {
        let Self {
            stream,
            peer,
            tls,
            shared,
        } = self;
        if let Err(error) = tune(&stream, shared.limits.stalled) {
            tracing::debug!(%peer, %error, "set up a connection");
        }
        let greeted = tokio::select! {
            () = shared.token.cancelled() => return,
            greeted = timeout(shared.limits.head, greeting(&stream)) => greeted,
        };
        let Ok(Ok(greeting)) = greeted else { return };
        let ending = Ending::default();
        let server = shared.server.clone();
        match (greeting, tls) {
            (Greeting::Tls, Some(tls)) => {
                let (observed, _) = Observed::new(stream, ending.clone());
                let handshake = TlsAcceptor::from(tls).accept(observed);
                let shaken = tokio::select! {
                    () = shared.token.cancelled() => return,
                    shaken = timeout(shared.limits.handshake, handshake) => shaken,
                };
                let stream = match shaken {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        shared.audit.no_tls(peer, &error);
                        return;
                    }
                    Err(_) => {
                        shared
                            .audit
                            .no_tls(peer, &"it did not come to its end in time");
                        return;
                    }
                };
                let (_, session) = stream.get_ref();
                let link = Link {
                    peer,
                    certificate: session
                        .peer_certificates()
                        .and_then(Certificate::new)
                        .map(Arc::new),
                };
                // A client says beforehand what it speaks; one that does not speaks HTTP/1.1.
                let (server, first) = match session.alpn_protocol() {
                    Some(b"h2") => (server.http2_only(), PREFACE.len() as u64),
                    Some(_) | None => (server.http1_only(), 1),
                };
                let (stream, received) = Observed::new(stream, ending.clone());
                shared
                    .exchange(server, stream, link, ending, Some(received.after(first)))
                    .await;
            }
            (_, Some(_)) => clear_text::answer(server, stream, &shared.limits).await,
            (_, None) => {
                let (observed, _) = Observed::new(stream, ending.clone());
                let link = Link {
                    peer,
                    certificate: None,
                };
                shared.exchange(server, observed, link, ending, None).await;
            }
        }
    }
}

impl Shared {
    /// Serves HTTP over what TLS and TCP made. `first`: how much is to be received within the limit for a head.
    async fn exchange<S>(
        &self,
        server: Builder<Tracked>,
        stream: S,
        link: Link,
        ending: Ending,
        first: Option<Received>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = link.peer;
        let info = TcpConnectInfo {
            local_addr: Some(self.local),
            remote_addr: Some(peer),
        };
        let activity = Activity::default();
        let (of_requests, under_way) = (ending.clone(), activity.clone());
        let router = &self.router;
        let unsent = self.unsent.of_another();
        let patience = Patience {
            answer: self.limits.stalled,
            stream: self.limits.idle,
        };
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            request.extensions_mut().insert(link.clone());
            request.extensions_mut().insert(of_requests.clone());
            request.extensions_mut().insert(unsent.clone());
            let one = under_way.begin();
            let (response, unsent) = (router.clone().oneshot(request), unsent.clone());
            async move {
                let response = response.await?;
                Ok::<_, std::convert::Infallible>(Counted::wrap(response, one, patience, &unsent))
            }
        });
        let mut connection =
            pin!(server.serve_connection(TokioIo::new(Fair::new(stream)), service));
        let silent = async {
            match first {
                Some(first) => {
                    sleep(self.limits.head).await;
                    first.is_missing()
                }
                None => false,
            }
        };
        let mut silent = pin!(silent);
        let mut waits_for_first = true;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                is_silent = silent.as_mut(), if waits_for_first => {
                    waits_for_first = false;
                    if is_silent {
                        break Ok(());
                    }
                    continue;
                }
                () = self.token.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await;
                }
                () = activity.idle(self.limits.idle) => {}
                () = activity.stalled() => {}
            }
            // What else is under way may come to its end. A peer that does not go is gone after this.
            connection.as_mut().graceful_shutdown();
            break timeout(self.limits.head, connection)
                .await
                .unwrap_or(Ok(()));
        };
        // Streams learn of the end when the connection is dropped, which is after this.
        ending.give_up();
        if let Err(error) = ended {
            // Peers go away in many ways; none of them is this master's trouble.
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Small answers leave at once, and a peer that lost its power is noticed.
fn tune(stream: &TcpStream, stalled: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Counts from the first byte that the peer does not take, a window of zero included (tcp(7)).
    let stalled = u32::try_from(stalled.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, stalled)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, TCP_PROBES)?;
    Ok(())
}

/// Errors of a connection that was gone before it was accepted: the next one may be fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    [
        ConnectionAborted,
        ConnectionRefused,
        ConnectionReset,
        Interrupted,
    ]
    .contains(&error.kind())
}

async fn wait(token: &CancellationToken, pause: Duration) {
    // Cut short by a shutdown, which the loop sees next.
    let _ = timeout(pause, token.cancelled()).await;
}
