//! How keepalives go over one connection: on a stream, where what was said last and still holds takes a few bytes, or one
//! request each where the master knows no streams or something on the way does not keep them.
//!
//! ```text
//!            open, ping ──▶ response ──▶ beat ──▶ response ──▶ beat ──▶ again ──▶ ping ──▶ response
//!              ▲    │                                │ the stream ended meanwhile
//!              │    └─ UNIMPLEMENTED ──▶ Ping        │
//!              └─────────────────────────────────────┘ twice in a row ──▶ Ping
//!
//!            open, ping ──▶ no answer, on two connections in a row ──▶ Ping
//! ```
//!
//! A stream that ended while nothing was said on it is no failure of the master: whoever cut it may be a proxy that
//! saw no traffic. So the keepalive is said once more, on a new one. Invariant: one keepalive is under way at a time, and
//! its answer is waited for, so that an answer always belongs to the keepalive that was said last.

use super::{
    Content, request,
    setback::{Setback, ping},
};
use crate::masters::link::Attached;
use kontrol_proto::v1::{
    PingError, PingRequest, PingResponse, PingStreamRequest, PingStreamResponse,
    keepalive_service_client::KeepaliveServiceClient, ping_stream_request::Kind,
    ping_stream_response::Result as Answer,
};
use kontrol_runtime::dial::Channel;
use std::{error::Error, net::IpAddr, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How many streams in a row that ended before their second keepalive make it one request each.
const MAX_CUTS: u8 = 2;
/// How many streams in a row that never answered do so on the next connection. Whoever is on the way may keep back what is
/// said on a stream until that ends.
const MAX_UNANSWERED: u8 = 2;

/// Who says something, and what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saying<'a> {
    pub(super) content: &'a Content,
    pub(super) ip: IpAddr,
    pub(super) nonce: &'a str,
}

/// The way of one connection.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The connection.
    serial: Option<u64>,
    way: Way,
    /// How many streams in a row were cut.
    cuts: u8,
    /// How many in a row had no answer to their first keepalive, on whatever connection.
    unanswered: u8,
}

#[derive(Debug, Default)]
enum Way {
    /// A stream is to be opened.
    #[default]
    Closed,
    /// A stream is open.
    Open(Box<Open>),
    /// One request each.
    Unary,
}

#[derive(Debug)]
struct Open {
    requests: mpsc::Sender<PingStreamRequest>,
    answers: Streaming<PingStreamResponse>,
    /// What the last whole keepalive said, once it counted.
    said: Option<(Content, IpAddr)>,
}

/// Why a stream has no answer.
enum Trouble {
    /// The master said so.
    Refused(Setback),
    /// It does not go on.
    Ended(Status),
}

impl From<PingError> for Trouble {
    fn from(error: PingError) -> Self {
        Self::Refused(Status::new(Code::from(error.code), error.message).into())
    }
}

