//! When a stream must end: what its caller showed does not count any more. The token was taken out of the file, the
//! certificate expired, its authority went, the run of the callback is over.

use super::{Caller, Identity};
use http_body::{Body, Frame};
use std::{
    future::{Future, pending},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};
use tokio::time::sleep;
use tonic::Status;

/// A wall clock may be put right meanwhile, so that an end that is far away is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Caller {
    /// Waits until what it showed does not count any more; for good where nothing had to be shown.
    pub(super) async fn lapse(self) -> Status {
        let Identity::Known(_, proof) = &self.identity else {
            return pending().await;
        };
        let mut credentials = self.gate.0.credentials.clone();
        let mut roster = self.gate.0.roster.changes();
        loop {
            let until = match self.gate.principal(proof) {
                Ok((_, until)) => until,
                Err(reason) => return Status::unauthenticated(reason),
            };
            let rest = until.map(|until| {
                let rest = until.duration_since(SystemTime::now()).unwrap_or_default();
                rest.min(LOOK_AGAIN)
            });
            let expiry = async {
                match rest {
                    Some(rest) => sleep(rest).await,
                    None => pending().await,
                }
            };
            let run_ends = async {
                match proof {
                    super::Proof::Run(_) => roster.next().await,
                    super::Proof::Token(_) | super::Proof::Certificate(_) => pending().await,
                }
            };
            // All arms are cancel safe.
            tokio::select! {
                () = credentials.changed() => {}
                () = expiry => {}
                more = run_ends => if !more { return pending().await },
            }
        }
    }
}

/// How a stream says that it has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What comes in breaks off, with the status as its error.
    Request,
    /// What goes out ends with the status in its trailers, as gRPC has it.
    Response,
}

/// A body that ends early when that is asked for.
pub(super) struct Until<E> {
    body: tonic::body::Body,
    /// None once it has ended.
    end: Option<Pin<Box<E>>>,
    side: Side,
}

impl<E: Future<Output = Status>> Until<E> {
    pub(super) fn new(body: tonic::body::Body, end: E, side: Side) -> Self {
        Self {
            body,
            end: Some(Box::pin(end)),
            side,
        }
    }
}

impl<E: Future<Output = Status>> Body for Until<E> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = &mut *self;
        let Some(end) = &mut this.end else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = end.as_mut().poll(context) {
            this.end = None;
            // Whoever made what goes out learns of the end here, not when the connection is gone.
            this.body = tonic::body::Body::empty();
            return Poll::Ready(Some(match this.side {
                Side::Request => Err(status),
                Side::Response => trailers(&status).map(Frame::trailers),
            }));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if frame.is_none() {
            this.end = None;
        }
        Poll::Ready(frame)
    }
}

fn trailers(status: &Status) -> Result<http::HeaderMap, Status> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}
