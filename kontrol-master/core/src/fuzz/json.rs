//! The strict reader of JSON, held against serde_json. PURE.

use super::said;
use crate::{
    json::{MAX_DEPTH, canonical, depth, same},
    strict::{self, Numbers, compact, indented, integer},
};
use serde_json::Value;

/// Any JSON from outside: what is taken is kept, and what is refused is no JSON, or would be lost.
pub fn strict_json(data: &[u8]) {
    for numbers in [Numbers::Any, Numbers::Exact] {
        match strict::exact(data, numbers) {
            Ok(text) => kept(data, &text, numbers),
            Err(fault) => {
                said(&fault);
                let read = serde_json::from_slice::<Value>(data);
                assert!(!fault.malformed || read.is_err(), "JSON is refused");
            }
        }
    }
    match strict::value(data) {
        Ok(value) => {
            let text = canonical(&value);
            let back: Value = serde_json::from_slice(&text).expect("canonical JSON is JSON");
            assert!(same(&value, &back), "{value} became {back}");
            assert_eq!(canonical(&back), text, "canonical JSON stays as it is");
            assert_eq!(depth(&back), depth(&value));
        }
        Err(fault) => {
            said(&fault);
            assert_eq!(strict::exact(data, Numbers::Exact), Err(fault));
        }
    }
}

fn kept(data: &[u8], text: &str, numbers: Numbers) {
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("what is taken is JSON");
    let value = read(data);
    assert_eq!(read(text.as_bytes()), value, "white space means nothing");
    assert!(depth(&value) <= MAX_DEPTH, "it nests too deeply");
    assert_eq!(
        strict::exact(text.as_bytes(), numbers).as_deref(),
        Ok(text),
        "compact JSON stays as it is"
    );
    assert_eq!(compact(&indented(text)), text);
    let (numerals, colons) = scan(text);
    assert_eq!(colons, members(&value), "no member is lost");
    for numeral in numerals {
        check_number(numeral, numbers);
    }
}

/// The numbers of a compact text, and how many colons stand outside its strings.
fn scan(text: &str) -> (Vec<&str>, usize) {
    let (mut numerals, mut colons, mut rest) = (Vec::new(), 0, text);
    while let Some(first) = rest.bytes().next() {
        let length = match first {
            b'"' => {
                let mut bytes = rest.bytes().enumerate().skip(1);
                loop {
                    match bytes.next() {
                        Some((_, b'\\')) => drop(bytes.next()),
                        Some((at, b'"')) => break at + 1,
                        Some(_) => {}
                        None => break rest.len(),
                    }
                }
            }
            b'-' | b'0'..=b'9' => {
                let end = rest.find([',', ']', '}']).unwrap_or(rest.len());
                numerals.push(&rest[..end]);
                end
            }
            other => {
                colons += usize::from(other == b':');
                1
            }
        };
        rest = &rest[length..];
    }
    (numerals, colons)
}

fn members(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.len() + fields.values().map(members).sum::<usize>(),
        Value::Array(items) => items.iter().map(members).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn check_number(numeral: &str, numbers: Numbers) {
    let double: f64 = numeral.parse().expect("a number is within the doubles");
    assert!(double.is_finite());
    let whole = integer(numeral);
    // What needs no exponent can be read without any idea of one.
    if let Ok(plain) = numeral.parse::<i128>()
        && numeral.len() <= 38
    {
        assert_eq!(whole, Some(plain));
        let comes_back = plain == 0 || format!("{double}") == plain.to_string();
        assert!(numbers == Numbers::Any || comes_back, "{numeral} is lost");
    }
    if let Some(whole) = whole {
        assert_eq!(whole as f64, double, "{numeral} is {whole}");
    }
}
