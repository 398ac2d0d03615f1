//! One connection, from its first word to its end: TLS where the port has a certificate, HTTP/1.1 or HTTP/2 over it.

use super::{
    Shared, Tracked,
    activity::{Activity, Counted, Patience},
    clear_text,
    fair::Fair,
    greeting::{Greeting, PREFACE, greeting},
};
use crate::serve::access::{Link, certificate::Certificate};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto::Builder};
use kontrol_runtime::connection::{Ending, Observed, Received};
use rustix::net::sockopt;
use rustls::ServerConfig;
use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;

/// How long a connection is silent before TCP asks whether the peer is there, how often, and how many times: all that HTTP/1.1
/// has.
const TCP_IDLE: Duration = Duration::from_secs(30);
const TCP_PROBE_INTERVAL: Duration = Duration::from_secs(5);
const TCP_PROBES: u32 = 3;

/// One accepted connection.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    /// Serves the connection to its end. At shutdown, that is the end of the responses under way.
    pub(super) async fn run(self) {
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
            (_, Some(_)) => clear_text::answer(&shared, stream, peer).await,
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
                Ok::<_, Infallible>(Counted::wrap(response, one, patience, &unsent))
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
