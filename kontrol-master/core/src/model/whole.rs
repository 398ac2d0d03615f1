//! A `u64` in JSON that nobody rounds: a number where every reader takes it as it is, else a text of digits.

use crate::limits::MAX_SAFE_INTEGER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Number(u64),
    Digits(String),
}

/// Writes it, for `serde(with)`.
pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let form = if *value <= MAX_SAFE_INTEGER {
        Form::Number(*value)
    } else {
        Form::Digits(value.to_string())
    };
    form.serialize(serializer)
}

/// Reads it, for `serde(with)`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Form::deserialize(deserializer)? {
        Form::Number(value) => Ok(value),
        Form::Digits(digits) => digits.parse().map_err(serde::de::Error::custom),
    }
}
