//! The callback's state: JSON that comes back as it was written. PURE.

use crate::{
    json,
    strict::{Fault, Numbers, exact},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, value::RawValue};
use std::sync::Arc;

/// Largest state, in bytes of JSON: it must fit into one write of etcd (1.5 MiB by default).
pub const MAX_STATE_BYTES: usize = 1024 * 1024;

/// JSON text as it was written, without white space between its parts: every digit, the order of members and `null` are kept.
#[derive(Debug, Clone)]
pub struct Exact(Arc<RawValue>);

impl Exact {
    /// Reads a state: one JSON value whose numbers a double can hold, if not exactly.
    pub fn read(text: &[u8]) -> Result<Self, Fault> {
        let text = exact(text, Numbers::Any)?;
        let raw = RawValue::from_string(text).map_err(|error| Fault {
            path: String::new(),
            reason: error.to_string(),
            malformed: true,
        })?;
        Ok(Self(raw.into()))
    }

    /// A value as canonical JSON.
    pub fn of(value: &Value) -> Result<Self, Fault> {
        Self::read(&json::canonical(value))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The value, with the doubles that are nearest to its numbers.
    pub fn to_value(&self) -> Value {
        // It was read once: then it reads again.
        serde_json::from_str(self.as_str()).unwrap_or_default()
    }

    /// Why it is too large, if it is.
    pub fn excess(&self) -> Option<String> {
        let size = self.as_str().len();
        (size > MAX_STATE_BYTES)
            .then(|| format!("has {size} bytes of JSON, and {MAX_STATE_BYTES} are the limit"))
    }
}

impl PartialEq for Exact {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Exact {}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::read(raw.get().as_bytes()).map_err(de::Error::custom)
    }
}

/// Reads a field that is there: of `null`, an `Option` would make none.
pub fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Exact>, D::Error> {
    Exact::deserialize(field).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder {
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "present"
        )]
        state: Option<Exact>,
    }

    #[test]
    fn a_record_gives_back_what_was_put_and_tells_null_from_nothing() {
        for text in [
            r#"{"state":{"b":1795818574164123457,"a":[1.0,-0.0,1E5]}}"#,
            r#"{"state":123456789012345678901234567890}"#,
            r#"{"state":null}"#,
            r#"{"state":"null"}"#,
            "{}",
        ] {
            let holder: Holder = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&holder).unwrap(), text);
        }
        let read = |text| serde_json::from_str::<Holder>(text).unwrap();
        assert_eq!(read("{}").state, None);
        let null = read(r#"{"state": null}"#).state.unwrap();
        assert_eq!((null.as_str(), null.to_value()), ("null", Value::Null));
        let twice = serde_json::from_str::<Holder>(r#"{"state":{"a":1,"a":2}}"#);
        assert!(twice.unwrap_err().to_string().contains("a: is given twice"));
    }

    #[test]
    fn the_limit_counts_what_is_stored() {
        let spaced = format!("[{}0]", "0, ".repeat(MAX_STATE_BYTES / 2 - 2));
        let largest = Exact::read(spaced.as_bytes()).unwrap();
        assert_eq!(largest.as_str().len(), MAX_STATE_BYTES - 1);
        assert_eq!(largest.excess(), None);
        let larger = format!("[{}0]", "0,".repeat(MAX_STATE_BYTES / 2));
        let excess = Exact::read(larger.as_bytes()).unwrap().excess().unwrap();
        assert!(excess.starts_with("has 1048579 bytes"), "{excess}");
    }
}
