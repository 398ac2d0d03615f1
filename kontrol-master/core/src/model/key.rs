//! The key of a pod: its IP address as an unsigned integer in base 62.

use std::{fmt, net::IpAddr, str::FromStr};

const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Digits of 2^128 - 1 in base 62.
const MAX_DIGITS: usize = 22;

/// A pod's key: its IP address as an unsigned integer, shown in base 62 (`0-9a-zA-Z`, most significant digit first, no
/// padding). `172.16.123.1` is `39mysN`. An IPv4-mapped IPv6 address counts as its IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey(u128);

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// A character is not in the alphabet.
    #[error("has a character that is not one of 0-9, a-z, A-Z")]
    Digit,
    /// It is more than 128 bits can hold.
    #[error("is larger than any IP address")]
    TooLarge,
    /// It has zeros in front, which no key has.
    #[error("starts with a zero")]
    Padded,
}

impl PodKey {
    /// Some key, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub const ONE: Self = Self(1);

    /// The integer that the key stands for.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The key of that integer.
    pub fn from_u128(value: u128) -> Self {
        Self(value)
    }
}

impl From<IpAddr> for PodKey {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self(u128::from(ip.to_bits())),
            IpAddr::V6(ip) => Self(ip.to_bits()),
        }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0_u8; MAX_DIGITS];
        let mut start = MAX_DIGITS;
        let mut rest = self.0;
        loop {
            start -= 1;
            digits[start] = ALPHABET[(rest % 62) as usize];
            rest /= 62;
            if rest == 0 {
                break;
            }
        }
        f.pad(str::from_utf8(&digits[start..]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PodKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut value = 0_u128;
        for byte in text.bytes() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                b'A'..=b'Z' => byte - b'A' + 36,
                _ => return Err(KeyError::Digit),
            };
            value = value
                .checked_mul(62)
                .and_then(|value| value.checked_add(u128::from(digit)))
                .ok_or(KeyError::TooLarge)?;
        }
        match text.as_bytes() {
            [] => Err(KeyError::Empty),
            [b'0', _, ..] => Err(KeyError::Padded),
            _ => Ok(Self(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(ip: &str) -> String {
        PodKey::from(ip.parse::<IpAddr>().unwrap()).to_string()
    }

    #[test]
    fn addresses_have_the_promised_keys() {
        assert_eq!(key("172.16.123.1"), "39mysN");
        assert_eq!(key("10.0.0.1"), "blXcB");
        assert_eq!(key("255.255.255.255"), "4GFfc3");
        assert_eq!(key("127.0.0.1"), "2kce4N");
        assert_eq!(key("0.0.0.0"), "0");
        assert_eq!(key("::ffff:10.0.0.1"), "blXcB");
        assert_eq!(
            key("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            "7N42dgm5tFLK9N8MT7fHC7"
        );
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!("".parse::<PodKey>(), Err(KeyError::Empty));
        assert_eq!("a-b".parse::<PodKey>(), Err(KeyError::Digit));
        assert_eq!("0a".parse::<PodKey>(), Err(KeyError::Padded));
        assert_eq!(
            "7N42dgm5tFLK9N8MT7fHC8".parse::<PodKey>(),
            Err(KeyError::TooLarge)
        );
        assert_eq!(
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzz".parse::<PodKey>(),
            Err(KeyError::TooLarge)
        );
    }

    proptest! {
        #[test]
        fn every_key_reads_back(value: u128) {
            let key = PodKey::from_u128(value);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            if let Ok(key) = text.parse::<PodKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
