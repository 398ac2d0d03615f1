//! JSON as `google.protobuf.Value` and its kin. Its numbers are doubles: one that would not come back is refused.

use super::{bytes, unexpected, within};
use kontrol_core::strict::{Fault, Kind, Reader};
use prost::encoding::{WireType, encode_key, encode_varint};

pub(super) const VALUE: &str = "google.protobuf.Value";
pub(super) const STRUCT: &str = "google.protobuf.Struct";
pub(super) const LIST: &str = "google.protobuf.ListValue";

/// A `google.protobuf.Value`: any JSON.
pub(super) fn json(reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
    match reader.peek()? {
        Kind::Null => {
            reader.literal()?;
            varint(1, 0, out);
        }
        Kind::Number => {
            let number = reader.exact_number()?.parse::<f64>();
            let number = number.map_err(|error| reader.fault(error.to_string()))?;
            encode_key(2, WireType::SixtyFourBit, out);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::String => bytes(3, reader.string()?.as_bytes(), out),
        Kind::Bool => varint(4, u64::from(reader.literal()? == "true"), out),
        Kind::Object => within(reader, 5, out, members)?,
        Kind::Array => within(reader, 6, out, items)?,
    }
    Ok(())
}

/// A `google.protobuf.Struct`: an object.
pub(super) fn members(reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let found = reader.peek()?;
    if found != Kind::Object {
        return Err(unexpected(reader, found, "a map"));
    }
    reader.open()?;
    while let Some(name) = reader.name()? {
        within(reader, 1, out, |reader, out| {
            bytes(1, name.as_bytes(), out);
            within(reader, 2, out, json)
        })?;
    }
    Ok(())
}

/// A `google.protobuf.ListValue`: an array.
pub(super) fn items(reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let found = reader.peek()?;
    if found != Kind::Array {
        return Err(unexpected(reader, found, "a list"));
    }
    reader.open()?;
    while reader.item()? {
        within(reader, 1, out, json)?;
    }
    Ok(())
}

fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}
