//! Proto3 JSON to protobuf on the wire, within bounds and with errors that a person can act on.
//!
//! Messages are written as they are read, with no generic message in between: such a message takes hundreds of bytes for
//! each value of a `google.protobuf.Value`, of which a body may have a million. Only fields of a few bytes go through the
//! library's reader. Nothing is taken that would get lost: a field that is given twice, by either of its names, is refused, as
//! is an integer that would not come back as it was written.

mod value;

use super::{error, input::OneField};
use kontrol_core::strict::{Fault, Kind as Found, Numbers, Reader, integer};
use kontrol_proto::{MAX_MESSAGE_BYTES, json::exact};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use std::collections::HashSet;
use tonic::Status;

/// How deep the JSON of a body may nest. Protobuf readers stop at 100 levels and JSON takes up to three a level, so that
/// whatever passes here can be decoded by the service; fields have stricter limits of their own.
pub(super) const MAX_DEPTH: usize = 34;

/// Reads a message from a JSON object.
pub(super) fn read(message: &MessageDescriptor, text: &[u8]) -> Result<Vec<u8>, Status> {
    let read = || {
        let mut reader = Reader::new(utf8(text)?, MAX_DEPTH);
        let mut out = Vec::with_capacity(text.len());
        object(&mut reader, message, &mut out)?;
        reader.end()?;
        Ok(out)
    };
    read().map_err(|fault| refusal(&fault))
}

/// Reads a message of which JSON gives one field.
pub(super) fn read_field(field: &FieldDescriptor, text: &[u8]) -> Result<Vec<u8>, Status> {
    let read = || {
        let mut reader = Reader::named(field.json_name(), utf8(text)?, MAX_DEPTH);
        let mut out = Vec::with_capacity(text.len());
        self::field(&mut reader, field, &mut out)?;
        reader.end()?;
        Ok(out)
    };
    read().map_err(|fault| refusal(&fault))
}

fn utf8(text: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(text).map_err(|error| Fault {
        path: String::new(),
        reason: error.to_string(),
        malformed: true,
    })
}

/// Names the field for data that doesn't fit, the place for text that is no JSON.
fn refusal(fault: &Fault) -> Status {
    let Fault { path, reason, .. } = fault;
    let message = match (fault.malformed, path.as_str()) {
        (true, _) => format!("the body is not JSON: {reason}"),
        (false, "") => format!("body: {reason}"),
        (false, path) => format!("{path}: {reason}"),
    };
    error::refusal(message)
}

/// Reads an object as a message.
fn object(
    reader: &mut Reader<'_>,
    message: &MessageDescriptor,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let found = reader.peek()?;
    if found != Found::Object {
        return Err(unexpected(reader, found, "a map"));
    }
    // By number: a field has two names. And by oneof, of which one member can be given.
    let (mut given, mut chosen) = (HashSet::new(), HashSet::new());
    reader.open()?;
    while let Some(name) = reader.name()? {
        let field = message
            .get_field_by_json_name(&name)
            .or_else(|| message.get_field_by_name(&name))
            .ok_or_else(|| reader.fault(format!("unrecognized field name '{}'", clip(&name))))?;
        // What is kept as text is another field of the message: either of them is given.
        let exact = exact::of(message).filter(|exact| exact.value == field);
        let number = exact.as_ref().map_or(&field, |exact| &exact.json).number();
        if !given.insert(number) {
            return Err(reader.fault("is given twice"));
        }
        if let Some(exact) = exact {
            let text = reader.skip(Numbers::Any)?;
            bytes(exact.json.number(), text.as_bytes(), out);
            continue;
        }
        if reader.peek()? != Found::Null
            && let Some(oneof) = field.containing_oneof()
            && !chosen.insert(oneof.full_name().to_owned())
        {
            let reason = format!("multiple fields provided for oneof '{}'", oneof.name());
            return Err(reader.fault(reason));
        }
        self::field(reader, &field, out)?;
    }
    Ok(())
}

/// Reads the value of a field, and writes both.
fn field(reader: &mut Reader<'_>, field: &FieldDescriptor, out: &mut Vec<u8>) -> Result<(), Fault> {
    let kind = field.kind();
    let found = reader.peek()?;
    let number = field.number();
    let message = kind.as_message();
    match message.map(MessageDescriptor::full_name) {
        Some(value::VALUE) if !field.is_list() => {
            return within(reader, number, out, value::json);
        }
        _ if found == Found::Null && !is_null(&kind) => {
            reader.literal()?;
            return Ok(());
        }
        _ => {}
    }
    if field.is_map() {
        return map(reader, field, found, out);
    }
    if field.is_list() {
        if found != Found::Array {
            return Err(unexpected(reader, found, "a list"));
        }
        reader.open()?;
        while reader.item()? {
            one(reader, field, true, out)?;
        }
        return Ok(());
    }
    one(reader, field, false, out)
}

