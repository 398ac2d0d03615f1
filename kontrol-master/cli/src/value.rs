//! JSON that the user gives, as an argument or on standard input.

use super::error::CliError;
use kontrol_core::strict::{self, Fault, Numbers};
use std::io::{self, Read};

/// Most bytes that are read from standard input: the largest state or input, however it is written.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;
/// The protobuf message that holds any JSON.
pub(super) const VALUE: &str = "google.protobuf.Value";

/// What was given as `what`, JSON or `-` for what `input` holds, as it was written but for white space.
pub(super) fn given(
    what: &str,
    text: &str,
    numbers: Numbers,
    input: &mut dyn io::Read,
) -> Result<String, CliError> {
    let text = text_of(what, text, input)?;
    strict::exact(&text, numbers).map_err(|fault| wrong(what, &fault))
}

fn text_of(what: &str, text: &str, input: &mut dyn io::Read) -> Result<Vec<u8>, CliError> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut text = Vec::new();
    let length = input
        .take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| CliError::Usage(format!("cannot read {what}: {error}")))?;
    if length as u64 > MAX_INPUT_BYTES {
        return Err(CliError::Usage(format!(
            "{what} is longer than {MAX_INPUT_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn wrong(what: &str, fault: &Fault) -> CliError {
    CliError::Usage(if fault.malformed {
        format!("{what} must be one JSON value: {fault}")
    } else {
        format!("{what} can't be taken: {fault}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, CliError> {
        given("it", text, Numbers::Exact, &mut io::empty())
    }

    #[test]
    fn integers_that_would_change_are_refused_by_their_path() {
        for (text, path) in [
            ("9007199254740993", "it can't be taken: the number"),
            (
                "[{\"a\":18446744073709551615}]",
                "it can't be taken: [0].a: the number",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.message().unwrap();
            assert!(message.starts_with(path), "{message}");
            assert!(message.contains("does not fit a double"), "{message}");
        }
        for text in ["9007199254740992", "-1", "0.1", "1e300", "\"1\"", "null"] {
            assert!(parse(text).is_ok(), "{text}");
        }
        let text = "{\"id\": 18446744073709551616}";
        let kept = given("it", "-", Numbers::Any, &mut text.as_bytes()).unwrap();
        assert_eq!(kept, "{\"id\":18446744073709551616}");
    }

    #[test]
    fn what_is_no_single_json_value_is_refused() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        for text in ["", "{", "1 2", "{a:1}", &deep, r#"{"a":1,"a":2}"#] {
            for error in [
                parse(text).unwrap_err(),
                given("it", text, Numbers::Any, &mut io::empty()).unwrap_err(),
            ] {
                assert_eq!(error.exit_code(), 2, "{text}");
            }
        }
    }

    #[test]
    fn input_without_end_is_refused() {
        let error = given("it", "-", Numbers::Any, &mut io::repeat(b' ')).unwrap_err();
        let message = error.message().unwrap();
        assert!(message.starts_with("it is longer than"), "{message}");
    }
}
