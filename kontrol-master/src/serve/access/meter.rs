//! Turns away reads and actions that are too much, so that keepalives are served before everything else: requests beyond
//! what a caller may ask for in a second, streams beyond what it may have open, and requests beyond what this master works
//! on. Keepalives, slaves' channels and what masters tell each other are never counted.
//!
//! What counts in each case stands in `kontrol_core::traffic`. A call goes on until the body of its answer is dropped: an
//! answer that nobody reads takes memory for as long.

use super::{Caller, Who};
use crate::metrics::{Metrics, Queue};
use crate::serve::{MESSAGE_PREFIX_BYTES, holding::Holding};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kontrol_core::{
    access::table::{self, Kind},
    limits::MAX_REQUEST_BYTES,
    traffic::{Call, Excess, Limits, Ticket, Traffic},
};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::time::Instant;
use tonic::Status;

/// Counts what goes on, and says when it is too much. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    traffic: Mutex<Traffic<Who>>,
    request_bytes: usize,
    metrics: Arc<Metrics>,
}

impl Inner {
    fn traffic(&self) -> MutexGuard<'_, Traffic<Who>> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(Limits::default(), MAX_REQUEST_BYTES, Arc::default())
    }
}

impl Meter {
    /// A meter. `request_bytes`: how large a read or an action may be.
    pub fn new(limits: Limits, request_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            traffic: Mutex::new(Traffic::new(limits)),
            request_bytes,
            metrics,
        }))
    }

    fn begin(&self, who: &Who, call: Call) -> Result<Admission, Status> {
        let begun = self.0.traffic().begin(who, call, Instant::now());
        match begun {
            Ok(ticket) => Ok(Admission(Some(Arc::new(Going {
                meter: self.clone(),
                ticket,
            })))),
            Err(excess) => Err(self.refusal(excess)),
        }
    }

    fn refusal(&self, excess: Excess) -> Status {
        let Limits {
            rate,
            streams,
            requests,
        } = *self.0.traffic().limits();
        let (queue, reason) = match excess {
            Excess::Rate => (
                Queue::Rate,
                format!("more than {rate} requests in a second (--max-rate): try again later"),
            ),
            Excess::Streams => (
                Queue::Streams,
                format!("{streams} of your streams are open (--max-watchers): end some first"),
            ),
            Excess::Requests => (
                Queue::Requests,
                format!(
                    "this master works on {requests} requests already (--max-requests): try again, or another master"
                ),
            ),
            Excess::Share => (
                Queue::Requests,
                format!(
                    "half of the {requests} requests that this master works on at a time (--max-requests) are yours already: try again later"
                ),
            ),
        };
        self.0.metrics.turned_away(queue);
        Status::resource_exhausted(reason)
    }
}

/// A call that goes on, until the last clone of this is dropped.
#[derive(Debug, Clone, Default)]
#[must_use = "the call counts as long as this is held"]
pub struct Admission(Option<Arc<Going>>);

#[derive(Debug)]
struct Going {
    meter: Meter,
    ticket: Ticket<Who>,
}

impl Drop for Going {
    fn drop(&mut self) {
        self.meter.0.traffic().end(&self.ticket);
    }
}

impl Admission {
    /// Has the call go on until the body of its answer is dropped.
    pub fn until_answered(self, response: Response) -> Response {
        if self.0.is_none() {
            return response;
        }
        response.map(|body| Body::new(Holding::new(body, self)))
    }
}

impl Caller {
    /// Begins a call, or says why it is too much.
    pub fn begin(&self, rpc: &str, call: Call) -> Result<Admission, Status> {
        if is_vital(rpc) {
            return Ok(Admission::default());
        }
        self.gate.0.meter.begin(&self.who(), call)
    }

    /// Most bytes of a request of this rpc; none where the service itself has another limit.
    pub fn most_bytes(&self, rpc: &str) -> Option<usize> {
        (!is_vital(rpc)).then_some(self.gate.0.meter.0.request_bytes)
    }

    /// What it is told of a request that is larger than this.
    pub fn too_large(&self, most: usize) -> Status {
        self.gate.0.meter.0.metrics.turned_away(Queue::Sizes);
        Status::invalid_argument(format!(
            "the request is larger than {most} bytes (--max-request)"
        ))
    }

    /// The body of a gRPC request, which breaks off when its first message is longer than it may be.
    pub(super) fn measured(&self, rpc: &str, body: Body) -> Body {
        match self.most_bytes(rpc) {
            Some(most) => Body::new(Request {
                body,
                caller: self.clone(),
                most,
                prefix: Vec::with_capacity(MESSAGE_PREFIX_BYTES),
            }),
            None => body,
        }
    }
}

