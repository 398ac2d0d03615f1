//! What callers send and this master can't look at yet, because the rest has not come: how much of it there may be, in all
//! and of each caller, and how long it may be waited for.
//!
//! Whoever is refused has shown who it is before: nothing of a stranger's body is read. What has come counts, not what was
//! announced, so that a promise takes nothing from anybody. A small message counts for nothing: keepalives get through
//! whatever large ones wait for.

mod messages;
#[cfg(test)]
mod tests;

use super::{Caller, Who};
use crate::metrics::{Metrics, Queue};
use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use messages::Messages;
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;

/// Most bytes that wait for the rest, of all callers, and of one: those of eight of the largest requests.
const MAX_BYTES: usize = 256 * 1024 * 1024;
const MAX_BYTES_EACH: usize = 64 * 1024 * 1024;
/// So much of each message counts for nothing: its stream takes more than that anyway.
const FREE_BYTES: usize = 8 * 1024;
/// How long the rest of a message is waited for, in all. Time in which nobody here wants it does not count.
pub(in crate::serve) const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that waits for the rest. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Uploads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    each: HashMap<Who, usize>,
}

impl Uploads {
    /// Nothing waits. `metrics`: where it counts what is refused.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            metrics,
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        let waiting = &self.0.waiting;
        waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits of one caller's request; given back when it is dropped.
#[derive(Debug)]
pub(in crate::serve) struct Held {
    uploads: Uploads,
    who: Who,
    bytes: usize,
    counted: usize,
}

impl Held {
    /// So many bytes more have come. What the caller is told when that is too much.
    pub(in crate::serve) fn grow(&mut self, more: usize) -> Result<(), Status> {
        self.bytes = self.bytes.saturating_add(more);
        let more = self.bytes.saturating_sub(FREE_BYTES) - self.counted;
        if more == 0 {
            return Ok(());
        }
        let mut waiting = self.uploads.waiting();
        let own = waiting.each.get(&self.who).copied().unwrap_or_default();
        if own + more > MAX_BYTES_EACH {
            return Err(self.too_much("you have sent", MAX_BYTES_EACH));
        }
        if waiting.all + more > MAX_BYTES {
            return Err(self.too_much("all callers have sent", MAX_BYTES));
        }
        waiting.all += more;
        *waiting.each.entry(self.who.clone()).or_default() += more;
        self.counted += more;
        Ok(())
    }

    fn too_much(&self, who: &str, limit: usize) -> Status {
        self.uploads.0.metrics.turned_away(Queue::Uploads);
        let mib = limit / 1024 / 1024;
        Status::resource_exhausted(format!(
            "{who} {mib} MiB of requests that this master waits for the rest of: send fewer large ones at a time"
        ))
    }

    /// It was looked at, but for so many bytes at its end.
    fn keep(&mut self, bytes: usize) {
        self.bytes = bytes;
        let counted = bytes.saturating_sub(FREE_BYTES);
        let Some(less) = self.counted.checked_sub(counted).filter(|less| *less > 0) else {
            return;
        };
        self.counted = counted;
        let mut waiting = self.uploads.waiting();
        waiting.all -= less;
        if let Some(own) = waiting.each.get_mut(&self.who) {
            *own -= less;
            if *own == 0 {
                waiting.each.remove(&self.who);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keep(0);
    }
}

impl Caller {
    /// Begins to count what it sends with a request.
    pub(in crate::serve) fn upload(&self) -> Held {
        Held {
            uploads: self.gate.0.uploads.clone(),
            who: self.who(),
            bytes: 0,
            counted: 0,
        }
    }
}

/// The body of a gRPC request, which breaks off when it takes too much memory or too long.
pub(super) struct Upload {
    body: Body,
    held: Arc<Mutex<Held>>,
    /// Where the messages of a stream end; none where the whole body is waited for.
    messages: Option<Messages>,
    patience: Duration,
    wait: Option<Wait>,
}

/// A wait for the next piece of something.
struct Wait {
    since: Instant,
    until: Pin<Box<Sleep>>,
    bell: Arc<Bell>,
}

/// Notes when a piece came: whoever reads may be busy with something else by then.
struct Bell {
    reader: Mutex<Waker>,
    rang: Mutex<Option<Instant>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let mut rang = self.rang.lock().unwrap_or_else(PoisonError::into_inner);
        rang.get_or_insert_with(Instant::now);
        drop(rang);
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.wake_by_ref();
    }
}

impl Wait {
    fn begin(patience: Duration, context: &Context<'_>) -> Self {
        Self {
            since: Instant::now(),
            until: Box::pin(sleep(patience)),
            bell: Arc::new(Bell {
                reader: Mutex::new(context.waker().clone()),
                rang: Mutex::new(None),
            }),
        }
    }

    /// How long it took.
    fn took(&self) -> Duration {
        let rang = *self
            .bell
            .rang
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rang.unwrap_or_else(Instant::now) - self.since
    }
}

impl Upload {
    /// The body, and what is held of it: until both are dropped, unless it is a stream, which holds a message at a time.
    pub(super) fn new(body: Body, held: Held, streams: bool) -> (Self, Arc<Mutex<Held>>) {
        let held = Arc::new(Mutex::new(held));
        let upload = Self {
            body,
            held: Arc::clone(&held),
            messages: streams.then(Messages::default),
            patience: PATIENCE,
            wait: None,
        };
        (upload, held)
    }

    /// Whether something has begun that has to come to its end.
    fn is_owed(&self) -> bool {
        self.messages
            .as_ref()
            .is_none_or(|messages| messages.begun() > 0)
    }

    fn came(&mut self, data: &[u8]) -> Result<(), Status> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(messages) = &mut self.messages {
            // Whoever asks for more has looked at what was whole.
            held.keep(messages.begun());
            if messages.take(data) {
                self.patience = PATIENCE;
            }
        }
        held.grow(data.len())
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.is_owed() {
            // Between two messages a stream may be quiet for as long as it likes.
            this.wait = None;
        } else if let Some(wait) = &this.wait {
            let mut reader = wait
                .bell
                .reader
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            reader.clone_from(context.waker());
        } else {
            this.wait = Some(Wait::begin(this.patience, context));
        }
        let polled = match &this.wait {
            None => Pin::new(&mut this.body).poll_frame(context),
            Some(wait) => {
                let waker = Waker::from(Arc::clone(&wait.bell));
                Pin::new(&mut this.body).poll_frame(&mut Context::from_waker(&waker))
            }
        };
        let frame = match (polled, &mut this.wait) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(wait)) => {
                return wait.until.as_mut().poll(context).map(|()| {
                    let late = "the request took too long to arrive";
                    Some(Err(Status::deadline_exceeded(late)))
                });
            }
        };
        if let Some(wait) = this.wait.take() {
            this.patience = this.patience.saturating_sub(wait.took());
        }
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|error| Status::from_error(error.into()))?;
            if let Some(data) = frame.data_ref() {
                this.came(data)?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
