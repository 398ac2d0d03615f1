//! JSON that the user gives, as an argument or on standard input.

use super::{error::CliError, output::descriptor};
use prost_reflect::DynamicMessage;
use serde_json::{Number, Value};
use std::io::{self, Read};

/// Most bytes that are read from standard input.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;
/// The protobuf message that holds any JSON.
pub(super) const VALUE: &str = "google.protobuf.Value";

/// What was given as `what`: JSON, or `-` for what `input` holds.
pub(super) fn given(
    what: &str,
    text: &str,
    input: &mut dyn io::Read,
) -> Result<prost_types::Value, CliError> {
    match text {
        "-" => parse(what, &read(what, input)?),
        text => parse(what, text),
    }
}

fn read(what: &str, input: &mut dyn io::Read) -> Result<String, CliError> {
    let mut text = String::new();
    let length = input
        .take(MAX_INPUT_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| CliError::Usage(format!("cannot read {what}: {error}")))?;
    if length as u64 > MAX_INPUT_BYTES {
        return Err(CliError::Usage(format!(
            "{what} is longer than {MAX_INPUT_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn parse(what: &str, text: &str) -> Result<prost_types::Value, CliError> {
    let wrong = |reason: &dyn std::fmt::Display| {
        CliError::Usage(format!("{what} must be one JSON value: {reason}"))
    };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    if let Some(number) = inexact(&value) {
        return Err(CliError::Usage(format!(
            "the number {number} does not fit a double, which is what {what} holds: write it as a string"
        )));
    }
    DynamicMessage::deserialize(descriptor(VALUE)?, value)
        .map_err(|error| wrong(&error))?
        .transcode_to()
        .map_err(|error| wrong(&error))
}

/// An integer that a double can't hold.
fn inexact(value: &Value) -> Option<&Number> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => None,
        Value::Array(items) => items.iter().find_map(inexact),
        Value::Object(fields) => fields.values().find_map(inexact),
        Value::Number(number) => {
            let integer = number
                .as_i64()
                .map(i128::from)
                .or(number.as_u64().map(i128::from));
            integer
                .filter(|&integer| integer as f64 as i128 != integer)
                .map(|_| number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_that_a_double_cannot_hold_are_refused() {
        for text in ["9007199254740993", "[{\"a\":18446744073709551615}]"] {
            let error = parse("it", text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.message().unwrap();
            assert!(message.contains("does not fit a double"), "{message}");
        }
        for text in ["9007199254740992", "-1", "0.1", "1e300", "\"1\"", "null"] {
            assert!(parse("it", text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_single_json_value_is_refused() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        for text in ["", "{", "1 2", "{a:1}", &deep] {
            let error = parse("it", text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn input_without_end_is_refused() {
        let error = given("it", "-", &mut io::repeat(b' ')).unwrap_err();
        let message = error.message().unwrap();
        assert!(message.starts_with("it is longer than"), "{message}");
    }
}
