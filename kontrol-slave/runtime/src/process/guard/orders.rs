//! What the guard is told, read from the control socket. What can't be understood means stop.

use super::super::control::{self, Order, Report};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{io, os::fd::AsFd};

/// The longest line that is ever sent is far below this.
const MAX_LINE_BYTES: usize = 4096;
/// The most bytes that come with a line.
const MAX_BYTES: usize = 16 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// What came through the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Order(Order),
    Gone,
}

/// What the program is to get, told before the first order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Preamble {
    /// Its environment, as the shim takes it; none: that of the guard.
    pub(super) environment: Option<Vec<u8>>,
    /// Its standard input; none: the file of the run directory, or nothing.
    pub(super) input: Option<Vec<u8>>,
}

/// Bytes that come with a line.
#[derive(Debug, Clone, Copy)]
enum Bytes {
    Environment(usize),
    Input(usize),
}

/// The orders that come through the control socket: standard input.
#[derive(Debug, Default)]
pub(super) struct Orders {
    buffer: Vec<u8>,
    /// Bytes that are still to come, before the next line.
    due: Option<Bytes>,
    pub(super) preamble: Preamble,
    closed: bool,
}

impl Orders {
    /// Waits for the first order.
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
        let mut chunk = vec![0; CHUNK_BYTES];
        match rustix::io::read(io::stdin().as_fd(), &mut chunk[..]) {
            // A process that died with something unread in its end of the socket.
            Ok(0) | Err(Errno::CONNRESET) => Ok(self.take(&[])),
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
        loop {
            if let Some(due) = self.due {
                let (Bytes::Environment(length) | Bytes::Input(length)) = due;
                if self.buffer.len() < length {
                    return told;
                }
                let bytes: Vec<u8> = self.buffer.drain(..length).collect();
                match due {
                    Bytes::Environment(_) => self.preamble.environment = Some(bytes),
                    Bytes::Input(_) => self.preamble.input = Some(bytes),
                }
                self.due = None;
            }
            let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
                break;
            };
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = str::from_utf8(&line[..end]).unwrap_or_default();
            self.due = announced(line);
            if self.due.is_none() {
                // What can't be understood must not keep a program alive.
                told.push(Told::Order(line.parse().unwrap_or(Order::Stop)));
            }
        }
        if self.buffer.len() > MAX_LINE_BYTES {
            self.buffer.clear();
            told.push(Told::Order(Order::Stop));
        }
        told
    }

    /// Whether the end of the stream has been read.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the process is gone, as far as can be known without waiting.
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

/// Tells the pid of the program's main process. The process may be gone, and then nobody is to be told.
pub(super) fn tell_pid(pid: i32) {
    let _ = rustix::io::write(io::stdin().as_fd(), format!("pid {pid}\n").as_bytes());
}

/// Tells what a program left behind that ended by itself.
pub(super) fn tell_left(names: &[String]) {
    if !names.is_empty() {
        let line = format!("{}{}\n", control::LEFT, names.join(" "));
        let _ = rustix::io::write(io::stdin().as_fd(), line.as_bytes());
    }
}

/// Tells how the program ended.
pub(super) fn tell(report: &Report) {
    let _ = rustix::io::write(io::stdin().as_fd(), format!("{report}\n").as_bytes());
}

/// What a line announces.
fn announced(line: &str) -> Option<Bytes> {
    let (name, length) = line.split_once(' ')?;
    let length = length.parse().ok().filter(|length| *length <= MAX_BYTES)?;
    match name {
        "environment" => Some(Bytes::Environment(length)),
        "input" => Some(Bytes::Input(length)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::control::Lease, *};

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
    fn bytes_come_before_the_first_order_in_whatever_pieces() {
        let stream = b"environment 8\nA=1\0B==\0input 6\nuntil\nuntil never\n";
        for piece in [1, 3, 7, 100] {
            let mut orders = Orders::default();
            let told: Vec<Told> = stream
                .chunks(piece)
                .flat_map(|bytes| orders.take(bytes))
                .collect();
            assert_eq!(told, [Told::Order(Order::Until(Lease::Forever))]);
            assert_eq!(
                orders.preamble.environment.as_deref(),
                Some(b"A=1\0B==\0".as_slice())
            );
            assert_eq!(
                orders.preamble.input.as_deref(),
                Some(b"until\n".as_slice())
            );
        }
    }

    #[test]
    fn what_is_not_understood_means_stop() {
        let mut orders = Orders::default();
        assert_eq!(orders.take(b"until soon\n"), [Told::Order(Order::Stop)]);
        assert_eq!(orders.take(b"\xff\n"), [Told::Order(Order::Stop)]);
        assert_eq!(
            orders.take(b"input 99999999999\n"),
            [Told::Order(Order::Stop)]
        );
        let endless = vec![b'x'; MAX_LINE_BYTES + 1];
        assert_eq!(orders.take(&endless), [Told::Order(Order::Stop)]);
        assert_eq!(orders.buffer.len(), 0);
    }
}
