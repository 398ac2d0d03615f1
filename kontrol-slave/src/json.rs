//! JSON as Kontrol measures it, for slaves and masters alike: canonical (RFC 8785), bounded in depth. PURE. One limit on
//! one form: what passes here passes at the masters.

use serde_json::Value;

/// How deep JSON from outside may nest. Protobuf readers stop at 100 levels, and each level of JSON takes three of them.
pub const MAX_DEPTH: usize = 30;

/// Writes a value as canonical JSON: sorted keys, no white space, numbers as ECMAScript writes them (RFC 8785).
pub fn canonical(value: &Value) -> Vec<u8> {
    // The only failures of RFC 8785 are numbers that no JSON text can hold, so that no `Value` holds them either.
    serde_json_canonicalizer::to_vec(value).unwrap_or_else(|_| value.to_string().into_bytes())
}

/// How deep a value nests; a scalar is 0.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}
