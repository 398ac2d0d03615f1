//! What must hold of what a callback's program writes, whatever it is.

use super::output::{Lines, MAX_LINE_BYTES, state};
use kontrol_core::{fuzz::said, model::exact::MAX_STATE_BYTES};

/// Standard output is a state that stays as it is, or a reason in one line; standard error is lines of bounded length, however
/// its bytes arrive.
pub fn callback_output(data: &[u8]) {
    match state(data) {
        Ok(None) => assert!(data.trim_ascii().is_empty()),
        Ok(Some(read)) => {
            assert!(read.as_str().len() <= MAX_STATE_BYTES);
            let again = state(read.as_str().as_bytes());
            assert_eq!(again.as_ref(), Ok(&Some(read.clone())));
            // The text may have numbers that no value has.
            let value = read.to_value();
            assert!(
                serde_json::from_str::<serde_json::Value>(read.as_str()).is_ok_and(|v| v == value)
            );
        }
        Err(reason) => said(reason),
    }
    let mut whole = Lines::default();
    let expected: Vec<_> = whole.push(data).into_iter().chain(whole.end()).collect();
    for line in &expected {
        assert!(!line.is_empty() && !line.contains('\n'));
        // What is no text takes three bytes for each.
        assert!(line.len() <= 3 * MAX_LINE_BYTES + " [cut]".len());
    }
    let size = data.first().map_or(1, |first| usize::from(*first) + 1);
    let mut pieces = Lines::default();
    let mut lines: Vec<_> = data
        .chunks(size)
        .flat_map(|piece| pieces.push(piece))
        .collect();
    lines.extend(pieces.end());
    assert_eq!(lines, expected);
}
