//! The port: HTTP/1.1 and HTTP/2 in clear (prior knowledge) on one socket, so gRPC and the HTTP gateway share it.
//!
//! One task accepts and owns every connection's task; nothing outlives `serve`. What a peer can hold is bounded: the number
//! of connections, streams a connection, header size, and the time to say anything at all. Peers that vanish without a
//! word are found by HTTP/2 pings, those of HTTP/1.1 by TCP's.
//!
//! At shutdown nothing new is accepted and each connection ends with its last response. Long streams must end on the
//! same token, by themselves; what is still open at the deadline is dropped.

#[cfg(test)]
mod tests;

use axum::Router;
use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use kontrol_runtime::connection::{Ending, Observed};
use rustix::net::sockopt;
use std::{future::Future, io, net::SocketAddr, pin::pin, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;

/// Most connections at a time. The next ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 15_000;
/// Most requests and streams at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 512;
/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most bytes of responses that wait for a slow reader, for each stream.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// Most bytes of one HTTP/2 stream that wait to be read here, and of all streams of a connection: a stream that is not read,
/// such as one of much output, leaves room for the keepalives beside it.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// How long a peer may take to say its first word, and the head of each HTTP/1.1 request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
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
/// What an HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a router until the token is cancelled, then drains: connections that are not done after `drain` are dropped.
/// Fails only when the listener itself is of no use.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    token: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    serve_at_most(listener, router, token, drain, MAX_CONNECTIONS).await
}

async fn serve_at_most(
    listener: TcpListener,
    router: Router,
    token: CancellationToken,
    drain: Duration,
    most: usize,
) -> io::Result<()> {
    let local = listener.local_addr()?;
    // Saves the router from finishing itself at each request.
    let router = router.with_state(());
    let streams = TaskTracker::new();
    let server = server(streams.clone());
    let mut connections = JoinSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        // All three are cancel-safe: a connection is either accepted or still in the backlog.
        tokio::select! {
            biased;
            () = token.cancelled() => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, peer)) => {
                    pause = FIRST_PAUSE;
                    let info = TcpConnectInfo { local_addr: Some(local), remote_addr: Some(peer) };
                    let connection = Connection { stream, peer, info, router: router.clone() };
                    connections.spawn(connection.run(server.clone(), token.clone()));
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
    drop(listener);
    let drained = timeout(drain, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        let open = connections.len();
        tracing::warn!(open, ?drain, "drop connections that did not end in time");
        connections.shutdown().await;
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

fn server(streams: TaskTracker) -> Builder<Tracked> {
    let mut server = Builder::new(Tracked(streams));
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
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
    info: TcpConnectInfo,
    router: Router,
}

impl Connection {
    /// Serves the connection to its end. At shutdown, that is the end of the responses under way.
    async fn run(self, server: Builder<Tracked>, token: CancellationToken) {
        let Self {
            stream,
            peer,
            info,
            router,
        } = self;
        if let Err(error) = tune(&stream) {
            tracing::debug!(%peer, %error, "set up a connection");
        }
        let greeted = tokio::select! {
            () = token.cancelled() => return,
            greeted = timeout(HEAD_TIMEOUT, greeting(&stream)) => greeted,
        };
        if !matches!(greeted, Ok(Ok(()))) {
            return;
        }
        let ending = Ending::default();
        let of_requests = ending.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            request.extensions_mut().insert(of_requests.clone());
            router.clone().oneshot(request)
        });
        let stream = TokioIo::new(Observed::new(stream, ending.clone()));
        let mut connection = pin!(server.serve_connection(stream, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = token.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
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
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, TCP_PROBES)?;
    Ok(())
}

/// Waits until the peer has said enough to tell HTTP/1.1 from HTTP/2: the time-outs of either start only then.
async fn greeting(stream: &TcpStream) -> io::Result<()> {
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        let said = &first[..seen];
        if said.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if said.len() == PREFACE.len() || !PREFACE.starts_with(said) {
            return Ok(());
        }
        // A preface in pieces is rare, and there is no word from the system that more than this has come.
        sleep(Duration::from_millis(20)).await;
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

/// A panic in a handler ends its connection, not the master.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed");
    }
}
