//! Where log lines go: to a thread that writes them, so that whoever stops reading them stops nothing but the log.
//!
//! ```text
//! any thread ──push──▶ lines that wait, bounded ──▶ the thread ──▶ standard error, which may take its time
//!                        └── no room: dropped and counted; told as soon as something is taken again
//! ```
//!
//! A line is kept whole or not at all. Nothing but the thread ever waits for the reader, and [`Sink::flush`] only within
//! its bounds. Not `tracing_appender::non_blocking`: its bound counts lines instead of bytes, it tells nobody what it
//! dropped, and at the end it prints to standard output when it can't flush.

use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How many bytes may wait. As many again may be on their way.
const MOST_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// What is written at once: so little is never mixed up in a pipe with what others write to it (PIPE_BUF in pipe(7)).
const PIECE_BYTES: usize = 4096;
/// How long a flush waits for a reader that takes nothing, and in all.
const STALLED: Duration = Duration::from_millis(200);
const FLUSH: Duration = Duration::from_secs(1);

/// Takes lines from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sink(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Something was written, or given up.
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the thread is about something that it took.
    writing: bool,
    /// How many pieces were written or given up.
    pieces: u64,
    /// Lines that were dropped since that was told last, and ever.
    untold: u64,
    dropped: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of the state can be left half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread. `report` is told how many lines were dropped, once that can be read; it may push.
    fn run(&self, mut writer: impl Write, report: impl Fn(u64)) {
        let mut chunk = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() {
                state.writing = false;
                self.moved.notify_all();
                state = self
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            mem::swap(&mut state.waiting, &mut chunk);
            drop(state);
            for piece in pieces(&chunk) {
                let written = writer.write_all(piece).and_then(|()| writer.flush());
                let mut state = self.lock();
                state.pieces += 1;
                let untold = if written.is_ok() {
                    mem::take(&mut state.untold)
                } else {
                    // Nobody reads, or the disk is full: the rest may fare better.
                    state.drop_lines(lines(piece));
                    0
                };
                drop(state);
                self.moved.notify_all();
                if untold > 0 {
                    report(untold);
                }
            }
            chunk.clear();
            chunk.shrink_to(PIECE_BYTES);
        }
    }
}

impl State {
    fn drop_lines(&mut self, count: u64) {
        self.untold += count;
        self.dropped += count;
    }
}

impl Sink {
    /// A sink and its thread. See [`Shared::run`].
    pub(super) fn new(
        writer: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        // It ends with the process, which may not wait for it: what it is about may never be taken.
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || own.run(writer, report))?;
        Ok(Self(shared))
    }

    /// Takes whole lines, if there is room for them.
    pub(super) fn push(&self, text: &[u8]) {
        let mut state = self.0.lock();
        if state.waiting.len() + text.len() > MOST_WAITING_BYTES {
            state.drop_lines(lines(text));
            return;
        }
        state.waiting.extend_from_slice(text);
        drop(state);
        self.0.filled.notify_one();
    }

    /// How many lines were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// Waits until everything was written, as long as something is taken, and not for long. Tells whether it was.
    pub(super) fn flush(&self) -> bool {
        let end = Instant::now() + FLUSH;
        let mut state = self.0.lock();
        let mut moved = (state.pieces, Instant::now());
        while state.writing || !state.waiting.is_empty() {
            if state.pieces != moved.0 {
                moved = (state.pieces, Instant::now());
            }
            let until = end.min(moved.1 + STALLED);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.moved.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// One event of `tracing` is one write, of whole lines.
impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.split_inclusive(|byte| *byte == b'\n').count() as u64
}

/// Whole lines together as long as they fit into a piece; a longer line alone.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let head = &bytes[..bytes.len().min(PIECE_BYTES)];
        let end = |piece: &[u8]| piece.iter().rposition(|byte| *byte == b'\n');
        let length = match end(head) {
            _ if head.len() == bytes.len() => head.len(),
            Some(at) => at + 1,
            None => bytes
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(bytes.len(), |at| at + 1),
        };
        let (piece, rest) = bytes.split_at(length);
        bytes = rest;
        Some(piece)
    })
}