impl Line {
    /// Says one keepalive on this connection, for `limit` at most. `beat` is the last one's, and counts on.
    pub(super) async fn say(
        &mut self,
        attached: &Attached,
        saying: Saying<'_>,
        beat: &mut u64,
        limit: Duration,
    ) -> Result<PingResponse, Setback> {
        if self.serial.replace(attached.serial()) != Some(attached.serial()) {
            let is_deaf = self.unanswered >= MAX_UNANSWERED;
            self.way = if is_deaf { Way::Unary } else { Way::Closed };
            self.cuts = 0;
        }
        let channel = attached.channel();
        let deadline = Instant::now() + limit;
        if !matches!(self.way, Way::Unary) {
            let said = timeout_at(deadline, self.say_on_stream(&channel, saying, beat)).await;
            let said = said.unwrap_or_else(|_| {
                if !matches!(self.way, Way::Open(_)) {
                    self.unanswered = self.unanswered.saturating_add(1);
                }
                // A late answer would be taken for that of the next.
                self.way = Way::Closed;
                Err(Setback::Failed("no answer in time".into()))
            });
            if !matches!(self.way, Way::Unary) {
                return said;
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = ping(channel, saying.whole(beat), left).await;
        if answer.is_ok() {
            // The next connection may be another way: one stream is tried there.
            self.unanswered = self.unanswered.min(MAX_UNANSWERED - 1);
        }
        answer
    }

    /// Where that turns out not to be the way, nothing counts that this returns.
    async fn say_on_stream(
        &mut self,
        channel: &Channel,
        saying: Saying<'_>,
        beat: &mut u64,
    ) -> Result<PingResponse, Setback> {
        if let Way::Open(open) = &mut self.way {
            match open.say(saying, beat).await {
                Ok(response) => {
                    self.cuts = 0;
                    return Ok(response);
                }
                Err(Trouble::Refused(setback)) => return Err(setback),
                Err(Trouble::Ended(status)) => {
                    tracing::debug!(%status, "the stream of keepalives ended");
                    self.cuts += 1;
                }
            }
        }
        let is_cut = self.cuts >= MAX_CUTS;
        self.way = if is_cut { Way::Unary } else { Way::Closed };
        if is_cut {
            tracing::debug!("streams of keepalives are cut: from here on each is a request");
            return Err(Setback::Failed("the stream was cut".into()));
        }
        let opened = match Open::begin(channel, saying.whole(beat)).await {
            Ok(mut open) => {
                let answer = open.heard_whole(saying).await;
                if !matches!(answer, Err(Trouble::Ended(_))) {
                    self.way = Way::Open(Box::new(open));
                    self.unanswered = 0;
                }
                answer
            }
            Err(status) => Err(Trouble::Ended(status)),
        };
        opened.map_err(|trouble| match trouble {
            Trouble::Refused(setback) => setback,
            Trouble::Ended(status) => {
                let older = is_older(&status);
                self.way = if older { Way::Unary } else { Way::Closed };
                Setback::of(channel, status)
            }
        })
    }
}

/// Whether a master that knows no streams of keepalives said so.
fn is_older(status: &Status) -> bool {
    status.code() == Code::Unimplemented && status.source().is_none()
}

impl Saying<'_> {
    fn whole(self, beat: &mut u64) -> PingRequest {
        *beat += 1;
        request(self.content, self.ip, self.nonce, *beat, false)
    }

    fn is(self, said: &(Content, IpAddr)) -> bool {
        *self.content == said.0 && self.ip == said.1
    }
}

impl Open {
    /// Opens a stream, the first keepalive on it: what is on the way may answer nothing before that.
    async fn begin(channel: &Channel, ping: PingRequest) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(1);
        let full = |_| Status::internal("a new stream takes nothing");
        requests.try_send(ping.into()).map_err(full)?;
        let mut client = KeepaliveServiceClient::new(channel.clone());
        let answers = client.ping_stream(ReceiverStream::new(receiver)).await?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
            said: None,
        })
    }

    async fn say(&mut self, saying: Saying<'_>, beat: &mut u64) -> Result<PingResponse, Trouble> {
        if self.said.as_ref().is_some_and(|said| saying.is(said)) {
            *beat += 1;
            let kind = Some(Kind::Beat(*beat));
            self.send(PingStreamRequest { kind }).await?;
            match self.answer().await? {
                Answer::Response(response) => return Ok(response),
                // What the pod says was taken as a whole before, so it is the short form that is not.
                Answer::Error(error) if error.code == Code::InvalidArgument as i32 => {}
                Answer::Error(error) => return Err(error.into()),
                Answer::Again(_) => {}
            }
        }
        self.said = None;
        let ping = saying.whole(beat);
        self.send(ping.into()).await?;
        self.heard_whole(saying).await
    }

    async fn heard_whole(&mut self, saying: Saying<'_>) -> Result<PingResponse, Trouble> {
        match self.answer().await? {
            Answer::Response(response) => {
                self.said = Some((saying.content.clone(), saying.ip));
                Ok(response)
            }
            Answer::Error(error) => Err(error.into()),
            Answer::Again(_) => Err(Trouble::Ended(Status::internal(
                "the master asks again for what it was just told",
            ))),
        }
    }

    async fn send(&self, request: PingStreamRequest) -> Result<(), Trouble> {
        let ended = |_| Trouble::Ended(Status::unavailable("the stream has ended"));
        self.requests.send(request).await.map_err(ended)
    }

    async fn answer(&mut self) -> Result<Answer, Trouble> {
        let answer = self.answers.message().await.map_err(Trouble::Ended)?;
        let ended = || Trouble::Ended(Status::unavailable("the master ended the stream"));
        answer.and_then(|answer| answer.result).ok_or_else(ended)
    }
}
