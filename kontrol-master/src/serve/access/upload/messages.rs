//! Where messages end in the body of a gRPC stream.

use crate::serve::MESSAGE_PREFIX_BYTES as PREFIX_BYTES;

/// Finds the ends of the messages in the body of a gRPC stream.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// As much of a prefix as has come, where it has not come whole.
    prefix: Vec<u8>,
    /// How much has come of the message, and how much is missing.
    come: usize,
    missing: usize,
}

impl Messages {
    /// How much has come of what is not whole.
    pub(super) fn begun(&self) -> usize {
        self.prefix.len() + self.come
    }

    /// Goes on behind these bytes; tells whether a message has ended within them.
    pub(super) fn take(&mut self, mut data: &[u8]) -> bool {
        let mut ended = false;
        while !data.is_empty() {
            if self.missing > 0 {
                let part = self.missing.min(data.len());
                data = &data[part..];
                self.missing -= part;
                self.come += part;
            } else {
                let part = (PREFIX_BYTES - self.prefix.len()).min(data.len());
                self.prefix.extend_from_slice(&data[..part]);
                data = &data[part..];
                let Ok([_, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(&self.prefix[..]) else {
                    continue;
                };
                self.prefix.clear();
                self.come = PREFIX_BYTES;
                self.missing = u32::from_be_bytes(length) as usize;
            }
            if self.missing == 0 && self.prefix.is_empty() {
                self.come = 0;
                ended = true;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: u8) -> Vec<u8> {
        let mut message = vec![0, 0, 0, 0, bytes];
        message.extend(vec![7; bytes.into()]);
        message
    }

    #[test]
    fn messages_end_wherever_they_are_cut() {
        let bytes = [message(0), message(1), message(200), message(0), message(3)].concat();
        for size in 1..=bytes.len() {
            let mut messages = Messages::default();
            let ends = bytes.chunks(size).filter(|piece| messages.take(piece));
            assert!((1..=5).contains(&ends.count()), "{size}");
            assert_eq!(messages.begun(), 0, "{size}");
        }
    }
}
