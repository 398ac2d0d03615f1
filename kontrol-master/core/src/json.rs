//! JSON as Kontrol measures, writes and compares it: canonical (RFC 8785), bounded in depth, numbers by value. One limit on
//! one form, for slaves and masters alike.

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

/// How deep a text of JSON nests that was read before: only its brackets are looked at.
pub fn depth_of_text(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            // What a string holds means nothing here.
            b'"' => {
                while let Some(byte) = bytes.next()
                    && byte != b'"'
                {
                    if byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

/// Tells whether two values are the same to RFC 8785: `1` and `1.0` are, though serde_json tells them apart.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_white_space_is_gone() {
        let value = json!({"b": [1.0, 2.50, -0.0, 1e21], "a": "é\n\u{1f600}", "A": null});
        assert_eq!(
            String::from_utf8(canonical(&value)).unwrap(),
            "{\"A\":null,\"a\":\"é\\n\u{1f600}\",\"b\":[1,2.5,0,1e+21]}"
        );
    }

    #[test]
    fn depth_counts_levels() {
        assert_eq!(depth(&json!(1)), 0);
        assert_eq!(depth(&json!([])), 1);
        assert_eq!(depth(&json!({"a": [{"b": 1}]})), 3);
    }

    proptest! {
        #[test]
        fn a_text_is_as_deep_as_its_value(value in any_json()) {
            let text = String::from_utf8(canonical(&value)).unwrap();
            prop_assert_eq!(depth_of_text(&text), depth(&value));
        }

        #[test]
        fn canonical_text_reads_back_the_same_and_stays_the_same(value in any_json()) {
            let text = canonical(&value);
            let back: Value = serde_json::from_slice(&text).unwrap();
            prop_assert!(same(&value, &back), "{value} became {back}");
            prop_assert_eq!(canonical(&back), text);
        }
    }
}
