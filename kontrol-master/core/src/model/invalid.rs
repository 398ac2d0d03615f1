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
            reason: reason.to_string(),
        }
    }
}

/// Reads a key that a caller gave in this field.
pub fn key(field: &str, text: &str) -> Result<PodKey, Invalid> {
    text.parse()
        .map_err(|error| Invalid::new(field, format!("{:?} {error}", clip(text))))
}

/// The start of a text from outside, short enough for a message.
pub fn clip(text: &str) -> &str {
    text.char_indices()
        .nth(64)
        .map_or(text, |(end, _)| &text[..end])
}
