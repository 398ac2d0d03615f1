//! What the master says to the guard, read from the control pipe. What can't be understood means stop.

use super::super::control::Order;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{io, os::fd::AsFd};

/// The longest line that the master ever sends is far below this.
const MAX_LINE_BYTES: usize = 4096;

/// What came from the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Order(Order),
    Gone,
}

/// The orders that come through the control pipe: standard input.
#[derive(Debug, Default)]
pub(super) struct Orders {
    buffer: Vec<u8>,
    closed: bool,
}

impl Orders {
    /// Waits for the first word of the master.
    pub(super) fn wait_first(&mut self) -> io::Result<Told> {
        loop {
            // The last of several lines is the newest; nothing has begun that an earlier one could be about.
            if let Some(told) = self.read()?.pop() {
                return Ok(told);
            }
        }
    }

    /// Reads once, which blocks when there is nothing.
    pub(super) fn read(&mut self) -> io::Result<Vec<Told>> {
        let mut chunk = [0; MAX_LINE_BYTES];
        match rustix::io::read(io::stdin().as_fd(), &mut chunk[..]) {
            Ok(0) => Ok(self.take(&[])),
            Ok(length) => Ok(self.take(&chunk[..length])),
            Err(Errno::INTR | Errno::AGAIN) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what was read; nothing is the end.
    fn take(&mut self, bytes: &[u8]) -> Vec<Told> {
        if bytes.is_empty() {
            self.closed = true;
            return vec![Told::Gone];
        }
        self.buffer.extend_from_slice(bytes);
        let mut told = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let order = str::from_utf8(&line[..end])
                .ok()
                .and_then(|l| l.parse().ok());
            // What can't be understood must not keep a program alive.
            told.push(Told::Order(order.unwrap_or(Order::Stop)));
        }
        if self.buffer.len() > MAX_LINE_BYTES {
            self.buffer.clear();
            told.push(Told::Order(Order::Stop));
        }
        told
    }

    /// Whether the pipe's end has been read.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the master is gone, as far as can be known without waiting.
    pub(super) fn is_over(&mut self) -> bool {
        let stdin = io::stdin();
        let now = Timespec::default();
        while !self.closed {
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0) || self.read().is_err()
            {
                break;
            }
        }
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::control::Lease;
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut orders = Orders::default();
        assert_eq!(orders.take(b"until nev"), []);
        assert_eq!(
            orders.take(b"er\nuntil 5 7\nst"),
            [
                Told::Order(Order::Until(Lease::Forever)),
                Told::Order(Order::Until(Lease::Until { soft: 5, hard: 7 })),
            ]
        );
        assert_eq!(orders.take(b"op\n"), [Told::Order(Order::Stop)]);
        assert_eq!(orders.take(b""), [Told::Gone]);
        assert!(orders.closed);
    }

    #[test]
    fn what_is_not_understood_means_stop() {
        let mut orders = Orders::default();
        assert_eq!(orders.take(b"until soon\n"), [Told::Order(Order::Stop)]);
        assert_eq!(orders.take(b"\xff\n"), [Told::Order(Order::Stop)]);
        let endless = vec![b'x'; MAX_LINE_BYTES + 1];
        assert_eq!(orders.take(&endless), [Told::Order(Order::Stop)]);
        assert_eq!(orders.buffer.len(), 0);
    }
}
