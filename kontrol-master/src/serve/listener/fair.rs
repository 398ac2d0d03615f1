//! Lets everybody have a turn: a peer that sends faster than its frames can be looked at would else keep its thread for as
//! long, and all others wait. Frames of HTTP/2 that cost a few bytes, PING or SETTINGS, come by the ten thousand.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of a connection is read before the next one has its turn.
const SLICE_BYTES: usize = 16 * 1024;

/// A connection that waits for its next turn after each slice that was read of it.
#[derive(Debug)]
pub(super) struct Fair<S> {
    stream: S,
    read: usize,
}

impl<S> Fair<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= SLICE_BYTES {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.read += buffer.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
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
    use std::cell::Cell;
    use tokio::{
        io::{AsyncReadExt, repeat},
        join,
        task::yield_now,
    };

    /// All of it is there at once, so that nothing but the turns lets the other one go on.
    #[tokio::test]
    async fn whoever_sends_without_end_leaves_turns_to_others() {
        const SLICES: usize = 100;
        let (turns, done) = (Cell::new(0), Cell::new(false));
        let flood = async {
            let mut flood = Fair::new(repeat(7));
            let mut read = 0;
            while read < SLICES * SLICE_BYTES {
                read += flood.read(&mut [0; 4096]).await.unwrap();
            }
            done.set(true);
        };
        let other = async {
            while !done.get() {
                turns.set(turns.get() + 1);
                yield_now().await;
            }
        };
        join!(flood, other);
        assert!(turns.get() >= SLICES, "{} turns", turns.get());
    }
}
