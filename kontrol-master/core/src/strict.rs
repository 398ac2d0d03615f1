//! A strict reader of JSON: what would change on its way, or be lost, is refused by its path. PURE.
//!
//! serde_json turns an integer beyond 64 bits into the nearest double, and of two members with one name it keeps the last:
//! whoever wrote them would not get them back. This reader hands out numbers as they stand in the text, knows the path of
//! each value, bounds how deep it goes, and refuses a name that an object has twice.

mod layout;
mod number;
mod reader;
#[cfg(test)]
mod tests;

use crate::json::MAX_DEPTH;
pub use layout::{compact, indented};
pub use number::{comes_back, integer};
pub use reader::{Fault, Kind, Reader};
use serde_json::Value;

/// Which numbers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// All that are within the range of doubles: for text that is kept as it is.
    Any,
    /// Those that come back from a double as they were written.
    Exact,
}

/// Reads one JSON value that goes through doubles, and nests no deeper than JSON may.
pub fn value(text: &[u8]) -> Result<Value, Fault> {
    let text = check(text, Numbers::Exact)?;
    serde_json::from_str(text).map_err(Fault::malformed)
}

/// Reads one JSON value that is kept as it was written, and nests no deeper than JSON may: the text, without the white
/// space between its parts.
pub fn exact(text: &[u8], numbers: Numbers) -> Result<String, Fault> {
    check(text, numbers).map(compact)
}

/// Checks that a text is one JSON value.
fn check(text: &[u8], numbers: Numbers) -> Result<&str, Fault> {
    let text = str::from_utf8(text).map_err(Fault::malformed)?;
    let mut reader = Reader::new(text, MAX_DEPTH);
    reader.skip(numbers)?;
    reader.end()?;
    Ok(text)
}
