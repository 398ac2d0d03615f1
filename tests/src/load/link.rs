//! How a keepalive gets to a master: a call over a shared gRPC connection, or a PUT over a connection of one's own.
//!
//! Both do as little as they can, because they share the processors with the masters that are measured.

use crate::pod::PodSpec;
use anyhow::{Context, Result, bail};
use kontrol_proto::v1::{PingRequest, keepalive_service_client::KeepaliveServiceClient};
use std::{
    io::Write,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(2);

type Client = KeepaliveServiceClient<Channel>;

/// One gRPC connection that workers share, or rather one to each master, opened when it is first needed.
#[derive(Debug)]
pub(super) struct Shared {
    masters: Arc<Vec<String>>,
    clients: Vec<OnceLock<Client>>,
}

impl Shared {
    /// A connection to any of these masters.
    pub(super) fn new(masters: Arc<Vec<String>>) -> Self {
        let clients = masters.iter().map(|_| OnceLock::new()).collect();
        Self { masters, clients }
    }

    fn client(&self, master: usize) -> Client {
        let open = || {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.masters[master]));
            Client::new(
                endpoint
                    .unwrap()
                    .tcp_nodelay(true)
                    .connect_timeout(CONNECT)
                    .connect_lazy(),
            )
        };
        self.clients[master].get_or_init(open).clone()
    }
}

/// One worker's way to the masters.
#[derive(Debug)]
pub(super) enum Link {
    /// gRPC.
    Grpc(Arc<Shared>),
    /// `PUT /ping` over HTTP/1.1, kept open.
    Http {
        /// `host:port` of each.
        masters: Arc<Vec<String>>,
        /// The connection, and which master it leads to.
        open: Option<(usize, TcpStream)>,
    },
}

/// A pod's keepalive, ready to be sent but for its beat.
#[derive(Debug)]
pub(super) enum Message {
    /// For gRPC.
    Grpc(Box<PingRequest>),
    /// For HTTP: the JSON up to its last brace.
    Http(String),
}

impl Link {
    /// The pod's keepalive as this link sends it.
    pub(super) fn message(&self, pod: &PodSpec) -> Message {
        match self {
            Self::Grpc(_) => Message::Grpc(Box::new(pod.request())),
            Self::Http { .. } => {
                let mut json = pod.json();
                // Added anew each time.
                json.as_object_mut().unwrap().remove("beat");
                let mut text = json.to_string();
                text.pop();
                Message::Http(text)
            }
        }
    }

    /// Sends a keepalive to a master, and tells the seq that it answers.
    pub(super) async fn send(
        &mut self,
        master: usize,
        message: &Message,
        beat: u64,
    ) -> Result<u64> {
        match (self, message) {
            (Self::Grpc(shared), Message::Grpc(request)) => {
                let mut request = request.as_ref().clone();
                request.beat = beat;
                Ok(shared.client(master).ping(request).await?.into_inner().seq)
            }
            (Self::Http { masters, open }, Message::Http(text)) => {
                // Taken out for the exchange: one that fails, or is given up half-way, is of no more use.
                let mut stream = match open.take() {
                    Some((to, stream)) if to == master => stream,
                    _ => connect(&masters[master]).await?,
                };
                let seq = put(&mut stream, text, beat).await?;
                *open = Some((master, stream));
                Ok(seq)
            }
            _ => bail!("a message for another kind of link"),
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn put(stream: &mut TcpStream, text: &str, beat: u64) -> Result<u64> {
    let tail = format!(",\"beat\":{beat}}}");
    let mut request = Vec::with_capacity(text.len() + 128);
    write!(
        request,
        "PUT /ping HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}{tail}",
        text.len() + tail.len()
    )?;
    stream.write_all(&request).await?;
    let mut answer = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the connection closed");
        }
        if let Some(body) = body(&answer)? {
            return seq(body);
        }
    }
}

/// The body of a good answer, once all of it is here.
fn body(answer: &[u8]) -> Result<Option<&str>> {
    let text = std::str::from_utf8(answer)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("no content-length")?
        .1
        .trim()
        .parse()?;
    if body.len() < length {
        return Ok(None);
    }
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}: {body}", head.lines().next().unwrap_or_default());
    }
    Ok(Some(body))
}

fn seq(body: &str) -> Result<u64> {
    let (_, rest) = body.split_once("\"seq\":").context("no seq")?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    Ok(rest[..end.unwrap_or(rest.len())].parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_all_of_it_is_here() {
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"key\":\"a\",\"seq\":7}";
        let read = body(good.as_bytes()).unwrap();
        assert_eq!(seq(read.unwrap()).unwrap(), 7);
        for cut in [10, 30, good.len() - 1] {
            assert_eq!(body(&good.as_bytes()[..cut]).unwrap(), None);
        }
        let refused = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";
        assert!(body(refused.as_bytes()).is_err());
    }
}
