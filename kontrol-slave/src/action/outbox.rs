//! What one action has to tell its master: that it started, its output, its end. It only decides: no clock, no IO.
//!
//! ```text
//! command ──▶ [ taken | on its way | not sent ] ──▶ channel
//!             credit ┘            └ cursor        at most `window` bytes and PIECES pieces that were not taken, and what
//!                                                 the command left in its pipes
//! ```
//!
//! Invariant: whatever breaks, a receiver that drops what it had before sees each stream whole and in order, and the end
//! behind it.

use bytes::Bytes;
use kontrol_proto::v1::{
    ActionResult, Stream,
    attach_request::{Event, Finished, Output, Started},
};
use std::collections::VecDeque;

/// Most bytes in one piece of output.
pub(super) const PIECE_BYTES: usize = 32 * 1024;
/// Most pieces that were sent and not taken, however small; while the command runs, that were not taken at all.
const PIECES: usize = 32;
/// What a command that has ended may have left in its two pipes, which hold 64 KiB each, but up to 1 MiB if it asked for that
/// (F_SETPIPE_SZ).
const DRAIN_BYTES: u64 = 2 * 1024 * 1024;
const DRAIN_PIECES: usize = 512;

/// A piece of output.
#[derive(Debug)]
struct Piece {
    stream: Stream,
    offset: u64,
    data: Bytes,
    truncated: bool,
}

/// How far one stream is.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    /// What the command wrote.
    written: u64,
    /// What of it is passed on.
    kept: u64,
    /// The rest is not.
    cut: bool,
    /// What of it was taken, and is gone.
    taken: u64,
}

/// What one action has to tell.
#[derive(Debug)]
pub(super) struct Outbox {
    id: String,
    window: u64,
    /// How much more may wait.
    beyond: u64,
    most_pieces: usize,
    max_output: u64,
    /// Whether output for which the window has no room is thrown away.
    discards: bool,
    stdout: Progress,
    stderr: Progress,
    /// Whether somebody asked for what is gone.
    lacks: bool,
    /// What was not taken, in the order in which it was written.
    pieces: VecDeque<Piece>,
    /// Bytes in them.
    waiting: u64,
    /// How many of them were sent on this channel.
    sent: usize,
    started: bool,
    told_start: bool,
    ended: Option<ActionResult>,
    told_end: bool,
    /// Whether this channel asked for the action.
    asked: bool,
}

impl Outbox {
    /// Nothing to tell yet. `window`: bytes that may wait; `max_output`: bytes of each stream that are passed on.
    pub(super) fn new(id: &str, window: u32, max_output: u64) -> Self {
        Self {
            id: id.to_owned(),
            window: u64::from(window).max(1),
            beyond: 0,
            most_pieces: PIECES,
            max_output,
            discards: false,
            stdout: Progress::default(),
            stderr: Progress::default(),
            lacks: false,
            pieces: VecDeque::new(),
            waiting: 0,
            sent: 0,
            started: false,
            told_start: false,
            ended: None,
            told_end: false,
            asked: true,
        }
    }

    /// The action.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// From now on the command does not wait for what it wrote to be taken: more than the window holds is thrown away.
    pub(super) fn discard(&mut self) {
        self.discards = true;
    }

    /// The command has ended: what it left in its pipes is taken at once, beyond the window.
    pub(super) fn drain(&mut self) {
        self.beyond = DRAIN_BYTES;
        self.most_pieces += DRAIN_PIECES;
        self.discard();
    }

    /// Lets go of all output.
    pub(super) fn shed(&mut self) {
        self.lacks |= self.sent < self.pieces.len();
        self.pieces.clear();
        self.sent = 0;
        self.waiting = 0;
        for progress in [&mut self.stdout, &mut self.stderr] {
            progress.taken = progress.kept;
        }
    }

    fn progress(&mut self, stream: Stream) -> &mut Progress {
        match stream {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Unspecified => &mut self.stdout,
        }
    }

    /// The command started.
    pub(super) fn start(&mut self) {
        self.started = true;
    }

    /// How many bytes may be read of a stream now; 0: none before something is taken.
    pub(super) fn room(&self, stream: Stream) -> usize {
        let cut = match stream {
            Stream::Stderr => self.stderr.cut,
            Stream::Stdout | Stream::Unspecified => self.stdout.cut,
        };
        if cut || self.discards {
            // What is too much is thrown away. What isn't must fit into the window, or it could not be sent.
            let fits = cut || self.beyond == 0;
            return if fits {
                PIECE_BYTES
            } else {
                self.piece_bytes()
            };
        }
        usize::try_from(self.free())
            .unwrap_or(usize::MAX)
            .min(PIECE_BYTES)
    }

    fn piece_bytes(&self) -> usize {
        usize::try_from(self.window).map_or(PIECE_BYTES, |window| window.min(PIECE_BYTES))
    }

    /// How many more bytes may wait.
    fn free(&self) -> u64 {
        if self.pieces.len() >= self.most_pieces {
            return 0;
        }
        (self.window + self.beyond).saturating_sub(self.waiting)
    }

