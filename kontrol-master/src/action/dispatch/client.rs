//! The dispatcher of an action, who reads as fast as it likes, and may go away.

use super::Told;
use crate::action::rollout::Stream;
use kontrol_proto::v1::{DispatchResponse, dispatch_response::Event};
use std::{collections::VecDeque, future::pending};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How many messages are handed on ahead of the dispatcher's reading.
const AHEAD: usize = 16;

/// A piece of output that was told: whose, of which stream, how long.
pub(super) type Piece = (usize, Stream, usize);

/// The dispatcher of an action.
#[derive(Debug)]
pub(super) struct Client {
    sender: mpsc::Sender<Result<DispatchResponse, Status>>,
    /// What is still to be told. Bounded, for slaves send no more output than was taken from here.
    waiting: VecDeque<(DispatchResponse, Option<Piece>)>,
}

/// What happened to a dispatcher.
pub(super) enum Progress {
    /// It took one message, which may have been output.
    Took(Option<Piece>),
    /// It went away.
    Gone,
}

impl Client {
    /// A dispatcher, and what it reads.
    pub(super) fn new() -> (Self, Told) {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let client = Self {
            sender,
            waiting: VecDeque::new(),
        };
        (client, ReceiverStream::new(receiver))
    }

    /// Tells it something, in its turn.
    pub(super) fn tell(&mut self, event: Event, piece: Option<Piece>) {
        let response = DispatchResponse { event: Some(event) };
        self.waiting.push_back((response, piece));
    }

    /// Whether it was told everything.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What it was not told yet and never will: its pieces of output.
    pub(super) fn left_over(self) -> impl Iterator<Item = Piece> {
        self.waiting.into_iter().filter_map(|(_, piece)| piece)
    }

    /// Waits until it takes the next message, or goes away. Cancel safe.
    pub(super) async fn progress(client: Option<&mut Self>) -> Progress {
        let Some(client) = client else {
            return pending().await;
        };
        if client.waiting.is_empty() {
            client.sender.closed().await;
            return Progress::Gone;
        }
        match client.sender.reserve().await {
            Ok(permit) => {
                let Some((response, piece)) = client.waiting.pop_front() else {
                    return Progress::Took(None);
                };
                permit.send(Ok(response));
                Progress::Took(piece)
            }
            Err(_) => Progress::Gone,
        }
    }

    /// Ends with an error, behind what it was told.
    pub(super) async fn fail(self, status: Status) {
        // It may be gone, and then nobody is to be told.
        let _ = self.sender.send(Err(status)).await;
    }
}
