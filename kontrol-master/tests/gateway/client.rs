//! A small HTTP/1.1 client that says exactly what a test tells it to, and reads a stream piece by piece.

use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A response whose body may still come.
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
}

impl Reply {
    /// A header, `""` when it isn't there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let header = self.head.iter().find(|(other, _)| other == name);
        header.map_or("", |(_, value)| value)
    }

    /// The next chunk of a chunked body, `None` at its proper end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        let chunk = timeout(PATIENCE, self.next_chunk())
            .await
            .expect("no chunk came");
        chunk.unwrap()
    }

    /// The same, with the error of a connection that was cut.
    pub(crate) async fn next_chunk(&mut self) -> std::io::Result<Option<String>> {
        let mut size = String::new();
        if self.stream.read_line(&mut size).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).await?;
        chunk.truncate(size);
        Ok((size > 0).then(|| String::from_utf8(chunk).unwrap()))
    }

    /// The whole body.
    pub(crate) async fn text(mut self) -> String {
        let mut body = String::new();
        if self.header("transfer-encoding") == "chunked" {
            while let Some(chunk) = self.chunk().await {
                body.push_str(&chunk);
            }
        } else {
            let read = timeout(PATIENCE, self.stream.read_to_string(&mut body)).await;
            read.expect("the body didn't end").unwrap();
        }
        body
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Sends a request on a connection of its own and reads the head of the response.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    timeout(PATIENCE, read_head(BufReader::new(stream)))
        .await
        .expect("no response came")
}

async fn read_head(mut stream: BufReader<TcpStream>) -> Reply {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let status = line
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("no status: {line:?}"));
    let status = status.parse().unwrap();
    let mut head = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        match line.trim_end().split_once(": ") {
            Some((name, value)) => head.push((name.to_lowercase(), value.to_owned())),
            None => {
                return Reply {
                    status,
                    head,
                    stream,
                };
            }
        }
    }
}

pub(crate) async fn get(address: SocketAddr, target: &str) -> Reply {
    send(address, "GET", target, &[], b"").await
}
