//! A scripted master: answers every keepalive as it was last told, and remembers what it heard. The channels that slaves
//! open are handed to the test, which plays the master on them.

mod actions;
pub(crate) mod channel;
mod keepalives;

use actions::Actions;
use channel::Channel;
use keepalives::Service;
use kontrol_proto::v1::{
    PingRequest, action_service_server::ActionServiceServer,
    keepalive_service_server::KeepaliveServiceServer,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

/// Longer than anything that a test waits for should take.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How to answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// The keepalive counts; come again after this.
    Accept(Duration),
    /// So it is, unless its payload is larger than fifty bytes of JSON.
    AcceptSmall(Duration),
    /// With this status.
    Refuse(Status),
    /// Not at all.
    Hang,
}

/// A keepalive that came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    /// Where it was short: the whole one that it means, with its own beat.
    pub(crate) request: PingRequest,
    pub(crate) by: By,
}

/// How a keepalive came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// As a request of its own.
    Request,
    /// Whole, on a stream.
    Stream,
    /// Short, on a stream.
    Beat,
}

/// What becomes of streams of keepalives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    Served,
    /// As by a master that knows none.
    Unknown,
    /// As by a proxy that cuts what is idle.
    CutWhenIdle,
    /// Beats are not known.
    WithoutBeats,
    /// They are opened, and nothing is ever said on them.
    Deaf,
}

/// A master at work.
pub(crate) struct Master {
    address: SocketAddr,
    reply: watch::Sender<Reply>,
    streams: watch::Sender<Streams>,
    again: watch::Sender<u32>,
    heard: watch::Receiver<Vec<Heard>>,
    tokens: watch::Sender<Option<String>>,
    attach: watch::Sender<Option<Status>>,
    channels: mpsc::Receiver<Channel>,
    token: CancellationToken,
    task: JoinHandle<()>,
}

/// Whether who asks bears the token that counts, if one does.
fn known<T>(tokens: &watch::Receiver<Option<String>>, request: &Request<T>) -> Result<(), Status> {
    let Some(token) = &*tokens.borrow() else {
        return Ok(());
    };
    let borne = request.metadata().get("authorization");
    match borne.and_then(|value| value.to_str().ok()) {
        Some(borne) if *borne == format!("Bearer {token}") => Ok(()),
        Some(_) => Err(Status::unauthenticated("unknown token")),
        None => Err(Status::unauthenticated("no token")),
    }
}

impl Master {
    pub(crate) async fn start(reply: Reply) -> Self {
        Self::start_at("127.0.0.1:0", reply).await
    }

    pub(crate) async fn start_at(address: &str, reply: Reply) -> Self {
        Self::start_with(address, reply, None).await
    }

    /// A master that speaks TLS, if it is told how.
    pub(crate) async fn start_with(
        address: &str,
        reply: Reply,
        tls: Option<ServerTlsConfig>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reply, reply_receiver) = watch::channel(reply);
        let (heard_sender, heard) = watch::channel(Vec::new());
        let (tokens, tokens_receiver) = watch::channel(None);
        let token = CancellationToken::new();
        let (streams, streams_receiver) = watch::channel(Streams::Served);
        let (again, again_receiver) = watch::channel(0);
        let service = Service {
            reply: reply_receiver,
            streams: streams_receiver,
            again: again_receiver,
            heard: heard_sender,
            tokens: tokens_receiver.clone(),
            token: token.clone(),
        };
        let (attach, refusal) = watch::channel(None);
        let (opened, channels) = mpsc::channel(16);
        let actions = Actions {
            refusal,
            tokens: tokens_receiver,
            opened,
            token: token.clone(),
        };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let serve = server
            // As the masters do: no stream can use up the connection.
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .add_service(KeepaliveServiceServer::new(service))
            .add_service(ActionServiceServer::new(actions))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                token.clone().cancelled_owned(),
            );
        let task = tokio::spawn(async { serve.await.unwrap() });
        Self {
            address,
            reply,
            streams,
            again,
            heard,
            tokens,
            attach,
            channels,
            token,
            task,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on it answers like this.
    pub(crate) fn now(&self, reply: Reply) {
        self.reply.send_replace(reply);
    }

    /// From now on it treats new streams of keepalives so.
    pub(crate) fn streams(&self, streams: Streams) {
        self.streams.send_replace(streams);
    }

    /// Whatever was said on streams does not hold any more.
    pub(crate) fn forget(&self) {
        self.again.send_modify(|times| *times += 1);
    }

    /// From now on only this token counts.
    pub(crate) fn only(&self, token: &str) {
        self.tokens.send_replace(Some(token.to_owned()));
    }

    /// From now on it answers so to slaves that attach; none: they are welcome.
    pub(crate) fn refuse_channels(&self, status: Option<Status>) {
        self.attach.send_replace(status);
    }

    /// The next channel that a slave opens.
    pub(crate) async fn channel(&mut self) -> Channel {
        let channel = timeout(SOON, self.channels.recv()).await;
        channel.expect("a slave attaches").unwrap()
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.borrow().clone()
    }

    /// Waits until it heard so many keepalives.
    pub(crate) async fn hears(&mut self, count: usize) -> Vec<Heard> {
        let heard = timeout(SOON, self.heard.wait_for(|heard| heard.len() >= count)).await;
        heard.expect("the keepalives come").unwrap().clone()
    }

    /// Stops it; returns all that it heard.
    pub(crate) async fn stop(self) -> Vec<Heard> {
        self.token.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap();
        self.heard.borrow().clone()
    }
}
