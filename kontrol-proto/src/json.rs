//! Messages on the wire to proto3 JSON, the way that masters and the command line write it, without a message in between.
//!
//! A payload may have 30,000 values, and generic messages take hundreds of bytes and microseconds for each: through
//! prost-reflect's own writer the same pods took 18 times the CPU, of threads that have keepalives to answer. So fields are
//! written as they are found, from slices of the message; nothing is built but an index of the fields of the messages around.
//!
//! Defaults are written, but absent messages and members of a oneof are not; enums are names. One deviation from proto3 JSON:
//! 64-bit integers are numbers, because operators compare `seq`, `epoch` and `revision` with jq. The few well-known types
//! with a text form of their own (times, wrappers) go through the library's writer.

pub mod exact;
mod value;
mod wire;

use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use std::{fmt::Display, io::Write, str::Utf8Error};
use value::{write_json, write_list, write_struct};
use wire::{Found, Raw, bytes, default, index, unpacked, unzigzag};

/// Up to here, 2^53, every whole number is one double; behind it doubles skip some, and digits would be shown that nobody wrote.
const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
/// How deep messages may nest, as for every other protobuf reader.
const MAX_DEPTH: usize = 100;

/// An answer that has no JSON form. The service is wrong, not the caller.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// It is not what its descriptor says.
    #[error("the answer is no such message: {0}")]
    Wire(#[from] prost::DecodeError),
    /// A field has another wire type than its descriptor says, or ends before its end.
    #[error("the answer's field {0} is broken")]
    Field(u32),
    /// A string is not UTF-8.
    #[error("a string of the answer is not UTF-8: {0}")]
    Text(#[from] Utf8Error),
    /// A time beyond the year 9999, or a number in a payload that is none.
    #[error("a value of the answer has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
    /// It nests deeper than protobuf readers go.
    #[error("the answer nests too deeply")]
    Depth,
}

type Result<T> = std::result::Result<T, OutputError>;

/// Writes an encoded message as JSON on one line.
pub fn write(message: &MessageDescriptor, wire: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(wire.len() * 2);
    write_message(&mut out, message, wire, 0)?;
    Ok(out)
}

/// Writes one field of an encoded message as JSON; an absent one is `null`.
pub fn write_field(field: &FieldDescriptor, wire: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let found: Vec<Found<'_>> = index(wire)?
        .into_iter()
        .filter(|found| found.number == field.number())
        .collect();
    if found.is_empty() && field.supports_presence() {
        out.extend_from_slice(b"null");
    } else {
        write_value(&mut out, field, &found, 0)?;
    }
    Ok(out)
}

/// Whether an encoded message could say something in a oneof, and has nothing, but for where the stream is (`place`): a
/// stream's way to say that it lives.
pub fn says_nothing(message: &MessageDescriptor, wire: &[u8], place: &[&str]) -> bool {
    let is_place = |found: &Found<'_>| {
        let field = message.get_field(found.number);
        field.is_some_and(|field| place.contains(&field.name()))
    };
    let says_something = |index: Vec<Found<'_>>| !index.iter().all(is_place);
    message.oneofs().any(|oneof| !oneof.is_synthetic())
        && index(wire).is_ok_and(|index| !says_something(index))
}

/// The text in a field of an encoded message; empty where there is none.
pub fn text<'w>(field: &FieldDescriptor, wire: &'w [u8]) -> &'w str {
    let index = index(wire).unwrap_or_default();
    let found = index.iter().rfind(|found| found.number == field.number());
    let text = found.and_then(|found| bytes(*found).ok());
    text.and_then(|text| str::from_utf8(text).ok())
        .unwrap_or_default()
}

/// The whole number in a field of an encoded message, if it has that field and it is one.
pub fn integer(field: &FieldDescriptor, wire: &[u8]) -> Option<String> {
    let integers = [Kind::Int64, Kind::Int32, Kind::Uint64, Kind::Uint32];
    if !integers.contains(&field.kind()) || field.is_list() {
        return None;
    }
    let text = write_field(field, wire).ok()?;
    String::from_utf8(text).ok().filter(|text| text != "null")
}

