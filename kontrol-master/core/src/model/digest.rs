//! The digest: MD5 of the PODS document.

use super::Pod;
use md5::{Digest as _, Md5};
use std::{fmt, str::FromStr, sync::Arc};

/// MD5 of the bytes of the PODS document. It tells rosters apart; nothing rests on MD5 being hard to forge.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    /// The digest of these pods, which must come in seq order.
    pub fn of<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> Self {
        let mut md5 = Md5::new();
        write_pods(pods, |bytes| md5.update(bytes));
        Self(md5.finalize().into())
    }

    /// The digest of a roster without pods.
    pub fn of_nothing() -> Self {
        Self::of(std::iter::empty())
    }
}

/// The PODS document: a canonical JSON array of these pods, which must come in seq order.
pub fn pods_document<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> Vec<u8> {
    let mut document = Vec::new();
    write_pods(pods, |bytes| document.extend_from_slice(bytes));
    document
}

fn write_pods<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>, mut write: impl FnMut(&[u8])) {
    write(b"[");
    for (index, pod) in pods.enumerate() {
        if index > 0 {
            write(b",");
        }
        write(pod.canonical());
    }
    write(b"]");
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not 32 hex digits")]
pub struct DigestError;

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(DigestError);
        }
        u128::from_str_radix(text, 16)
            .map(|value| Self(value.to_be_bytes()))
            .map_err(|_| DigestError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_pod;
    use proptest::prelude::*;

    #[test]
    fn nothing_has_the_digest_of_an_empty_array() {
        assert_eq!(
            Digest::of_nothing().to_string(),
            "d751713988987e9331980363e24189ce"
        );
    }

    #[test]
    fn only_32_hex_digits_are_a_digest() {
        assert!("d751713988987e9331980363e24189c".parse::<Digest>().is_err());
        assert!(
            "+751713988987e9331980363e24189ce"
                .parse::<Digest>()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn digest_is_the_md5_of_the_document_and_reads_back(pods in prop::collection::vec(any_pod(), 0..5)) {
            let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
            let digest = Digest::of(pods.iter());
            let document = pods_document(pods.iter());
            prop_assert_eq!(digest, Digest(Md5::digest(&document).into()));
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            let parsed: serde_json::Value = serde_json::from_slice(&document).unwrap();
            prop_assert_eq!(crate::json::canonical(&parsed), document);
        }
    }
}
