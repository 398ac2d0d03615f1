//! The way to somebody who reads a stream.

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// What goes to the reader of a stream: a bounded queue that nobody waits for. Dropped, it cuts the stream off, whoever else
/// holds on to its queue.
#[derive(Debug)]
pub struct Outlet<T> {
    queue: mpsc::Sender<Result<T, Status>>,
    _cut: DropGuard,
}

/// The reader does not read, or is gone.
#[derive(Debug)]
pub struct Full;

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
    pub fn send(&self, message: T) -> Result<(), Full> {
        self.queue.try_send(Ok(message)).map_err(|_| Full)
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
