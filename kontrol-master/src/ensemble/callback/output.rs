//! What the program writes: standard output becomes the new state, standard error becomes log lines. PURE.

use kontrol_core::model::Exact;

/// Longest line of standard error in the log; the rest of it is cut off.
pub(super) const MAX_LINE_BYTES: usize = 8 * 1024;
/// How much of an output that is no JSON the failure quotes.
const QUOTED_CHARS: usize = 40;

/// Reads the new state: one JSON value, or none when there is nothing but white space. The error is a reason to show.
pub(super) fn state(stdout: &[u8]) -> Result<Option<Exact>, String> {
    let text = stdout.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let state = Exact::read(text).map_err(|fault| {
        if fault.malformed {
            format!("{fault}; it wrote {}", quoted(stdout))
        } else {
            fault.to_string()
        }
    })?;
    match state.excess() {
        None => Ok(Some(state)),
        Some(excess) => Err(format!("what it wrote {excess}")),
    }
}

fn quoted(bytes: &[u8]) -> String {
    // More bytes than can matter, yet not a megabyte of them.
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * QUOTED_CHARS)]);
    let shown: String = head.chars().take(QUOTED_CHARS).collect();
    let dots = if shown.len() < bytes.len() { "..." } else { "" };
    format!("{shown:?}{dots}")
}

/// Cuts a stream into lines of bounded length.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    cut: bool,
}

impl Lines {
    /// Takes the next bytes and returns the lines that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) = match piece {
                [piece @ .., b'\n'] => (piece, true),
                _ => (piece, false),
            };
            let room = MAX_LINE_BYTES - self.line.len();
            self.cut |= piece.len() > room;
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if ends {
                lines.extend(self.end());
            }
        }
        lines
    }

    /// Ends the current line; none when it is empty.
    pub(super) fn end(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if std::mem::take(&mut self.cut) {
            line.push_str(" [cut]");
        }
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::{json, testing::any_json};
    use proptest::prelude::*;

    #[test]
    fn nothing_but_white_space_is_no_state() {
        assert_eq!(state(b""), Ok(None));
        assert_eq!(state(b" \r\n\t\n"), Ok(None));
    }

    #[test]
    fn one_json_value_is_the_state() {
        for (written, kept) in [
            (" {\"b\": 1,\n \"a\": [ ]}\n", r#"{"b":1,"a":[]}"#),
            ("null\n", "null"),
            (
                "{\"id\":18446744073709551616}",
                "{\"id\":18446744073709551616}",
            ),
            ("0.12345678901234567890", "0.12345678901234567890"),
        ] {
            let read = state(written.as_bytes()).unwrap().unwrap();
            assert_eq!(read.as_str(), kept);
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_short_reason() {
        for wrong in [
            &b"{\"a\":1} {\"b\":2}"[..],
            b"{\"a\":",
            b"hello world",
            b"\xff\xfe",
            b"NaN",
            b"1e999",
        ] {
            let reason = state(wrong).unwrap_err();
            assert!(reason.len() < 300 && !reason.contains('\n'), "{reason}");
        }
        let deep = [vec![b'['; 40], vec![b']'; 40]].concat();
        let reason = state(&deep).unwrap_err();
        assert!(
            reason.contains("nests too deeply: JSON may nest 30 levels"),
            "{reason}"
        );
        assert_eq!(
            state(br#"{"a":{"b":1,"b":2}}"#).unwrap_err(),
            "a.b: is given twice"
        );
        let large = format!("\"{}\"", "x".repeat(1024 * 1024));
        let reason = state(large.as_bytes()).unwrap_err();
        assert_eq!(
            reason,
            "what it wrote has 1048578 bytes of JSON, and 1048576 are the limit"
        );
        let long = state(&b"x\n".repeat(1000)).unwrap_err();
        assert!(long.ends_with("\"...") && long.len() < 300, "{long}");
    }

    #[test]
    fn a_long_line_is_cut_and_marked() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&[b'x'; MAX_LINE_BYTES - 1]), [""; 0]);
        assert_eq!(lines.push(b"yz"), [""; 0]);
        let cut = lines.push(&[&[b'z'; 100][..], b"\nnext\n"].concat());
        assert_eq!(cut.len(), 2);
        assert!(cut[0].ends_with("xy [cut]") && cut[0].len() == MAX_LINE_BYTES + 6);
        assert_eq!(cut[1], "next");
        assert_eq!(lines.end(), None);
    }

    #[test]
    fn a_last_line_without_an_end_is_a_line() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\n\ntw"), ["one"]);
        assert_eq!(lines.push(b"o"), [""; 0]);
        assert_eq!(lines.end().as_deref(), Some("two"));
    }

    proptest! {
        #[test]
        fn every_json_value_reads_back(value in any_json()) {
            let read = state(value.to_string().as_bytes()).unwrap().unwrap();
            prop_assert!(json::same(&read.to_value(), &value));
        }

        #[test]
        fn how_the_bytes_arrive_makes_no_difference(text in "[a-z \n]{0,200}", at in prop::collection::vec(0_usize..200, 0..5)) {
            let mut whole = Lines::default();
            let expected: Vec<_> = whole.push(text.as_bytes()).into_iter().chain(whole.end()).collect();
            let mut cuts: Vec<_> = at.into_iter().map(|at| at.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut pieces = Lines::default();
            let mut lines = Vec::new();
            for pair in cuts.windows(2) {
                lines.extend(pieces.push(&text.as_bytes()[pair[0]..pair[1]]));
            }
            lines.extend(pieces.end());
            prop_assert_eq!(lines, expected);
        }
    }
}
