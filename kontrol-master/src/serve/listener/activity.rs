//! What a connection has under way: HTTP/2 itself ends neither one that has no requests, nor one whose peer takes nothing of
//! its answers.

use super::unsent::{Share, Unsent};
use axum::body::{Body, Bytes};
use http::Response;
use http_body::{Frame, SizeHint};
use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

/// Most that is handed to the connection at a time: it keeps what the peer does not take, and asks for more only then.
const PIECE_BYTES: usize = 16 * 1024;

/// An answer that streams, and whose reader may pause: an extension of it.
#[derive(Debug, Clone, Copy)]
pub struct Streams;

/// How many requests a connection has under way, and which answers wait for the peer. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    count: watch::Sender<usize>,
    waiting: Mutex<Waiting>,
    /// One has begun to wait, and none did before.
    begun: Notify,
}

/// The answers that wait for the peer to take something, by when that takes too long.
#[derive(Debug, Default)]
struct Waiting {
    until: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Inner {
            count: watch::Sender::new(0),
            waiting: Mutex::default(),
            begun: Notify::new(),
        }))
    }
}

impl Activity {
    /// One more, until what this returns is dropped.
    pub(super) fn begin(&self) -> One {
        self.0.count.send_modify(|count| *count += 1);
        One {
            activity: self.clone(),
            waits: None,
        }
    }

    /// Waits until there was none for this long.
    pub(super) async fn idle(&self, limit: Duration) {
        let mut count = self.0.count.subscribe();
        loop {
            // The sender is `self`, so that neither fails.
            if count.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(limit) => return,
                begun = count.changed() => if begun.is_err() { return },
            }
        }
    }

    /// Waits until the peer took nothing of some answer for as long as it may.
    pub(super) async fn stalled(&self) {
        loop {
            let begun = self.0.begun.notified();
            let first = self.0.waiting().until.first().copied();
            match first {
                None => begun.await,
                Some((until, _)) if until <= Instant::now() => return,
                Some((until, _)) => sleep_until(until).await,
            }
        }
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct One {
    activity: Activity,
    waits: Option<(Instant, u64)>,
}

impl One {
    /// The peer has something of the answer to take, and may take so long.
    fn waits(&mut self, limit: Duration) {
        let mut waiting = self.activity.0.waiting();
        let wait = (Instant::now() + limit, waiting.next);
        waiting.next += 1;
        let first = waiting.until.is_empty();
        waiting.until.insert(wait);
        drop(waiting);
        self.waits = Some(wait);
        if first {
            self.activity.0.begun.notify_one();
        }
    }

    /// The peer has taken it.
    fn goes_on(&mut self) {
        if let Some(wait) = self.waits.take() {
            self.activity.0.waiting().until.remove(&wait);
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.goes_on();
        self.activity.0.count.send_modify(|count| *count -= 1);
    }
}

/// How long a peer may take nothing of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Of one that is there.
    pub(super) answer: Duration,
    /// Of one that streams.
    pub(super) stream: Duration,
}

/// The body of a response: its request is under way until it is dropped. It is handed out in pieces, so that what waits for
/// the peer waits here, where it counts.
#[derive(Debug)]
pub(super) struct Counted {
    body: Body,
    rest: Bytes,
    /// What the rest takes of what may wait.
    share: Share,
    one: One,
    patience: Duration,
}

impl Counted {
    pub(super) fn wrap(
        response: Response<Body>,
        one: One,
        patience: Patience,
        unsent: &Unsent,
    ) -> Response<Self> {
        let patience = match response.extensions().get::<Streams>() {
            Some(Streams) => patience.stream,
            None => patience.answer,
        };
        let share = unsent.share();
        response.map(|body| Self {
            body,
            rest: Bytes::new(),
            share,
            one,
            patience,
        })
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        self.share.set(self.rest.len());
        self.one.waits(self.patience);
        Frame::data(piece)
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Whoever wants more has passed on what there was.
        self.one.goes_on();
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.piece())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame);
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => {
                self.rest = data;
                self.piece()
            }
            Err(trailers) => trailers,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::time::{Instant, advance};

    const SECONDS: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_nothing_was_under_way_for_the_time() {
        let activity = Activity::default();
        let one = activity.begin();
        let waiting = activity.clone();
        let idle = tokio::spawn(async move { waiting.idle(SECONDS).await });
        tokio::task::yield_now().await;
        advance(Duration::from_secs(100)).await;
        assert!(!idle.is_finished());
        drop(one);
        tokio::task::yield_now().await;
        advance(Duration::from_secs(9)).await;
        drop(activity.begin());
        let again = Instant::now();
        idle.await.unwrap();
        assert_eq!(again.elapsed(), SECONDS);
    }

    fn counted(activity: &Activity, response: Response<Body>) -> Response<Counted> {
        let patience = Patience {
            answer: SECONDS,
            stream: 10 * SECONDS,
        };
        Counted::wrap(response, activity.begin(), patience, &Unsent::default())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_nothing_is_taken_stalls_and_a_stream_later() {
        for (streams, limit) in [(false, SECONDS), (true, 10 * SECONDS)] {
            let activity = Activity::default();
            let mut response = Response::new(Body::from(vec![7; 2 * PIECE_BYTES]));
            if streams {
                response.extensions_mut().insert(Streams);
            }
            let mut body = counted(&activity, response).into_body();
            // Nothing waits for the peer before there is something.
            let early = tokio::time::timeout(50 * SECONDS, activity.stalled());
            assert!(early.await.is_err());
            for _ in 0..2 {
                body.frame().await.unwrap().unwrap();
                advance(limit - Duration::from_secs(1)).await;
            }
            let began = Instant::now();
            activity.stalled().await;
            assert_eq!(began.elapsed(), Duration::from_secs(1));
            drop(body);
            let late = tokio::time::timeout(50 * SECONDS, activity.stalled());
            assert!(late.await.is_err(), "it was taken");
        }
    }

    #[tokio::test]
    async fn an_answer_comes_whole_in_its_pieces() {
        let text: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let mut body =
            counted(&Activity::default(), Response::new(text.clone().into())).into_body();
        let whole = http_body::Body::size_hint(&body).exact();
        assert_eq!(whole, Some(text.len() as u64));
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES);
            read.extend_from_slice(&piece);
            let rest = http_body::Body::size_hint(&body).exact();
            assert_eq!(rest, Some((text.len() - read.len()) as u64));
        }
        assert_eq!(read, text);
    }
}
