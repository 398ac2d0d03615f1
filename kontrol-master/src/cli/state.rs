//! `kontrol-master state`: the callback's persisted state, shown as it is, or replaced by another.
//!
//! What `state` prints, `state put -` takes.

use super::{
    ClientArgs,
    error::CliError,
    masters::Masters,
    output::{Format, Output, descriptor, json},
};
use clap::{Args, Subcommand};
use kontrol_proto::v1::{GetStateRequest, PutStateRequest};
use prost_reflect::DynamicMessage;
use serde_json::{Number, Value};
use std::io::{self, Read};

/// Largest state that is read from standard input.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;
const VALUE: &str = "google.protobuf.Value";

/// What to do with the state.
#[derive(Debug, Args)]
pub struct StateArgs {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// What to do with the state other than to show it.
#[derive(Debug, Subcommand)]
enum Change {
    /// Replace the state. The digest that was last handled stays: no callback runs for it
    Put {
        /// The new state as JSON, or - to read it from standard input
        #[arg(value_name = "JSON|-", allow_negative_numbers = true)]
        value: String,
    },
}

/// Shows the state, or changes it.
pub(super) async fn run(
    masters: &Masters,
    args: &StateArgs,
    input: &mut dyn io::Read,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match &args.change {
        None => show(masters, output).await,
        Some(Change::Put { value }) => put(masters, value, input, output).await,
    }
}

/// Asks for the state and shows it: indented for a person, on one line for a program.
async fn show(masters: &Masters, output: &mut Output<'_>) -> Result<(), CliError> {
    let answer = masters
        .read(async |client| client.ensemble().get_state(GetStateRequest {}).await)
        .await?;
    let Some(state) = &answer.state else {
        output.note("there is no state yet: the callback has printed none, and none was put");
        return output.line("null");
    };
    let line = json(state, VALUE)?;
    match output.format() {
        Format::Json => output.line(line),
        Format::Table => {
            let value: Value = serde_json::from_str(&line).map_err(unreadable)?;
            output.line(serde_json::to_string_pretty(&value).map_err(unreadable)?)
        }
    }
}

fn unreadable(error: serde_json::Error) -> CliError {
    CliError::Failed(format!("cannot show the state: {error}"))
}

/// Puts a state: JSON, or `-` for what `input` holds.
async fn put(
    masters: &Masters,
    value: &str,
    input: &mut dyn io::Read,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let text = match value {
        "-" => read(input)?,
        text => text.to_owned(),
    };
    let request = PutStateRequest {
        state: Some(parse(&text)?),
    };
    let answer = masters
        .write(async |client| client.ensemble().put_state(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.PutStateResponse"),
        Format::Table => output.line(format_args!("stored at revision {}", answer.revision)),
    }
}

fn read(input: &mut dyn io::Read) -> Result<String, CliError> {
    let mut text = String::new();
    let length = input
        .take(MAX_INPUT_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| CliError::Usage(format!("cannot read the state: {error}")))?;
    if length as u64 > MAX_INPUT_BYTES {
        return Err(CliError::Usage(format!(
            "the state is longer than {MAX_INPUT_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<prost_types::Value, CliError> {
    let wrong = |reason: &dyn std::fmt::Display| {
        CliError::Usage(format!("the state must be one JSON value: {reason}"))
    };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    if let Some(number) = inexact(&value) {
        return Err(CliError::Usage(format!(
            "the number {number} does not fit a double, which is what a state holds: write it as a string"
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
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.message().unwrap();
            assert!(message.contains("does not fit a double"), "{message}");
        }
        for text in ["9007199254740992", "-1", "0.1", "1e300", "\"1\"", "null"] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_single_json_value_is_refused() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        for text in ["", "{", "1 2", "{a:1}", &deep] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn input_without_end_is_refused() {
        let error = read(&mut io::repeat(b' ')).unwrap_err();
        assert!(error.message().unwrap().contains("longer than"));
    }
}
