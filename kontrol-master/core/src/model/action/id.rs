//! The id of an action: the time of its dispatch and a random number, so that ids sort by age and are never given twice.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Milliseconds since 1970 in 12 hex digits, and 64 random bits in 16.
const LENGTH: usize = 28;

/// The id of an action. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionId(Arc<str>);

/// A text that is no id of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not the id of an action: {LENGTH} hex digits")]
pub struct NotAnId;

impl ActionId {
    /// The id of an action that is dispatched at this time.
    pub fn new(now_ms: u64, luck: u64) -> Self {
        Self(format!("{:012x}{luck:016x}", now_ms & 0xffff_ffff_ffff).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ActionId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == LENGTH && text.bytes().all(is_hex) {
            Ok(Self(text.into()))
        } else {
            Err(NotAnId)
        }
    }
}

impl TryFrom<String> for ActionId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl From<ActionId> for String {
    fn from(id: ActionId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl Borrow<str> for ActionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_age_and_read_back() {
        let ids = [(1, u64::MAX), (2, 0), (1 << 40, 7)].map(|(ms, luck)| ActionId::new(ms, luck));
        assert!(ids.is_sorted());
        for id in ids {
            assert_eq!(id.as_str().parse(), Ok(id.clone()));
        }
        for text in ["", "x", &"0".repeat(27), &"G".repeat(28), &"A".repeat(28)] {
            assert_eq!(text.parse::<ActionId>(), Err(NotAnId), "{text}");
        }
    }
}