/// Nothing sheds it. Of what is not in the table, everything is shed.
fn is_vital(rpc: &str) -> bool {
    table::find(rpc).is_some_and(|rule| rule.kind == Kind::Vital)
}

/// The body of a gRPC request, of which the length of the first message is looked at: tonic has one limit for all rpcs of a
/// service, and its refusal names no setting.
struct Request {
    body: Body,
    caller: Caller,
    most: usize,
    /// As much of the prefix as has come.
    prefix: Vec<u8>,
}

impl http_body::Body for Request {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && this.prefix.len() < MESSAGE_PREFIX_BYTES
        {
            let missing = MESSAGE_PREFIX_BYTES - this.prefix.len();
            this.prefix
                .extend_from_slice(&data[..missing.min(data.len())]);
            if let [_, length @ ..] = &this.prefix[..]
                && let Ok(length) = <[u8; 4]>::try_from(length)
                && u32::from_be_bytes(length) as usize > this.most
            {
                let status = this.caller.too_large(this.most);
                return Poll::Ready(Some(Err(axum::Error::new(status))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tonic::Code;

    const READ: &str = "kontrol.v1.EnsembleService/GetEnsemble";
    const PING: &str = "kontrol.v1.KeepaliveService/Ping";

    fn metered(limits: Limits, request_bytes: usize) -> (Caller, Arc<Metrics>) {
        let metrics = Arc::<Metrics>::default();
        let meter = Meter::new(limits, request_bytes, Arc::clone(&metrics));
        (super::super::tests::anyone(meter), metrics)
    }

    fn refused(begun: Result<Admission, Status>, flag: &str) {
        let status = begun.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains(flag), "{status:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_is_refused_by_its_flag_and_counted_and_keepalives_go_on() {
        let limits = Limits {
            rate: 4,
            streams: 1,
            requests: 3,
        };
        let (caller, metrics) = metered(limits, 10);
        let stream = caller.begin(READ, Call::Stream).unwrap();
        refused(caller.begin(READ, Call::Stream), "--max-watchers");
        let first = caller.begin(READ, Call::Request).unwrap();
        let _second = caller.begin("a.Future/Rpc", Call::Request).unwrap();
        refused(caller.begin(READ, Call::Request), "--max-requests");
        drop((stream, first));
        let _third = caller.begin(READ, Call::Request).unwrap();
        refused(caller.begin(READ, Call::Glance), "--max-rate");
        for _ in 0..100 {
            let _ = caller.begin(PING, Call::Request).unwrap();
        }
        let text = metrics.encode();
        for queue in ["rate", "streams", "requests"] {
            let count = format!("kontrol_master_turned_away_total{{queue=\"{queue}\"}} 1\n");
            assert!(text.contains(&count), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_goes_on_until_its_answer_is_dropped() {
        let limits = Limits {
            requests: 1,
            ..Limits::default()
        };
        let (caller, _) = metered(limits, 10);
        let admission = caller.begin(READ, Call::Request).unwrap();
        let answer = admission.until_answered(Response::new(Body::from("text")));
        refused(caller.begin(READ, Call::Request), "--max-requests");
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes(),
            "text"
        );
        let _next = caller.begin(READ, Call::Request).unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_breaks_off_in_whatever_pieces_it_comes() {
        let (caller, _) = metered(Limits::default(), 10);
        let message = |bytes: u8| [&[0, 0, 0, 0, bytes][..], &vec![1; bytes.into()]].concat();
        for size in [1, 3, 100] {
            let body = |message: &[u8]| {
                let pieces = message.chunks(size).map(Bytes::copy_from_slice);
                let frames = pieces.map(|piece| Ok::<_, Status>(Frame::data(piece)));
                let frames: Vec<_> = frames.collect();
                Body::new(StreamBody::new(futures::stream::iter(frames)))
            };
            let (fits, long) = (message(10), message(11));
            let read = caller.measured(READ, body(&fits)).collect().await.unwrap();
            assert_eq!(read.to_bytes(), fits);
            let broken = caller.measured(READ, body(&long)).collect().await;
            let status = Status::from_error(broken.unwrap_err().into_inner());
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains("10 bytes (--max-request)"));
            let ping = caller.measured(PING, body(&long)).collect().await.unwrap();
            assert_eq!(ping.to_bytes(), long, "the service measures it");
        }
        let empty = caller.measured(READ, Body::new(Full::default()));
        assert_eq!(empty.collect().await.unwrap().to_bytes(), "");
    }
}
