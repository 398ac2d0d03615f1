//! One stream of one target: what came in, in order and without repeats; what was taken; and its end, for the history.

use bytes::Bytes;
use std::collections::VecDeque;

/// After how many pieces credit is due, whatever their size: a slave waits for it after 32.
const PIECES: u32 = 8;

/// One stream of one target.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// How many bytes came in.
    received: u64,
    /// How many of them were taken.
    taken: u64,
    /// Taken since credit was given: bytes and pieces.
    owed: u64,
    owed_pieces: u32,
    /// The slave said that there will be no more.
    truncated: bool,
    /// Something is missing.
    pub(super) gap: bool,
    /// An adopted target: what came before it was adopted is not missing.
    from_anywhere: bool,
    tail: VecDeque<u8>,
}

impl Output {
    /// One that another master followed, with its end.
    pub(super) fn adopted(tail: String) -> Self {
        Self {
            from_anywhere: true,
            tail: tail.into_bytes().into(),
            ..Self::default()
        }
    }

    /// How many bytes came in and were not taken.
    pub(super) fn on_its_way(&self) -> u64 {
        self.received.saturating_sub(self.taken)
    }

    /// What of a piece is new, and whether it says so first that there will be no more; nothing when it was here before.
    pub(super) fn receive(
        &mut self,
        offset: u64,
        mut data: Bytes,
        truncated: bool,
    ) -> Option<(Bytes, bool)> {
        if std::mem::take(&mut self.from_anywhere) {
            self.received = offset;
            self.taken = offset;
            // The slave tells again what the tail has, from wherever the other master had given credit.
            self.tail.clear();
        }
        if offset > self.received {
            self.gap = true;
            self.taken = self.taken.saturating_add(offset - self.received);
            self.received = offset;
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
        let data = data.split_off(known.min(data.len()));
        self.received = self.received.saturating_add(data.len() as u64);
        let news = truncated && !self.truncated;
        self.truncated |= truncated;
        (!data.is_empty() || news).then_some((data, news))
    }

    /// Whether its end came without all of its bytes: another master may have taken the last ones.
    pub(super) fn lacks_some_of(&self, bytes: u64) -> bool {
        self.gap || (!self.from_anywhere && self.received < bytes)
    }

    /// Keeps the end of what was received, `most` bytes of it.
    pub(super) fn keep(&mut self, data: &[u8], most: usize) {
        self.tail.extend(&data[data.len().saturating_sub(most)..]);
        let extra = self.tail.len().saturating_sub(most);
        self.tail.drain(..extra);
    }

    /// A piece was taken.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u64);
        self.owed = self.owed.saturating_add(bytes as u64);
        self.owed_pieces += 1;
    }

    /// How many bytes were taken; the slave is told.
    pub(super) fn tell_taken(&mut self) -> u64 {
        self.owed = 0;
        self.owed_pieces = 0;
        self.taken
    }

    /// The end of it, as text.
    pub(super) fn tail(&self) -> String {
        let (front, back) = self.tail.as_slices();
        let text = String::from_utf8_lossy(&[front, back].concat()).into_owned();
        // A character that was cut is no text.
        text.trim_start_matches(char::REPLACEMENT_CHARACTER)
            .to_owned()
    }
}

/// Whether the slave should be told what was taken of its two streams.
pub(super) fn is_due(streams: [&Output; 2], window: u64) -> bool {
    let pieces: u32 = streams.iter().map(|stream| stream.owed_pieces).sum();
    let bytes: u64 = streams.iter().map(|stream| stream.owed).sum();
    pieces >= PIECES || bytes >= (window / 4).max(1)
}
