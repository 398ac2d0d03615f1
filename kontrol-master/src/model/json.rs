//! JSON as Kontrol writes and compares it: canonical (RFC 8785), bounded in depth, numbers by value. What is measured is
//! measured as slaves do, by the same code.

pub use kontrol_slave::json::{MAX_DEPTH, canonical, depth};
use serde_json::Value;

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
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Any JSON that can come in a payload.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| Value::from(n))),
            (-1_000_000_i64..1_000_000).prop_map(|n| Value::from(n as f64)),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

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
        fn canonical_text_reads_back_the_same_and_stays_the_same(value in any_json()) {
            let text = canonical(&value);
            let back: Value = serde_json::from_slice(&text).unwrap();
            prop_assert!(same(&value, &back), "{value} became {back}");
            prop_assert_eq!(canonical(&back), text);
        }
    }
}