fn write_message(
    out: &mut Vec<u8>,
    message: &MessageDescriptor,
    wire: &[u8],
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(OutputError::Depth);
    }
    match message.full_name() {
        "google.protobuf.Value" => return write_json(out, wire, depth),
        "google.protobuf.Struct" => return write_struct(out, wire, depth),
        "google.protobuf.ListValue" => return write_list(out, wire, depth),
        name if name.starts_with("google.protobuf.") => {
            const OPTIONS: SerializeOptions = SerializeOptions::new()
                .stringify_64_bit_integers(false)
                .skip_default_fields(false);
            let message = DynamicMessage::decode(message.clone(), wire)?;
            let mut writer = serde_json::Serializer::new(out);
            return Ok(message.serialize_with_options(&mut writer, &OPTIONS)?);
        }
        _ => {}
    }
    let index = index(wire)?;
    let mut rest = index.as_slice();
    let mut first = true;
    out.push(b'{');
    let exact = exact::of(message);
    let text = exact.as_ref().and_then(|exact| {
        let found = index.iter().rfind(|f| f.number == exact.json.number())?;
        bytes(*found).ok().filter(|text| !text.is_empty())
    });
    // Both are in the order of the numbers.
    for field in message.fields() {
        if exact.as_ref().is_some_and(|exact| exact.json == field) {
            continue;
        }
        let start = rest.partition_point(|found| found.number < field.number());
        rest = &rest[start..];
        let end = rest.partition_point(|found| found.number == field.number());
        let (found, others) = rest.split_at(end);
        rest = others;
        let text = text.filter(|_| exact.as_ref().is_some_and(|exact| exact.value == field));
        if found.is_empty() && field.supports_presence() && text.is_none() {
            continue;
        }
        comma(out, &mut first);
        write_text(out, field.json_name())?;
        out.push(b':');
        if let Some(text) = text {
            out.extend_from_slice(str::from_utf8(text)?.as_bytes());
            continue;
        }
        write_value(out, &field, found, depth)?;
    }
    out.push(b'}');
    Ok(())
}

/// Writes a field's value, or its default when it wasn't found.
fn write_value(
    out: &mut Vec<u8>,
    field: &FieldDescriptor,
    found: &[Found<'_>],
    depth: usize,
) -> Result<()> {
    let kind = field.kind();
    let mut first = true;
    if field.is_map() {
        out.push(b'{');
        let entry = kind
            .as_message()
            .ok_or(OutputError::Field(field.number()))?;
        for found in found {
            comma(out, &mut first);
            write_entry(out, entry, bytes(*found)?, depth + 1)?;
        }
        out.push(b'}');
    } else if field.is_list() {
        out.push(b'[');
        for found in found {
            for item in unpacked(&kind, *found)? {
                comma(out, &mut first);
                write_one(out, &kind, item, depth)?;
            }
        }
        out.push(b']');
    } else if kind.as_message().is_some() && found.len() > 1 {
        // A message in pieces is their concatenation.
        let pieces: Vec<&[u8]> = found
            .iter()
            .map(|piece| bytes(*piece))
            .collect::<Result<_>>()?;
        let number = field.number();
        let raw = Raw::Bytes(&pieces.concat());
        write_one(out, &kind, Found { number, raw }, depth)?;
    } else {
        let number = field.number();
        let raw = default(&kind);
        write_one(
            out,
            &kind,
            *found.last().unwrap_or(&Found { number, raw }),
            depth,
        )?;
    }
    Ok(())
}

fn write_entry(
    out: &mut Vec<u8>,
    entry: &MessageDescriptor,
    wire: &[u8],
    depth: usize,
) -> Result<()> {
    let index = index(wire)?;
    let of = |field: &FieldDescriptor| -> Vec<Found<'_>> {
        let same = |found: &&Found<'_>| found.number == field.number();
        index.iter().filter(same).copied().collect()
    };
    let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
    let mut name = Vec::new();
    write_value(&mut name, &key, &of(&key), depth)?;
    if key.kind() == Kind::String {
        out.append(&mut name);
    } else {
        // Numbers and booleans need no escapes.
        write!(out, "\"{}\"", name.escape_ascii()).map_err(serde_json::Error::io)?;
    }
    out.push(b':');
    write_value(out, &value, &of(&value), depth)
}

