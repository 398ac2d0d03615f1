//! When a stream must end: what its caller showed does not count any more. The token was taken out of the file, the
//! certificate expired, its authority went, the run of the callback is over.

use super::{Caller, Identity};
use http::Extensions;
use http_body::{Body, Frame};
use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// A wall clock may be put right meanwhile, so that an end that is far away is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Caller {
    /// Waits until what it showed does not count any more; for good where nothing had to be shown.
    async fn lapse(self) -> Status {
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

/// That what the caller of a stream showed does not count any more: an extension of its request. It is found out beside the
/// stream, which nobody may read. Cheap to clone; nobody looks any more once all clones are dropped.
#[derive(Debug, Clone)]
pub struct Lapsed {
    lapsed: CancellationToken,
    why: Arc<OnceLock<Status>>,
    _looked_after: Arc<DropGuard>,
}

impl Lapsed {
    /// Is cancelled when it does not count any more; never where nothing had to be shown.
    pub fn of(extensions: &Extensions) -> CancellationToken {
        let this = extensions.get::<Self>();
        this.map_or_else(CancellationToken::new, |this| this.lapsed.clone())
    }

    /// Waits for that, and tells why.
    async fn wait(self) -> Status {
        self.lapsed.cancelled().await;
        let why = self.why.get().cloned();
        why.unwrap_or_else(|| Status::unauthenticated("the caller is not known any more"))
    }

    /// A body that ends then.
    pub(super) fn ends(&self, body: axum::body::Body, side: Side) -> axum::body::Body {
        let body = tonic::body::Body::new(body);
        axum::body::Body::new(Until::new(body, self.clone().wait(), side))
    }
}

impl Caller {
    /// Looks after a stream of this caller.
    pub(super) fn look_after(&self) -> Lapsed {
        let (lapsed, gone) = (CancellationToken::new(), CancellationToken::new());
        let why = Arc::new(OnceLock::new());
        let (tell, set, caller) = (lapsed.clone(), Arc::clone(&why), self.clone());
        let over = gone.clone();
        // Joined with the others at the end.
        drop(self.gate.0.looks.spawn(async move {
            if let Some(status) = over.run_until_cancelled(caller.lapse()).await {
                // Nobody else sets it.
                let _ = set.set(status);
                tell.cancel();
            }
        }));
        Lapsed {
            lapsed,
            why,
            _looked_after: Arc::new(gone.drop_guard()),
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
struct Until<E> {
    body: tonic::body::Body,
    /// None once it has ended.
    end: Option<Pin<Box<E>>>,
    side: Side,
}

impl<E: Future<Output = Status>> Until<E> {
    fn new(body: tonic::body::Body, end: E, side: Side) -> Self {
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