/// Reads one value of a field, and writes both.
fn one(
    reader: &mut Reader<'_>,
    field: &FieldDescriptor,
    in_list: bool,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let kind = field.kind();
    if let Some(message) = kind.as_message() {
        let number = field.number();
        match message.full_name() {
            value::VALUE => return within(reader, number, out, value::json),
            value::STRUCT => return within(reader, number, out, value::members),
            value::LIST => return within(reader, number, out, value::items),
            name if name.starts_with("google.protobuf.") => {}
            _ => {
                return within(reader, number, out, |reader, out| {
                    object(reader, message, out)
                });
            }
        }
    }
    let leaf = leaf(reader, &kind)?;
    let value = if in_list {
        Value::Array(vec![leaf])
    } else {
        leaf
    };
    set(reader, field, value, out)
}

/// Reads the entries of a map. Their values are small: no request has another kind.
fn map(
    reader: &mut Reader<'_>,
    field: &FieldDescriptor,
    found: Found,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    if found != Found::Object {
        return Err(unexpected(reader, found, "a map"));
    }
    let entry = field.kind();
    let kind = entry
        .as_message()
        .map(|entry| entry.map_entry_value_field().kind());
    reader.open()?;
    while let Some(name) = reader.name()? {
        let value = match &kind {
            Some(kind) => leaf(reader, kind)?,
            None => return Err(reader.fault("is no map")),
        };
        let entry = Map::from_iter([(name.into_owned(), value)]);
        set(reader, field, Value::Object(entry), out)?;
    }
    Ok(())
}

/// Reads a value for the library's reader, which takes numbers apart less well than it could: a whole number comes to it as text.
fn leaf(reader: &mut Reader<'_>, kind: &Kind) -> Result<Value, Fault> {
    if reader.peek()? == Found::Number {
        let token = if *kind == Kind::Double {
            reader.exact_number()?
        } else {
            reader.number()?
        };
        if is_integer(kind) {
            let whole = integer(token).ok_or_else(|| reader.fault("expected integer value"))?;
            return Ok(Value::String(whole.to_string()));
        }
        return parse(reader, token);
    }
    let text = reader.skip(Numbers::Exact)?;
    parse(reader, text)
}

fn parse(reader: &Reader<'_>, text: &str) -> Result<Value, Fault> {
    serde_json::from_str(text).map_err(|error| reader.fault(error.to_string()))
}

fn is_integer(kind: &Kind) -> bool {
    match kind {
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => true,
        Kind::Sint32 | Kind::Sint64 => true,
        Kind::Fixed32 | Kind::Fixed64 | Kind::Sfixed32 | Kind::Sfixed64 => true,
        Kind::Message(message) => matches!(
            message.full_name(),
            "google.protobuf.Int32Value"
                | "google.protobuf.Int64Value"
                | "google.protobuf.UInt32Value"
                | "google.protobuf.UInt64Value"
        ),
        Kind::Double | Kind::Float | Kind::Bool | Kind::String | Kind::Bytes | Kind::Enum(_) => {
            false
        }
    }
}

/// Whether null is a value of this kind.
fn is_null(kind: &Kind) -> bool {
    kind.as_enum()
        .is_some_and(|kind| kind.full_name() == "google.protobuf.NullValue")
}

/// Writes a field through the library's reader.
fn set(
    reader: &Reader<'_>,
    field: &FieldDescriptor,
    value: Value,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let one = OneField {
        name: field.json_name(),
        value,
    };
    let message = DynamicMessage::deserialize(field.parent_message().clone(), one)
        .map_err(|error| reader.fault(error.to_string()))?;
    // A vector has room for whatever comes.
    message
        .encode(out)
        .map_err(|error| reader.fault(error.to_string()))
}

/// Writes a field whose length is known once it is written.
fn within<'t>(
    reader: &mut Reader<'t>,
    number: u32,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Reader<'t>, &mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    encode_key(number, WireType::LengthDelimited, out);
    let start = out.len();
    write(reader, out)?;
    if out.len() > MAX_MESSAGE_BYTES {
        let reason = format!(
            "is too large: a request may have {MAX_MESSAGE_BYTES} bytes as protobuf, where a number of JSON takes 11"
        );
        return Err(reader.fault(reason));
    }
    let mut length = [0; 10];
    let mut rest = length.as_mut_slice();
    encode_varint((out.len() - start) as u64, &mut rest);
    let used = 10 - rest.len();
    out.splice(start..start, length[..used].iter().copied());
    Ok(())
}

fn bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn unexpected(reader: &Reader<'_>, found: Found, expected: &str) -> Fault {
    let found = match found {
        Found::Null => "null",
        Found::Bool => "boolean",
        Found::Number => "number",
        Found::String => "string",
        Found::Array => "sequence",
        Found::Object => "map",
    };
    reader.fault(format!("invalid type: {found}, expected {expected}"))
}

fn clip(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}
