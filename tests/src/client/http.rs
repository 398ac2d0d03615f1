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
