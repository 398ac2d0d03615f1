//! What a peer speaks, by its first word.

use std::{io, time::Duration};
use tokio::{net::TcpStream, time::sleep};

/// What an HTTP/2 client says first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a TLS client says first: the type of the record that holds its greeting.
const TLS_HANDSHAKE: u8 = 22;

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    Tls,
    Http,
}

/// Waits until the peer has said enough to tell TLS, HTTP/1.1 and HTTP/2 apart: the time-outs of each start only then.
pub(super) async fn greeting(stream: &TcpStream) -> io::Result<Greeting> {
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        let said = &first[..seen];
        if said.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if said[0] == TLS_HANDSHAKE {
            return Ok(Greeting::Tls);
        }
        if said.len() == PREFACE.len() || !PREFACE.starts_with(said) {
            return Ok(Greeting::Http);
        }
        // A preface in pieces is rare, and there is no word from the system that more than this has come.
        sleep(Duration::from_millis(20)).await;
    }
}
