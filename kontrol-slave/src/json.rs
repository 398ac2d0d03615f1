//! JSON as Kontrol measures it, for slaves and masters alike: canonical (RFC 8785), bounded in depth, and with numbers
//! that are kept. PURE. One limit on one form: what passes here passes at the masters.

use serde_json::Value;

/// How deep JSON from outside may nest. Protobuf readers stop at 100 levels, and each level of JSON takes three of them.
pub const MAX_DEPTH: usize = 30;
/// The most digits of an integer that are compared: the largest double has 309.
const MAX_DIGITS: usize = 309;

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

/// A number that a double changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inexact {
    /// Where it stands, as in `a.b[2]`; empty when it is the whole value.
    pub path: String,
    /// The number as it was written, cut to a length that fits a line.
    pub number: String,
}

/// One level of a path.
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// The first number in a JSON text that is an integer no double holds. The text is valid JSON: a parser read it before,
/// which rounds such numbers, so that only the text still has them.
pub fn inexact(text: &str) -> Option<Inexact> {
    let bytes = text.as_bytes();
    let mut path: Vec<Step<'_>> = Vec::new();
    // A string stands for a field's name where the last thing before it was `{` or, in an object, a comma.
    let mut name_next = false;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = string_end(bytes, at);
                if name_next && let Some(Step::Field(name)) = path.last_mut() {
                    *name = &text[at + 1..end];
                    name_next = false;
                }
                at = end;
            }
            b'{' => {
                path.push(Step::Field(""));
                name_next = true;
            }
            b'[' => path.push(Step::Item(0)),
            b'}' | b']' => {
                path.pop();
                name_next = false;
            }
            b',' => match path.last_mut() {
                Some(Step::Item(index)) => *index += 1,
                Some(Step::Field(_)) => name_next = true,
                None => {}
            },
            b'-' | b'0'..=b'9' => {
                let rest = &text[at..];
                let end =
                    rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
                let number = &rest[..end.unwrap_or(rest.len())];
                if !is_kept(number) {
                    return Some(Inexact {
                        path: show(&path),
                        number: number.chars().take(40).collect(),
                    });
                }
                at += number.len() - 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the string that starts here ends: the place of its closing quote.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn show(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Item(index) => text += &format!("[{index}]"),
            Step::Field(name) if text.is_empty() => text += name,
            Step::Field(name) => text += &format!(".{name}"),
        }
    }
    text
}

/// Whether a number is no integer, or one that comes back from a double as it was written. `1.5e3` is an integer, and `10e-1` is.
fn is_kept(number: &str) -> bool {
    let number = number.strip_prefix('-').unwrap_or(number);
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else {
        return true;
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    let significant = significant.trim_start_matches('0');
    // The value is `significant` times ten to the power of `places`.
    let places = exponent
        .saturating_sub(fraction.len() as i64)
        .saturating_add(zeros as i64);
    let Ok(places) = usize::try_from(places) else {
        return true;
    };
    if significant.is_empty() {
        return true;
    }
    if significant.len().saturating_add(places) > MAX_DIGITS {
        return false;
    }
    let integer = format!("{significant}{}", "0".repeat(places));
    // Either the double is that very integer, or what is written of it, with as few digits as tell it from others, is.
    integer
        .parse::<f64>()
        .is_ok_and(|double| format!("{double:.0}") == integer || double.to_string() == integer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_integer_that_no_double_holds_is_found_with_its_path() {
        for (text, path, number) in [
            ("9007199254740993", "", "9007199254740993"),
            ("[0, -9007199254740993]", "[1]", "-9007199254740993"),
            (
                r#"{"a":1,"b":{"c":[{},{"d":18446744073709551615}]}}"#,
                "b.c[1].d",
                "18446744073709551615",
            ),
            (
                r#"{"a":{"x":"}\"]"},"b" : 36893488147419103233 }"#,
                "b",
                "36893488147419103233",
            ),
            ("[9007199254740993.0]", "[0]", "9007199254740993.0"),
            ("[90071992547409930e-1]", "[0]", "90071992547409930e-1"),
            ("[9.007199254740993E+15]", "[0]", "9.007199254740993E+15"),
        ] {
            let found = inexact(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (found.path.as_str(), found.number.as_str()),
                (path, number),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_double_holds_and_what_is_no_integer_passes() {
        for text in [
            "9007199254740992",
            "9007199254740994",
            "-9007199254740992",
            "18446744073709551616",
            "1e20",
            "1e300",
            "0",
            "-0",
            "0.0",
            "0e9",
            "100",
            "10e-1",
            "0.1",
            "0.12345678901234567890123",
            "1e-400",
            r#""9007199254740993""#,
            r#"{"9007199254740993":"a\\"}"#,
            "null",
        ] {
            assert_eq!(inexact(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_64_bit_integer_is_found_exactly_when_a_double_changes_it(integer: i64) {
            let kept = i128::from(integer) == integer as f64 as i128;
            prop_assert_eq!(inexact(&integer.to_string()).is_none(), kept);
        }

        #[test]
        fn no_text_breaks_it(text in "[0-9eE.+\\-\\[\\]{}\",:\\\\ äx]{0,40}") {
            let _ = inexact(&text);
        }
    }
}