fn write_one(out: &mut Vec<u8>, kind: &Kind, found: Found<'_>, depth: usize) -> Result<()> {
    match (kind, found.raw) {
        (Kind::Double, Raw::Fixed64(bits)) => write_float(out, f64::from_bits(bits)),
        (Kind::Float, Raw::Fixed32(bits)) => {
            let value = f32::from_bits(bits);
            match value.is_finite() {
                // Through its own shortest text: as a double it would show digits that it doesn't have.
                true => Ok(serde_json::to_writer(out, &value)?),
                false => write_float(out, f64::from(value)),
            }
        }
        (Kind::Int32, Raw::Varint(value)) => show(out, value as i32),
        (Kind::Int64, Raw::Varint(value)) => show(out, value as i64),
        (Kind::Uint32, Raw::Varint(value)) => show(out, value as u32),
        (Kind::Uint64, Raw::Varint(value)) => show(out, value),
        (Kind::Sint32, Raw::Varint(value)) => show(out, unzigzag(value) as i32),
        (Kind::Sint64, Raw::Varint(value)) => show(out, unzigzag(value)),
        (Kind::Fixed32, Raw::Fixed32(value)) => show(out, value),
        (Kind::Fixed64, Raw::Fixed64(value)) => show(out, value),
        (Kind::Sfixed32, Raw::Fixed32(value)) => show(out, value as i32),
        (Kind::Sfixed64, Raw::Fixed64(value)) => show(out, value as i64),
        (Kind::Bool, Raw::Varint(value)) => show(out, value != 0),
        (Kind::Enum(kind), Raw::Varint(value)) => write_enum(out, kind, value as i32),
        (Kind::String, Raw::Bytes(text)) => write_text(out, str::from_utf8(text)?),
        (Kind::Bytes, Raw::Bytes(bytes)) => show(
            out,
            format_args!("\"{}\"", Base64Display::new(bytes, &BASE64_STANDARD)),
        ),
        (Kind::Message(message), Raw::Bytes(wire)) => write_message(out, message, wire, depth + 1),
        _ => Err(OutputError::Field(found.number)),
    }
}

fn write_enum(out: &mut Vec<u8>, kind: &EnumDescriptor, number: i32) -> Result<()> {
    match kind.get_value(number) {
        _ if kind.full_name() == "google.protobuf.NullValue" => show(out, "null"),
        Some(value) => write_text(out, value.name()),
        None => show(out, number),
    }
}

/// Whole numbers have no `.0`, though JSON's numbers come as doubles.
fn write_float(out: &mut Vec<u8>, value: f64) -> Result<()> {
    if value.is_nan() {
        show(out, "\"NaN\"")
    } else if value.is_infinite() {
        show(
            out,
            if value > 0.0 {
                "\"Infinity\""
            } else {
                "\"-Infinity\""
            },
        )
    } else if value.fract() == 0.0 && value.abs() <= EXACT {
        show(out, value as i64)
    } else {
        Ok(serde_json::to_writer(out, &value)?)
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    Ok(serde_json::to_writer(out, text)?)
}

fn show(out: &mut Vec<u8>, value: impl Display) -> Result<()> {
    Ok(write!(out, "{value}").map_err(serde_json::Error::io)?)
}

fn comma(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}
