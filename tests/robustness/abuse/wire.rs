//! Connections by hand, from any address of this host.

use super::frames::{self, ACK, Frame, PING, SETTINGS, frame};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName},
};

/// The protocols that are agreed on within TLS.
pub(super) const HTTP_1: &[u8] = b"http/1.1";
pub(super) const HTTP_2: &[u8] = b"h2";
/// How much a socket of an abuser takes of what it does not read.
const RECEIVE_BYTES: u32 = 16 * 1024;

/// A stream of bytes, in TLS or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
pub(super) type Wire = Box<dyn Stream>;

/// A master to abuse, and what a caller of it has to show. Cheap to clone.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// None: clear text.
    pub(super) roots: Option<Arc<RootCertStore>>,
    /// The header of an operator; empty where nobody is asked for anything.
    pub(super) operator: String,
    /// That of pods.
    pub(super) slave: String,
}

impl Target {
    /// Connects TCP from this address.
    pub(super) async fn tcp(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
        socket.bind((from, 0).into())?;
        socket.connect(self.address).await
    }

    /// Connects, with TLS where the master speaks it.
    pub(super) async fn connect(&self, from: Ipv4Addr, protocol: &[u8]) -> io::Result<Wire> {
        let tcp = self.tcp(from).await?;
        tcp.set_nodelay(true)?;
        let Some(config) = self.config(protocol) else {
            return Ok(Box::new(tcp));
        };
        let name = ServerName::try_from(crate::secured::HOST).unwrap();
        let tls = TlsConnector::from(config).connect(name, tcp).await?;
        Ok(Box::new(tls))
    }

    /// Connects for HTTP/2, and says what this end takes of each answer.
    pub(super) async fn http2(&self, from: Ipv4Addr, window: u32) -> io::Result<Wire> {
        let mut wire = self.connect(from, HTTP_2).await?;
        wire.write_all(&frames::opening(window)).await?;
        wire.flush().await?;
        Ok(wire)
    }

    /// What TLS begins with.
    pub(super) fn hello(&self) -> Vec<u8> {
        let name = ServerName::try_from(crate::secured::HOST).unwrap();
        let config = self.config(HTTP_2).unwrap();
        let mut connection = ClientConnection::new(config, name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn config(&self, protocol: &[u8]) -> Option<Arc<ClientConfig>> {
        let roots = RootCertStore::clone(self.roots.as_ref()?);
        let config = kontrol_runtime::tls::client(roots).unwrap();
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Some(Arc::new(config))
    }

    /// The head of a request of this target, for HTTP/2.
    pub(super) fn head(&self, stream: u32, method: &str, path: &str, ends: bool) -> Vec<u8> {
        self.head_of(&self.operator, stream, method, path, ends)
    }

    /// The same, with this header as `authorization`.
    pub(super) fn head_of(
        &self,
        authorization: &str,
        stream: u32,
        method: &str,
        path: &str,
        ends: bool,
    ) -> Vec<u8> {
        let scheme = if self.roots.is_some() {
            "https"
        } else {
            "http"
        };
        let mut fields = vec![
            (":method", method),
            (":scheme", scheme),
            (":authority", crate::secured::HOST),
            (":path", path),
        ];
        if !authorization.is_empty() {
            fields.push(("authorization", authorization));
        }
        // The paths of HTTP have a version in front, those of gRPC a package.
        if path.starts_with("/kontrol.") {
            fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
        }
        frames::head(stream, &fields, ends)
    }

    /// The head of a request of an operator, for HTTP/1.1, but for its last line.
    pub(super) fn lines(&self, method: &str, path: &str) -> String {
        lines(&self.operator, method, path)
    }

    /// A whole request with its answer, which is a good one.
    pub(super) async fn ask(
        &self,
        authorization: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> String {
        let mut wire = self.connect(Ipv4Addr::LOCALHOST, HTTP_1).await.unwrap();
        let head = lines(authorization, method, path);
        let length = body.len();
        let ask = format!("{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        wire.write_all(ask.as_bytes()).await.unwrap();
        wire.flush().await.unwrap();
        let mut answer = String::new();
        wire.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }
}

fn lines(authorization: &str, method: &str, path: &str) -> String {
    let host = crate::secured::HOST;
    let mut lines = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    if !authorization.is_empty() {
        lines += &format!("authorization: {authorization}\r\n");
    }
    lines
}

/// Answers what HTTP/2 wants answered, and hands out the rest, until the other end is gone or the visitor has seen enough.
pub(super) async fn attend(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut seen: impl FnMut(&Frame) -> bool,
) -> io::Result<()> {
    loop {
        let received = frames::read(wire).await?;
        if seen(&received) {
            return Ok(());
        }
        if [PING, SETTINGS].contains(&received.kind) && received.flags & ACK == 0 {
            let payload: &[u8] = if received.kind == PING {
                &received.payload
            } else {
                &[]
            };
            wire.write_all(&frame(received.kind, ACK, 0, payload))
                .await?;
            wire.flush().await?;
        }
    }
}
