//! The port: HTTP/1.1 and HTTP/2 on one socket, in TLS or in clear text, so gRPC and the HTTP gateway share it.
//!
//! One task accepts and owns every connection's task; nothing outlives `serve`. What a peer can hold is bounded: the number
//! of connections, streams a connection, header size, and the time to say anything at all. Connections take turns, however
//! fast one sends. Peers that vanish without a word are found by HTTP/2 pings, those of HTTP/1.1 by TCP's.
//!
//! At shutdown nothing new is accepted and each connection ends with its last response. Long streams must end on the
//! same token, by themselves; what is still open at the deadline is dropped.

mod activity;
mod clear_text;
mod connection;
mod fair;
mod greeting;
#[cfg(test)]
mod tests;
mod unsent;

use super::access::{Audit, Credentials};
use crate::metrics::{Metrics, Queue};
pub use activity::Streams;
use axum::Router;
use connection::Connection;
use hyper::rt::Executor;
use hyper_util::{rt::TokioTimer, server::conn::auto::Builder};
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
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
