//! Makes the HTTP response of an RPC's answer: one JSON document, or a stream of them.
//!
//! A stream is NDJSON, or Server-Sent Events for who asks for them. It is pulled: the next message is taken from the
//! service when the connection has room for it, so that a slow reader slows the service's stream and nothing piles up
//! here. An error before the first message is an HTTP status; a later one is the last line, `{"error":{…}}`. While there
//! is nothing to say, an empty line or a comment shows that the stream lives. What services say for that is not passed on: it
//! is a message whose oneof is not set.

use super::{
    call::Frames,
    error::{ErrorBody, LastLine},
    rule::{Operation, Rpc},
};
use crate::serve::listener::Streams;
use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::stream;
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE},
};
use kontrol_proto::json;
use prost_reflect::{DescriptorPool, FieldDescriptor};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::Status;

/// How long a quiet stream stays without a sign of life, so that no proxy takes it for dead.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a stream's first message is waited for before the response starts without it: an error until then becomes
/// the HTTP status, and a stream that has nothing to say yet opens all the same.
const FIRST_MESSAGE: Duration = Duration::from_secs(1);
/// The fields that tell where a stream is: together the id of an event.
pub(super) const REVISION: &str = "revision";
pub(super) const HISTORY: &str = "history";

/// The response of a unary RPC.
pub(super) async fn unary(operation: &Operation, mut frames: Frames) -> Result<Response, Status> {
    let first = frames.next().await;
    let first = first.unwrap_or_else(|| Err(Status::internal("the service gave no answer")))?;
    // The status follows the message.
    if let Some(Err(status)) = frames.next().await {
        return Err(status);
    }
    let text = write(&operation.rpc, operation.response_field.as_ref(), &first)?;
    Ok(response(Body::from(text), "application/json"))
}

/// The response of an RPC that streams.
pub(super) async fn stream(
    operation: &Operation,
    mut frames: Frames,
    format: Format,
    pool: DescriptorPool,
) -> Result<Response, Status> {
    let first = match timeout(FIRST_MESSAGE, frames.next()).await {
        Ok(Some(first)) => Next::Message(first?),
        Ok(None) => Next::End,
        Err(_) => Next::Wait,
    };
    let events = Events {
        rpc: Arc::clone(&operation.rpc),
        response_field: operation.response_field.clone(),
        frames,
        format,
        pool,
        next: first,
    };
    let lines = stream::unfold(events, |mut events| async {
        let line = events.line().await?;
        Some((Ok::<_, Infallible>(line), events))
    });
    let mut response = response(Body::from_stream(lines), format.content_type());
    response.extensions_mut().insert(Streams);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would else collect the stream before it passes anything on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn response(body: Body, content_type: &'static str) -> Response {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn write(rpc: &Rpc, field: Option<&FieldDescriptor>, wire: &[u8]) -> Result<Vec<u8>, Status> {
    let written = match field {
        Some(field) => json::write_field(field, wire),
        None => json::write(&rpc.output, wire),
    };
    written.map_err(|error| {
        tracing::error!(rpc = rpc.name, %error, "turn an answer into json");
        Status::internal("the answer can't be written as JSON")
    })
}

/// How a stream is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON document a line.
    Ndjson,
    /// Server-Sent Events.
    Sse,
}

impl Format {
    /// What the request asks for.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepts_events = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|range| {
                let essence = range.split(';').next().unwrap_or_default();
                essence.trim().eq_ignore_ascii_case("text/event-stream")
            });
        if accepts_events {
            Self::Sse
        } else {
            Self::Ndjson
        }
    }

    /// What readers pass over.
    fn sign_of_life(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Ndjson => b"\n",
            Self::Sse => b":\n\n",
        })
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Sse => "text/event-stream",
        }
    }
}

/// A stream on its way to the connection.
struct Events {
    rpc: Arc<Rpc>,
    response_field: Option<FieldDescriptor>,
    frames: Frames,
    format: Format,
    pool: DescriptorPool,
    next: Next,
}

/// What the stream does next.
enum Next {
    /// Writes a message that is here already.
    Message(Bytes),
    /// Waits for the service.
    Wait,
    /// Ends.
    End,
}

impl Events {
    /// The next piece of the body.
    async fn line(&mut self) -> Option<Bytes> {
        let message = match std::mem::replace(&mut self.next, Next::Wait) {
            Next::Message(message) => Ok(message),
            Next::End => return None,
            Next::Wait => match timeout(HEARTBEAT, self.news()).await {
                Ok(next) => next?,
                Err(_) => return Some(self.format.sign_of_life()),
            },
        };
        Some(match message.and_then(|message| self.written(&message)) {
            Ok(line) => line,
            Err(status) => {
                self.next = Next::End;
                self.failed(&status)
            }
        })
    }

    /// The next message that says something. Cancel safe.
    async fn news(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            let next = self.frames.next().await?;
            let is_news = |message: &Bytes| {
                !json::says_nothing(&self.rpc.output, message, &[REVISION, HISTORY])
            };
            if next.as_ref().map_or(true, is_news) {
                return Some(next);
            }
        }
    }

    fn written(&self, message: &[u8]) -> Result<Bytes, Status> {
        let mut text = write(&self.rpc, self.response_field.as_ref(), message)?;
        if self.format == Format::Ndjson {
            text.push(b'\n');
            return Ok(text.into());
        }
        let mut event = Vec::with_capacity(text.len() + 40);
        let field = |name| self.rpc.output.get_field_by_name(name);
        if let Some(id) = field(REVISION).and_then(|field| json::integer(&field, message)) {
            let history = field(HISTORY).map(|field| json::text(&field, message));
            let history = history.filter(|history| !history.is_empty());
            let history = history.map_or_else(String::new, |history| format!("-{history}"));
            event.extend_from_slice(format!("id: {id}{history}\n").as_bytes());
        }
        event.extend_from_slice(b"data: ");
        event.append(&mut text);
        event.extend_from_slice(b"\n\n");
        Ok(event.into())
    }

    fn failed(&self, status: &Status) -> Bytes {
        let error = ErrorBody::new(status, &self.pool);
        // Numbers, strings and JSON have no way to fail to become JSON.
        let error = serde_json::to_string(&LastLine { error }).unwrap_or_default();
        match self.format {
            Format::Ndjson => format!("{error}\n").into(),
            Format::Sse => format!("event: error\ndata: {error}\n\n").into(),
        }
    }
}
