//! Who ended a connection. A peer that closed it is gone or goes elsewhere, and its process may have died; a connection
//! that this side gave up (a time-out, a shutdown) says nothing of the peer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const OPEN: u8 = 0;
const BY_PEER: u8 = 1;
const BY_US: u8 = 2;

/// How the connection of a request ended. Every request carries it as an extension. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ending(Arc<AtomicU8>);

impl Ending {
    /// Whether this side gave the connection up, and the peer had not closed it before.
    pub fn is_by_us(&self) -> bool {
        self.0.load(Ordering::Acquire) == BY_US
    }

    /// The first one counts.
    fn set(&self, ending: u8) {
        let _ = self
            .0
            .compare_exchange(OPEN, ending, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The connection is given up, unless the peer has closed it.
    pub fn give_up(&self) {
        self.set(BY_US);
    }
}

/// How much was received of a connection. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Received {
    bytes: Arc<AtomicU64>,
    wanted: u64,
}

impl Received {
    /// Asks for so many more bytes than there were until now.
    pub fn after(&self, more: u64) -> Self {
        Self {
            bytes: Arc::clone(&self.bytes),
            wanted: self.bytes.load(Ordering::Relaxed) + more,
        }
    }

    /// Whether they have not come yet.
    pub fn is_missing(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < self.wanted
    }
}

/// A connection whose end is noted before anybody else learns of it.
#[derive(Debug)]
pub struct Observed<S> {
    stream: S,
    ending: Ending,
    received: Received,
}

impl<S> Observed<S> {
    /// The connection, where its end is noted, and how much of it is received.
    pub fn new(stream: S, ending: Ending) -> (Self, Received) {
        let received = Received::default();
        let observed = Self {
            stream,
            ending,
            received: received.clone(),
        };
        (observed, received)
    }

    fn judge<T>(&self, result: &Poll<io::Result<T>>) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if let Poll::Ready(Err(error)) = result
            && [BrokenPipe, ConnectionAborted, ConnectionReset].contains(&error.kind())
        {
            self.ending.set(BY_PEER);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = room - buffer.remaining();
        self.received
            .bytes
            .fetch_add(read as u64, Ordering::Relaxed);
        if matches!(result, Poll::Ready(Ok(()))) && room > 0 && read == 0 {
            self.ending.set(BY_PEER);
        }
        self.judge(&result);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_first_to_end_it_is_remembered() {
        let (mut peer, stream) = tokio::io::duplex(16);
        let ending = Ending::default();
        let (mut observed, received) = Observed::new(stream, ending.clone());
        assert!(!ending.is_by_us());
        peer.write_all(b"hello").await.unwrap();
        let more = received.after(5);
        assert!(more.is_missing());
        assert_eq!(observed.read(&mut [0; 8]).await.unwrap(), 5);
        assert!(!more.is_missing() && received.after(1).is_missing());
        drop(peer);
        assert_eq!(observed.read(&mut [0; 8]).await.unwrap(), 0);
        ending.give_up();
        assert!(!ending.is_by_us(), "the peer was first");

        let ending = Ending::default();
        ending.give_up();
        assert!(ending.is_by_us());
    }
}
