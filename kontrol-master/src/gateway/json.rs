//! Proto3 JSON to messages, within bounds and with errors that a person can act on.

use super::input::OneField;
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor};
use serde_json::error::Category;
use serde_path_to_error::{Deserializer, Track};
use tonic::Status;

/// How deep the JSON of a body may nest. Protobuf readers stop at 100 levels and JSON takes up to three a level, so that
/// whatever passes here can be decoded by the service; fields have stricter limits of their own.
pub(super) const MAX_DEPTH: usize = 34;

/// How many values the JSON of a body may have: in memory each takes some hundred times the two bytes that it takes in
/// text. A payload of the largest size has fewer.
pub(super) const MAX_VALUES: usize = 40_000;

/// Reads a message from a JSON object.
pub(super) fn read(message: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    check_size(text, None)?;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut track = Track::new();
    let read = Deserializer::new(&mut reader, &mut track);
    DynamicMessage::deserialize(message.clone(), read)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|error| explain(&error, track))
}

/// Reads a message of which JSON gives one field.
pub(super) fn read_field(field: &FieldDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    check_size(text, Some(field.json_name()))?;
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

/// Refuses what would take too much stack or memory, before anything is built of it.
fn check_size(text: &[u8], field: Option<&str>) -> Result<(), Status> {
    let Some((outermost, excess)) = excess(text) else {
        return Ok(());
    };
    let outermost = String::from_utf8_lossy(outermost);
    let name = match field {
        Some(field) => field,
        None if outermost.is_empty() => "body",
        None => &outermost,
    };
    Err(Status::invalid_argument(match excess {
        Excess::Depth => {
            format!("{name} nests too deeply: JSON may nest {MAX_DEPTH} levels here")
        }
        Excess::Values => {
            format!("{name} has too many values: JSON may have {MAX_VALUES} here")
        }
    }))
}

#[derive(Debug, PartialEq, Eq)]
enum Excess {
    Depth,
    Values,
}

/// What there is too much of, and the name of the outermost field that has it, `""` where there is none. A scan, no
/// parse: on text that is no JSON its answer may be off by what the parser refuses anyway.
fn excess(text: &[u8]) -> Option<(&[u8], Excess)> {
    let (mut depth, mut values, mut in_string, mut escaped) = (0_usize, 1_usize, false, false);
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
                values += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some((name, Excess::Depth));
        }
        if values > MAX_VALUES {
            return Some((name, Excess::Values));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scan_counts_brackets_outside_strings_only() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("{{\"a\":0,\"p\\\"\":{open}1{close}}}")
        };
        assert_eq!(excess(nested(MAX_DEPTH - 1).as_bytes()), None);
        let deep = nested(MAX_DEPTH);
        let name = b"p\\\"".as_slice();
        assert_eq!(excess(deep.as_bytes()), Some((name, Excess::Depth)));
        let quoted = format!("\"{}\\\"[\"", "[,".repeat(MAX_VALUES));
        assert_eq!(excess(quoted.as_bytes()), None);
        let bare = "[".repeat(10_000);
        assert_eq!(
            excess(bare.as_bytes()),
            Some((b"".as_slice(), Excess::Depth))
        );
        let wide = format!("{{\"a\":[0{}]}}", ",0".repeat(MAX_VALUES));
        assert_eq!(
            excess(wide.as_bytes()),
            Some((b"a".as_slice(), Excess::Values))
        );
    }
}
