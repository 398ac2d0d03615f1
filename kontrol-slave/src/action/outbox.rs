//! What one action has to tell its master: that it started, its output, its end. It only decides: no clock, no IO.
//!
//! ```text
//! command ──▶ [ taken | on its way | not sent ] ──▶ channel
//!             credit ┘            └ cursor        at most `window` bytes and PIECES pieces that were not taken
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
/// Most pieces that were not taken, however small.
const PIECES: usize = 32;
/// How much of an ended action's output may wait without holding up the next one.
const SMALL_BYTES: u64 = 4 * 1024;

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
            // What is too much is thrown away.
            return PIECE_BYTES;
        }
        usize::try_from(self.free())
            .unwrap_or(usize::MAX)
            .min(PIECE_BYTES)
    }

    /// How many more bytes the window holds.
    fn free(&self) -> u64 {
        if self.pieces.len() >= PIECES {
            return 0;
        }
        self.window.saturating_sub(self.waiting)
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

    /// Whether what is left of an ended action is too little to hold up others.
    pub(super) fn is_small(&self) -> bool {
        self.ended.is_some() && self.waiting <= SMALL_BYTES
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
        let end = self.ended.is_some() && !self.told_end;
        self.asked && (start || self.sent < self.pieces.len() || end)
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
        if let Some(piece) = self.pieces.get(self.sent) {
            self.sent += 1;
            return Some(Event::Output(Output {
                action_id,
                stream: piece.stream.into(),
                offset: piece.offset,
                data: piece.data.clone(),
                truncated: piece.truncated,
            }));
        }
        let mut result = self.ended.clone().filter(|_| !self.told_end)?;
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
mod tests {
    use super::*;
    use kontrol_proto::v1::Outcome;
    use proptest::prelude::*;

    fn outbox(window: u32, max_output: u64) -> Outbox {
        Outbox::new("id", window, max_output)
    }

    fn write(outbox: &mut Outbox, stream: Stream, text: &'static str) {
        outbox.write(stream, Bytes::from_static(text.as_bytes()));
    }

    /// What comes out, in short.
    fn drain(outbox: &mut Outbox) -> Vec<String> {
        let events = std::iter::from_fn(|| outbox.next());
        events
            .map(|event| match event {
                Event::Started(_) => "started".to_owned(),
                Event::Output(output) => format!(
                    "{}{}:{}{}",
                    output.stream,
                    output.offset,
                    str::from_utf8(&output.data).unwrap(),
                    if output.truncated { "…" } else { "" }
                ),
                Event::Finished(_) => "finished".to_owned(),
                Event::Hello(_) | Event::Unknown(_) => panic!("{event:?}"),
            })
            .collect()
    }

    #[test]
    fn output_goes_as_it_comes_and_the_end_behind_it() {
        let mut outbox = outbox(100, 100);
        outbox.start();
        write(&mut outbox, Stream::Stdout, "ab");
        write(&mut outbox, Stream::Stderr, "x");
        write(&mut outbox, Stream::Stdout, "c");
        outbox.end(ActionResult::default());
        assert_eq!(
            drain(&mut outbox),
            ["started", "10:ab", "20:x", "12:c", "finished"]
        );
        assert!(outbox.is_told() && !outbox.has_next());
    }

    #[test]
    fn what_was_not_taken_is_told_again_and_only_when_asked() {
        let mut outbox = outbox(100, 100);
        outbox.start();
        for text in ["ab", "cd", "ef"] {
            write(&mut outbox, Stream::Stdout, text);
        }
        drain(&mut outbox);
        outbox.credit(3, 0);
        outbox.broke();
        write(&mut outbox, Stream::Stdout, "gh");
        assert_eq!(drain(&mut outbox), [""; 0]);
        outbox.resume(3, 0);
        assert_eq!(drain(&mut outbox), ["started", "13:d", "14:ef", "16:gh"]);
    }

    #[test]
    fn a_full_window_leaves_no_room_until_something_is_taken() {
        let mut outbox = outbox(4, 100);
        assert_eq!(outbox.room(Stream::Stdout), 4);
        write(&mut outbox, Stream::Stdout, "abcd");
        assert_eq!(
            (outbox.room(Stream::Stdout), outbox.room(Stream::Stderr)),
            (0, 0)
        );
        drain(&mut outbox);
        outbox.credit(3, 0);
        assert_eq!(outbox.room(Stream::Stderr), 3);
        for _ in 0..PIECES {
            write(&mut outbox, Stream::Stderr, "");
        }
        assert_eq!(outbox.room(Stream::Stdout), 0, "too many small pieces");
    }

    #[test]
    fn what_is_too_much_is_marked_once_counted_and_takes_no_room() {
        let mut outbox = outbox(100, 3);
        write(&mut outbox, Stream::Stdout, "abc");
        write(&mut outbox, Stream::Stdout, "d");
        write(&mut outbox, Stream::Stdout, "ef");
        outbox.end(ActionResult::default());
        assert_eq!(drain(&mut outbox), ["10:abc", "13:…", "finished"]);
        let result = outbox.ended.clone().unwrap();
        assert_eq!((result.stdout_bytes, result.truncated), (6, true));
        assert_eq!(outbox.room(Stream::Stdout), PIECE_BYTES);
        outbox.resume(3, 0);
        assert_eq!(
            drain(&mut outbox),
            ["13:…", "finished"],
            "the mark is told again"
        );
    }

    #[test]
    fn what_nobody_takes_is_thrown_away_behind_a_mark_where_the_window_is_full() {
        let mut outbox = outbox(4, 100);
        write(&mut outbox, Stream::Stdout, "abc");
        outbox.discard();
        assert_eq!(outbox.room(Stream::Stdout), PIECE_BYTES);
        write(&mut outbox, Stream::Stdout, "def");
        write(&mut outbox, Stream::Stdout, "g");
        write(&mut outbox, Stream::Stderr, "x");
        outbox.end(ActionResult::default());
        assert_eq!(drain(&mut outbox), ["10:abc", "13:d…", "20:…", "finished"]);
        let result = outbox.ended.unwrap();
        let bytes = (result.stdout_bytes, result.stderr_bytes);
        assert_eq!((bytes, result.truncated), ((7, 1), true));
    }

    #[test]
    fn the_first_end_counts() {
        let mut outbox = outbox(1, 1);
        for outcome in [Outcome::TimedOut, Outcome::Exited] {
            outbox.end(ActionResult {
                outcome: outcome.into(),
                ..ActionResult::default()
            });
        }
        assert_eq!(outbox.ended.unwrap().outcome(), Outcome::TimedOut);
    }

    proptest! {
        /// Whatever breaks when: a receiver that drops what it had sees both streams whole and in order.
        #[test]
        fn the_receiver_sees_everything_once(
            steps in prop::collection::vec((0_u8..6, 1_usize..6), 0..200),
            window in 1_u32..20,
        ) {
            let text: Vec<u8> = (0..=255).collect();
            let mut outbox = outbox(window, 1000);
            outbox.start();
            let mut written = [0_usize; 2];
            let mut received = [Vec::new(), Vec::new()];
            let mut taken = [0_u64; 2];
            let index = |stream: Stream| usize::from(stream == Stream::Stderr);
            let receive = |outbox: &mut Outbox, received: &mut [Vec<u8>; 2]| {
                if let Some(Event::Output(output)) = outbox.next() {
                    let received = &mut received[index(output.stream())];
                    let known = received.len() - usize::try_from(output.offset).unwrap();
                    received.extend(output.data.iter().skip(known));
                }
            };
            for (what, size) in steps {
                match what {
                    0 | 1 => {
                        let stream = if what == 0 { Stream::Stdout } else { Stream::Stderr };
                        let at = written[index(stream)];
                        let size = size.min(outbox.room(stream)).min(text.len() - at);
                        if size > 0 {
                            outbox.write(stream, Bytes::copy_from_slice(&text[at..at + size]));
                            written[index(stream)] += size;
                        }
                        prop_assert!(outbox.waiting <= u64::from(window));
                    }
                    2 => receive(&mut outbox, &mut received),
                    3 => {
                        let both = &mut taken;
                        for (taken, received) in both.iter_mut().zip(&received) {
                            *taken = (*taken + size as u64).min(received.len() as u64);
                        }
                        outbox.credit(taken[0], taken[1]);
                    }
                    4 => outbox.broke(),
                    _ => outbox.resume(taken[0], taken[1]),
                }
            }
            outbox.resume(taken[0], taken[1]);
            while outbox.has_next() {
                receive(&mut outbox, &mut received);
            }
            for (received, written) in received.iter().zip(written) {
                prop_assert_eq!(&received[..], &text[..written]);
            }
        }
    }
}
