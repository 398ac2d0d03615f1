//! The way to somebody who reads a stream.

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// The bounded queue to the reader of a stream. Sending never waits. Dropping this cuts the stream off, even if others
/// still hold the queue.
#[derive(Debug)]
pub struct Outlet<T> {
    queue: mpsc::Sender<Result<T, Status>>,
    _cut: DropGuard,
}

/// Why a message was not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The reader does not read.
    Full,
    /// The reader is gone.
    Gone,
}

impl<T> Outlet<T> {
    /// An outlet to that queue, and what tells that it was dropped.
    pub fn new(queue: mpsc::Sender<Result<T, Status>>) -> (Self, CancellationToken) {
        let cut = CancellationToken::new();
        let outlet = Self {
            queue,
            _cut: cut.clone().drop_guard(),
        };
        (outlet, cut)
    }

    /// Sends a message.
    pub fn send(&self, message: T) -> Result<(), Unsent> {
        self.queue
            .try_send(Ok(message))
            .map_err(|unsent| match unsent {
                TrySendError::Full(_) => Unsent::Full,
                TrySendError::Closed(_) => Unsent::Gone,
            })
    }

    /// Ends the stream with a reason, if there is room for it.
    pub fn end(self, reason: Status) {
        let _ = self.queue.try_send(Err(reason));
    }

    /// How many more messages there is room for.
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }
}