/// Standard error, unbuffered, whoever else writes to it. It may be shared with somebody who made it non-blocking: then
/// this waits as if it was not.
#[derive(Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match io::stderr().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let stderr = io::stderr();
                    let mut room = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
                    // A signal may end the wait: then this looks again.
                    let _ = poll(&mut room, None);
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::net::UnixStream,
        sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    };

    const LONG: Duration = Duration::from_secs(30);

    /// A reader that takes a piece when it is told to, or fails to.
    struct Slow {
        taken: Sender<Vec<u8>>,
        turns: Receiver<io::Result<()>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever turns is gone at the end of a test; then everything is taken.
            self.turns.recv().unwrap_or(Ok(()))?;
            let _ = self.taken.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Scene {
        sink: Sink,
        turns: Sender<io::Result<()>>,
        taken: Receiver<Vec<u8>>,
        reports: Receiver<u64>,
    }

    impl Scene {
        fn new() -> Self {
            let ((taken, pieces), (turns, turned)) = (channel(), channel());
            let slow = Slow {
                taken,
                turns: turned,
            };
            let (report, reports) = channel();
            let sink = Sink::new(slow, move |count| assert!(report.send(count).is_ok())).unwrap();
            Self {
                sink,
                turns,
                taken: pieces,
                reports,
            }
        }

        fn take(&self) -> Vec<u8> {
            self.turns.send(Ok(())).unwrap();
            self.taken.recv_timeout(LONG).unwrap()
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_is_told_how_many() {
        let scene = Scene::new();
        let line = [vec![b'x'; PIECE_BYTES - 1], b"\n".to_vec()].concat();
        let fit = MOST_WAITING_BYTES / line.len();
        // At most as many wait, and as many again are with the thread.
        let pushed = 2 * fit + 1000;
        for _ in 0..pushed {
            scene.sink.push(&line);
        }
        let dropped = scene.sink.dropped();
        assert!(dropped >= 1000, "{dropped} were dropped");
        assert!(!scene.sink.flush(), "nobody took anything");
        assert_eq!(scene.take(), line);
        assert_eq!(scene.reports.recv_timeout(LONG), Ok(dropped));
        let kept = pushed as u64 - dropped;
        for _ in 1..kept {
            assert_eq!(scene.take(), line);
        }
        let none = scene.reports.recv_timeout(Duration::ZERO);
        assert_eq!(none, Err(RecvTimeoutError::Timeout), "it is told once");
        assert!(scene.sink.flush());
    }

    #[test]
    fn what_can_not_be_written_is_counted_and_the_next_line_is_tried() {
        let scene = Scene::new();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        scene.sink.push(b"one\ntwo\n");
        scene.turns.send(Err(full())).unwrap();
        while scene.sink.dropped() < 2 {
            thread::yield_now();
        }
        scene.sink.push(b"three\n");
        assert_eq!(scene.take(), b"three\n");
        assert_eq!(scene.reports.recv_timeout(LONG), Ok(2));
        assert!(scene.sink.flush());
    }

    #[test]
    fn pieces_are_whole_lines_that_no_pipe_tears() {
        let long = [vec![b'l'; 2 * PIECE_BYTES], b"\n".to_vec()].concat();
        let short = b"a line of some length\n".repeat(400);
        let text = [&short[..], &long, &short, b"no end"].concat();
        let mut whole = Vec::new();
        for piece in pieces(&text) {
            whole.extend_from_slice(piece);
            let ends = piece.ends_with(b"\n") || whole.len() == text.len();
            assert!(ends, "a line is torn");
            assert!(piece.len() <= PIECE_BYTES || lines(piece) == 1);
        }
        assert_eq!(whole, text);
        assert_eq!(lines(b"one\ntwo"), 2);
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let (writer, _reader) = UnixStream::pair().unwrap();
        let sink = Sink::new(writer, |_| {}).unwrap();
        let line = [vec![b'x'; 1000], b"\n".to_vec()].concat();
        while sink.dropped() < 10 {
            sink.push(&line);
        }
        assert!(!sink.flush());
    }
}
