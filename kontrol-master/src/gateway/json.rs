//! Proto3 JSON to messages and back, with errors that a person can act on.

use super::input::OneField;
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, SerializeOptions, Value};
use serde::de::Error as _;
use serde_json::{error::Category, ser::Formatter};
use serde_path_to_error::{Deserializer, Track};
use std::io;
use tonic::Status;

/// How deep the JSON of a body may nest. Protobuf readers stop at 100 levels and JSON takes up to three a level, so that
/// whatever passes here can be decoded by the service; fields have stricter limits of their own.
pub(super) const MAX_DEPTH: usize = 34;

/// 64-bit integers as numbers and defaults written: see the module's head.
const OPTIONS: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(false)
    .skip_default_fields(false);

/// Reads a message from a JSON object.
pub(super) fn read(message: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    check_depth(text, None)?;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut track = Track::new();
    let read = Deserializer::new(&mut reader, &mut track);
    DynamicMessage::deserialize(message.clone(), read)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|error| explain(&error, track))
}

/// Reads a message of which JSON gives one field.
pub(super) fn read_field(field: &FieldDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    check_depth(text, Some(field.json_name()))?;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut track = Track::new();
    let one = OneField {
        name: field.json_name(),
        value: &mut reader,
    };
    let read = Deserializer::new(one, &mut track);
    DynamicMessage::deserialize(field.parent_message().clone(), read)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|error| explain(&error, track))
}

/// Names the field for data that doesn't fit, the place for text that is no JSON.
fn explain(error: &serde_json::Error, track: Track) -> Status {
    match error.classify() {
        Category::Data => {
            let path = track.path().to_string();
            let path = if path == "." { "body" } else { &path };
            Status::invalid_argument(format!("{path}: {error}"))
        }
        Category::Syntax | Category::Eof | Category::Io => {
            Status::invalid_argument(format!("the body is not JSON: {error}"))
        }
    }
}

/// Refuses nesting before anything recurses over it.
fn check_depth(text: &[u8], field: Option<&str>) -> Result<(), Status> {
    let Some(outermost) = outermost_of_too_deep(text) else {
        return Ok(());
    };
    let outermost = String::from_utf8_lossy(outermost);
    let name = match field {
        Some(field) => field,
        None if outermost.is_empty() => "body",
        None => &outermost,
    };
    Err(Status::invalid_argument(format!(
        "{name} nests too deeply: JSON may nest {MAX_DEPTH} levels here"
    )))
}

/// The name of the outermost field that nests too deeply, `""` where there is none; `None` when all is well. A scan, no
/// parse: on text that is no JSON its answer may be off by what the parser refuses anyway.
fn outermost_of_too_deep(text: &[u8]) -> Option<&[u8]> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let (mut start, mut name) = (0, &text[..0]);
    for (at, byte) in text.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if depth == 1 {
                        name = &text[start..at];
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => (in_string, start) = (true, at + 1),
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(name);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Writes a message as JSON on one line.
pub(super) fn write(message: &DynamicMessage) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = Vec::with_capacity(256);
    let mut writer = serde_json::Serializer::with_formatter(&mut text, Plain);
    message.serialize_with_options(&mut writer, &OPTIONS)?;
    Ok(text)
}

/// Writes one field of a message as JSON; an absent message is `null`.
pub(super) fn write_field(
    message: &DynamicMessage,
    field: &FieldDescriptor,
) -> Result<Vec<u8>, serde_json::Error> {
    if let Value::Message(inner) = message.get_field(field).as_ref()
        && message.has_field(field)
    {
        return write(inner);
    }
    let mut tree: serde_json::Value = serde_json::from_slice(&write(message)?)?;
    let value = tree.get_mut(field.json_name()).map(serde_json::Value::take);
    serde_json::to_vec(&value.unwrap_or_default()).map_err(serde_json::Error::custom)
}

/// Compact JSON in which whole numbers have no `.0`, though a `google.protobuf.Value` holds them as doubles.
struct Plain;

impl Formatter for Plain {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // Up to here every whole number is one double, and every one is an i64.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && value.abs() <= EXACT {
            write!(writer, "{}", value as i64)
        } else {
            serde_json::ser::CompactFormatter.write_f64(writer, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scan_counts_brackets_outside_strings_only() {
        let nested = |levels: usize| {
            format!(
                "{{\"a\":0,\"p\\\"\":{}1{}}}",
                "[".repeat(levels),
                "]".repeat(levels)
            )
        };
        assert_eq!(
            outermost_of_too_deep(nested(MAX_DEPTH - 1).as_bytes()),
            None
        );
        let deep = nested(MAX_DEPTH);
        assert_eq!(
            outermost_of_too_deep(deep.as_bytes()),
            Some(b"p\\\"".as_slice())
        );
        let quoted = format!("\"{}\\\"[\"", "[".repeat(100));
        assert_eq!(outermost_of_too_deep(quoted.as_bytes()), None);
        let bare = "[".repeat(10_000);
        assert_eq!(outermost_of_too_deep(bare.as_bytes()), Some(b"".as_slice()));
    }
}
