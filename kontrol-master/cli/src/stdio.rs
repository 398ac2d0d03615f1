//! The standard descriptors of a command, which block whatever their flags say.
//!
//! Whoever shares a pipe or a terminal with a command may have set it to `O_NONBLOCK`: a runtime such as node, an ssh
//! multiplexer, a CI runner. Then a write to a pipe that is full fails with `EAGAIN`, as does a read from one that is
//! empty. The flag belongs to all who share the pipe, so it is left as it is, and what would block is waited for.
//!
//! Nothing is buffered here: after an error, what std's own buffers had not written would be lost or written twice.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::{AsFd, BorrowedFd},
};

/// A descriptor that blocks.
#[derive(Debug)]
pub struct Blocking<F>(pub F);

impl<F: AsFd> Blocking<F> {
    /// Does what is ready, or waits until it is.
    fn wait_for<T>(
        &self,
        ready: PollFlags,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let descriptor = self.0.as_fd();
        loop {
            match call(descriptor) {
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&descriptor, ready)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
}

impl<F: AsFd> Write for Blocking<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait_for(PollFlags::OUT, |descriptor| {
            rustix::io::write(descriptor, bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: AsFd> Read for Blocking<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait_for(PollFlags::IN, |descriptor| {
            rustix::io::read(descriptor, &mut *bytes)
        })
    }
}

impl<F: AsFd> Blocking<F> {
    /// Whether it is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.0.as_fd().is_terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{
        fs::{OFlags, fcntl_getfl},
        pipe::{PipeFlags, pipe_with},
    };
    use std::thread;

    /// More than a pipe takes at once.
    const LENGTH: usize = 1 << 20;

    #[test]
    fn a_full_pipe_and_an_empty_one_are_waited_for_and_keep_their_flags() {
        let (reads, writes) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let sent: Vec<u8> = (0..LENGTH).map(|index| (index % 251) as u8).collect();
        let expected = sent.clone();
        // The reader starts first and finds the pipe empty; then the writer is faster and finds it full.
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            Blocking(reads).read_to_end(&mut received).unwrap();
            received
        });
        let mut writer = Blocking(writes);
        writer.write_all(&sent).unwrap();
        assert!(fcntl_getfl(&writer.0).unwrap().contains(OFlags::NONBLOCK));
        drop(writer);
        assert_eq!(reader.join().unwrap(), expected);
    }

    #[test]
    fn a_reader_that_went_away_is_an_error() {
        let (reads, writes) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        drop(reads);
        let error = Blocking(writes).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
