//! Makes lines of what a pod writes, wherever it was cut on its way.

/// A longer line is passed on in pieces, so that nobody can make this program hold more.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// The beginning of a line whose end is still to come: no more than the longest piece.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<u8>);

impl Held {
    /// Takes what comes next and passes on, without its end, each line that is complete or too long.
    pub(super) fn push(&mut self, data: &[u8], mut pass: impl FnMut(&[u8])) {
        for part in data.split_inclusive(|&byte| byte == b'\n') {
            let (part, complete) = match part.strip_suffix(b"\n") {
                Some(part) => (part, true),
                None => (part, false),
            };
            self.0.extend_from_slice(part);
            let mut line = self.0.as_slice();
            while line.len() > MAX_LINE_BYTES {
                let (piece, rest) = line.split_at(piece_length(line));
                pass(piece);
                line = rest;
            }
            if complete {
                pass(line);
                self.0.clear();
            } else {
                self.0.drain(..self.0.len() - line.len());
            }
        }
    }

    /// What is held when nothing more comes; nothing when the last line was complete.
    pub(super) fn rest(self) -> Option<Vec<u8>> {
        Some(self.0).filter(|rest| !rest.is_empty())
    }
}

/// The length of the longest piece that cuts no character.
fn piece_length(line: &[u8]) -> usize {
    match str::from_utf8(&line[..MAX_LINE_BYTES]) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Ok(_) | Err(_) => MAX_LINE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(parts: &[&[u8]]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let (mut held, mut lines) = (Held::default(), Vec::new());
        for part in parts {
            held.push(part, |line| lines.push(line.to_vec()));
        }
        (lines, held.rest())
    }

    #[test]
    fn a_line_comes_when_its_end_does() {
        assert_eq!(
            lines(&[b"a", b"b\n\nc\nd", b"e"]),
            (
                vec![b"ab".to_vec(), b"".to_vec(), b"c".to_vec()],
                Some(b"de".to_vec())
            )
        );
        assert_eq!(lines(&[b"a\n"]), (vec![b"a".to_vec()], None));
    }

    #[test]
    fn a_long_line_comes_in_pieces_that_cut_no_character() {
        let long = "x".repeat(MAX_LINE_BYTES - 1) + "é";
        let (pieces, rest) = lines(&[long.as_bytes(), b"\n"]);
        assert_eq!(pieces[0].len(), MAX_LINE_BYTES - 1);
        assert_eq!(pieces[1], "é".as_bytes());
        assert_eq!((pieces.len(), rest), (2, None));
        let exact = [b'x'; MAX_LINE_BYTES];
        assert_eq!(lines(&[&exact, b"\n"]), (vec![exact.to_vec()], None));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_little_is_held(
            parts in prop::collection::vec(prop::collection::vec(prop::sample::select(b"ab\n\xc3\xa9".to_vec()), 0..6000), 0..9),
        ) {
            let (mut held, mut passed) = (Held::default(), Vec::new());
            for part in &parts {
                held.push(part, |line| {
                    assert!(line.len() <= MAX_LINE_BYTES);
                    passed.extend_from_slice(line);
                });
                prop_assert!(held.0.len() <= MAX_LINE_BYTES);
            }
            passed.extend(held.rest().unwrap_or_default());
            let written: Vec<u8> = parts.concat().into_iter().filter(|&byte| byte != b'\n').collect();
            prop_assert_eq!(passed, written);
        }
    }
}