    /// The command wrote something, for which there was room.
    pub(super) fn write(&mut self, stream: Stream, mut data: Bytes) {
        let (max_output, free) = (self.max_output, self.free());
        let progress = self.progress(stream);
        progress.written += data.len() as u64;
        if progress.cut {
            return;
        }
        let most = (max_output - progress.kept).min(free);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let truncated = data.len() > most;
        data.truncate(most);
        let offset = progress.kept;
        progress.kept += data.len() as u64;
        progress.cut = truncated;
        self.waiting += data.len() as u64;
        self.pieces.push_back(Piece {
            stream,
            offset,
            data,
            truncated,
        });
    }

    /// The command ended, or will not start.
    pub(super) fn end(&mut self, result: ActionResult) {
        self.ended.get_or_insert(ActionResult {
            stdout_bytes: self.stdout.written,
            stderr_bytes: self.stderr.written,
            truncated: self.stdout.cut || self.stderr.cut,
            ..result
        });
    }

    /// How many bytes of output were not taken yet.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Everything up to these offsets was taken.
    pub(super) fn credit(&mut self, stdout: u64, stderr: u64) {
        let mut index = 0;
        let mut sent = 0;
        let before = self.sent;
        for (progress, taken) in [(&mut self.stdout, stdout), (&mut self.stderr, stderr)] {
            progress.taken = progress.taken.max(taken.min(progress.kept));
        }
        self.pieces.retain_mut(|piece| {
            let was_sent = index < before;
            index += 1;
            let taken = match piece.stream {
                Stream::Stderr => stderr,
                Stream::Stdout | Stream::Unspecified => stdout,
            };
            let known = usize::try_from(taken.saturating_sub(piece.offset)).unwrap_or(usize::MAX);
            // A mark without bytes is taken with the bytes before it, once it was sent.
            let all = known >= piece.data.len() && taken >= piece.offset;
            let gone = all && (was_sent || !piece.truncated);
            let part = piece.data.split_to(known.min(piece.data.len()));
            piece.offset += part.len() as u64;
            self.waiting -= part.len() as u64;
            sent += usize::from(was_sent && !gone);
            !gone
        });
        self.sent = sent;
    }

    /// The channel asks for the action, behind these offsets. Who asks for what was taken by another lacks it, and is told.
    pub(super) fn resume(&mut self, stdout: u64, stderr: u64) {
        // What was taken is gone for good, sent on this channel or not; a mark is told again.
        self.sent = 0;
        self.lacks |= stdout < self.stdout.taken || stderr < self.stderr.taken;
        self.credit(stdout, stderr);
        self.told_start = false;
        self.told_end = false;
        self.asked = true;
    }

    /// The channel asks for the action from wherever it is.
    pub(super) fn again(&mut self) {
        self.resume(0, 0);
    }

    /// The channel broke. The next one says where to go on.
    pub(super) fn broke(&mut self) {
        self.asked = false;
    }

    /// Whether this channel wants to hear of the action.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Whether there is something to send.
    pub(super) fn has_next(&self) -> bool {
        let start = self.started && !self.told_start;
        let end = self.ended.is_some() && !self.told_end && self.sent == self.pieces.len();
        self.asked && (start || self.next_piece().is_some() || end)
    }

    /// The next piece, if the window has room for it, or if so little is on its way that the master need not give credit for
    /// it: it does from a quarter of the window on.
    fn next_piece(&self) -> Option<&Piece> {
        let next = self.pieces.get(self.sent).filter(|_| self.sent < PIECES)?;
        let lengths = self.pieces.iter().map(|piece| piece.data.len() as u64);
        let on_its_way: u64 = lengths.take(self.sent).sum();
        let owes_no_credit = on_its_way < (self.window / 4).max(1);
        let fits = on_its_way + next.data.len() as u64 <= self.window;
        (owes_no_credit || fits).then_some(next)
    }

    /// The next message; it counts as sent.
    pub(super) fn next(&mut self) -> Option<Event> {
        if !self.asked {
            return None;
        }
        let action_id = self.id.clone();
        if self.started && !std::mem::replace(&mut self.told_start, true) {
            return Some(Event::Started(Started { action_id }));
        }
        if let Some(piece) = self.next_piece() {
            let output = Output {
                action_id,
                stream: piece.stream.into(),
                offset: piece.offset,
                data: piece.data.clone(),
                truncated: piece.truncated,
            };
            self.sent += 1;
            return Some(Event::Output(output));
        }
        let all_sent = self.sent == self.pieces.len();
        let mut result = self.ended.clone().filter(|_| all_sent && !self.told_end)?;
        result.truncated |= self.lacks;
        self.told_end = true;
        Some(Event::Finished(Finished {
            action_id,
            result: Some(result),
        }))
    }

    /// Whether the end was told on this channel.
    pub(super) fn is_told(&self) -> bool {
        self.told_end
    }
}

#[cfg(test)]
mod tests;
