//! The dispatcher of an action, who reads as fast as it likes, and may go away.

use super::Told;
use kontrol_core::rollout::Stream;
use kontrol_proto::v1::{DispatchResponse, dispatch_response::Event};
use std::{collections::VecDeque, future::pending};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How many messages are handed on ahead of the dispatcher's reading.
const AHEAD: usize = 16;

/// A piece of output that was told: whose, of which stream, how long.
pub(super) type Piece = (usize, Stream, usize);

/// The dispatcher of an action.
#[derive(Debug)]
pub(super) struct Client {
    sender: mpsc::Sender<Result<DispatchResponse, Status>>,
    /// Cancelled when nobody knows it any more: it counts as gone then, even where it stays and takes nothing.
    lapsed: CancellationToken,
    /// The last place in the queue, kept free for the reason of an early end.
    last: Option<OwnedPermit>,
    /// What is still to be told. Bounded, for slaves send no more output than was taken from here.
    waiting: VecDeque<(DispatchResponse, Option<Piece>)>,
}

type OwnedPermit = mpsc::OwnedPermit<Result<DispatchResponse, Status>>;

/// What happened to a dispatcher.
pub(super) enum Progress {
    /// It took one message, which may have been output.
    Took(Option<Piece>),
    /// It went away.
    Gone,
}

impl Client {
    /// A dispatcher, and what it reads. `lapsed`: when it is not known any more.
    pub(super) fn new(lapsed: CancellationToken) -> (Self, Told) {
        let (sender, receiver) = mpsc::channel(AHEAD + 1);
        let client = Self {
            last: sender.clone().try_reserve_owned().ok(),
            sender,
            lapsed,
            waiting: VecDeque::new(),
        };
        (client, ReceiverStream::new(receiver))
    }

    /// Tells it something, in its turn.
    pub(super) fn tell(&mut self, event: Event, piece: Option<Piece>) {
        let response = DispatchResponse { event: Some(event) };
        self.waiting.push_back((response, piece));
    }

    /// Whether it went away.
    pub(super) fn is_gone(&self) -> bool {
        self.sender.is_closed() || self.lapsed.is_cancelled()
    }

    /// Whether it was told everything.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops what was not told yet. Returns the pieces of output in it.
    pub(super) fn left_over(&mut self) -> Vec<Piece> {
        let waiting = self.waiting.drain(..);
        waiting.filter_map(|(_, piece)| piece).collect()
    }

    /// Waits until it takes the next message, or goes away. Cancel safe.
    pub(super) async fn progress(client: Option<&mut Self>) -> Progress {
        let Some(client) = client else {
            return pending().await;
        };
        if client.waiting.is_empty() {
            tokio::select! {
                () = client.sender.closed() => {}
                () = client.lapsed.cancelled() => {}
            }
            return Progress::Gone;
        }
        let reserved = client.lapsed.run_until_cancelled(client.sender.reserve());
        match reserved.await {
            Some(Ok(permit)) => {
                let Some((response, piece)) = client.waiting.pop_front() else {
                    return Progress::Took(None);
                };
                permit.send(Ok(response));
                Progress::Took(piece)
            }
            Some(Err(_)) | None => Progress::Gone,
        }
    }

    /// Tells it everything, unless it goes away. Cancel safe.
    pub(super) async fn flush(&mut self) {
        while !self.waiting.is_empty() {
            if let Progress::Gone = Self::progress(Some(self)).await {
                return;
            }
        }
    }

    /// Ends with an error, behind what it was told.
    pub(super) fn end(mut self, status: Status) {
        if let Some(last) = self.last.take() {
            last.send(Err(status));
        }
    }
}
