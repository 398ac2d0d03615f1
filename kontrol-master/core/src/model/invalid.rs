//! What is wrong with a request: the field, and the reason.

use super::PodKey;
use std::fmt;

/// A field of a request that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct Invalid {
    /// The field as the .proto names it.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Invalid {
    /// A wrong field and the reason.
    pub fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: one_line(reason),
        }
    }
}

/// Reads a key that a caller gave in this field.
pub fn key(field: &str, text: &str) -> Result<PodKey, Invalid> {
    text.parse()
        .map_err(|error| Invalid::new(field, format!("{:?} {error}", clip(text))))
}

/// Longest message that holds a text from outside, in bytes: gRPC puts messages into headers, which have their limits.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A message as one line that ends somewhere.
pub fn one_line(message: impl fmt::Display) -> String {
    let mut line = String::new();
    for letter in message.to_string().chars() {
        if line.len() >= MAX_MESSAGE_BYTES {
            line.push('…');
            break;
        } else if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

/// The start of a text from outside, short enough for a message.
pub fn clip(text: &str) -> &str {
    text.char_indices()
        .nth(64)
        .map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_and_short_enough_for_a_header() {
        let reason = |text: &str| Invalid::new("id", text).reason;
        assert_eq!(reason("of \"ä\""), "of \"ä\"");
        assert_eq!(reason("a\nb\0\u{85}"), "a\\nb\\u{0}\\u{85}");
        let long = reason(&"ä".repeat(5000));
        assert!(long.ends_with('…') && long.len() < MAX_MESSAGE_BYTES + 8);
    }
}
