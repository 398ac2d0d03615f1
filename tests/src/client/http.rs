//! Plain HTTP/1.1, as curl would speak it: whole answers, and answers that are streams of lines.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    time::Duration,
};
use tokio::sync::mpsc;
use ureq::{Agent, http::Request};

/// How long one exchange may take.
const EXCHANGE: Duration = Duration::from_secs(10);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Http {
    /// The status.
    pub status: u16,
    /// The header `content-type`, or nothing.
    pub kind: String,
    /// The body as text.
    pub body: String,
}

impl Http {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in an answer {}: {}", self.status, self.body))
    }

    /// The JSON of an answer that must be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }
}

/// One exchange; an answer of any status is an answer.
pub async fn exchange(
    method: &str,
    url: &str,
    kind: &str,
    body: Vec<u8>,
) -> Result<Http, ureq::Error> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(EXCHANGE))
        .build()
        .into();
    let mut request = Request::builder().method(method).uri(url);
    if !body.is_empty() {
        request = request.header("content-type", kind);
    }
    let request = request.body(body)?;
    tokio::task::spawn_blocking(move || {
        let mut response = if request.body().is_empty() {
            agent.run(request.map(|_| ()))?
        } else {
            agent.run(request)?
        };
        let kind = response.headers().get("content-type");
        Ok(Http {
            status: response.status().as_u16(),
            kind: kind
                .and_then(|kind| kind.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            body: response.body_mut().read_to_string()?,
        })
    })
    .await
    .unwrap()
}

/// The lines of an answer that goes on for as long as somebody listens.
#[derive(Debug)]
pub struct Lines {
    /// The status.
    pub status: u16,
    /// The header `content-type`.
    pub kind: String,
    lines: mpsc::Receiver<String>,
}

impl Lines {
    pub(super) async fn open(url: &str, accept: &str) -> Self {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(EXCHANGE))
            .timeout_recv_response(Some(EXCHANGE))
            .build()
            .into();
        let request = Request::get(url).header("accept", accept).body(()).unwrap();
        let response = tokio::task::spawn_blocking(move || agent.run(request))
            .await
            .unwrap()
            .unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let (sender, lines) = mpsc::channel(64);
        // A thread of its own, which ends with the connection: a blocking task would hold up the end of the test.
        std::thread::spawn(move || {
            let reader = BufReader::new(response.into_body().into_reader());
            for line in reader.lines() {
                let Ok(line) = line else { return };
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            status,
            kind,
            lines,
        }
    }

    /// The next line that is not empty; none when the stream ended.
    pub async fn next(&mut self, within: Duration) -> Option<String> {
        loop {
            let line = tokio::time::timeout(within, self.lines.recv())
                .await
                .unwrap_or_else(|_| panic!("no line within {within:?}"))?;
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers every request alike, and tells the last one.
    async fn server(answer: &'static str) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/path", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let mut count = 0;
                let mut text = String::new();
                while !text.contains("\r\n\r\n")
                    || (text.contains("length: 2") && !text.ends_with("{}"))
                {
                    count += stream.read(&mut buffer[count..]).await.unwrap();
                    text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                sender.send(text).await.unwrap();
            }
        });
        (url, requests)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_method_goes_with_and_without_a_body_and_errors_are_answers() {
        let (url, mut requests) =
            server("HTTP/1.1 404 No\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let answer = exchange(method, &url, "a/b", Vec::new()).await.unwrap();
            assert_eq!(
                (answer.status, answer.kind.as_str()),
                (404, "application/json")
            );
            assert_eq!(answer.json()["a"], 1);
            let request = requests.recv().await.unwrap();
            assert!(
                request.starts_with(&format!("{method} /path HTTP/1.1")),
                "{request}"
            );
        }
        exchange("PUT", &url, "a/b", b"{}".to_vec()).await.unwrap();
        let request = requests.recv().await.unwrap();
        assert!(
            request.contains("content-type: a/b") && request.ends_with("{}"),
            "{request}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lines_come_until_the_stream_ends() {
        let (url, _requests) =
            server("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\none\n\ntwo\n").await;
        let mut lines = Lines::open(&url, "*/*").await;
        assert_eq!(
            (lines.status, lines.kind.as_str()),
            (200, "application/x-ndjson")
        );
        assert_eq!(lines.next(EXCHANGE).await.as_deref(), Some("one"));
        assert_eq!(lines.next(EXCHANGE).await.as_deref(), Some("two"));
        assert_eq!(lines.next(EXCHANGE).await, None);
    }
}
