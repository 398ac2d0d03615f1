//! What must hold of each parser of this crate, whatever comes in: the bodies of the fuzz targets in `tests/fuzz`, which the
//! tests of `kontrol-master` replay as well. PURE.
//!
//! A body takes any bytes and panics where something does not hold that every caller rests on.

mod json;
mod records;
mod selector;

pub use json::strict_json;
pub use records::{pods_record, store_record};
pub use selector::selector;

use crate::access::tokens::Tokens;
use crate::model::{Digest, PodKey, action::ActionId};
use std::{fmt, str::FromStr};

/// Longest error, in bytes: as the `grpc-message` of an answer it takes up to three times as many, and clients take headers of
/// 8 KiB (Java) or 16 KiB (h2).
pub const MAX_SAID: usize = 2048;

/// What is said to a person or written to a log: one line that ends somewhere.
pub fn said(error: impl fmt::Display) {
    let line = error.to_string();
    let length = line.len();
    assert!(length <= MAX_SAID, "an error of {length} bytes: {line}");
    assert!(
        !line.contains(char::is_control),
        "an error of several lines: {line:?}"
    );
}

/// The texts that inputs of several parts consist of, each ended by a NUL; absent ones are empty.
pub fn parts<const N: usize>(data: &[u8]) -> Option<[&str; N]> {
    let mut parts = str::from_utf8(data).ok()?.splitn(N, '\0');
    Some([(); N].map(|()| parts.next().unwrap_or_default()))
}

/// The file of tokens: each line that is read is shown so that it reads back, and what is wrong is told in one line that shows
/// no digest.
pub fn tokens(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Tokens::parse(text) {
        Ok(tokens) => {
            let lines: Vec<String> = tokens.entries().map(ToString::to_string).collect();
            assert_eq!(lines.len(), tokens.len());
            let again = Tokens::parse(&lines.join("\n")).expect("it was shown");
            for entry in tokens.entries() {
                assert_eq!(again.find(&entry.digest), Some(entry));
            }
        }
        Err(lines) => lines.into_iter().for_each(said),
    }
}

/// Keys, digests and ids of actions: what is read is what is shown.
pub fn ids(data: &[u8]) {
    fn reads_back<T>(text: &str) -> Option<T>
    where
        T: FromStr<Err: fmt::Display> + fmt::Display + fmt::Debug + PartialEq,
    {
        match text.parse::<T>() {
            Ok(id) => {
                assert_eq!(id.to_string().parse().ok().as_ref(), Some(&id));
                Some(id)
            }
            Err(error) => {
                said(error);
                None
            }
        }
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for shown in [
        reads_back::<PodKey>(text).map(|key| key.to_string()),
        reads_back::<ActionId>(text).map(|id| id.to_string()),
    ] {
        assert!(shown.is_none_or(|shown| shown == text));
    }
    let digest = reads_back::<Digest>(text);
    assert!(digest.is_none_or(|digest| digest.to_string() == text.to_ascii_lowercase()));
    if let Err(invalid) = crate::model::invalid::key("key", text) {
        said(invalid);
    }
}
