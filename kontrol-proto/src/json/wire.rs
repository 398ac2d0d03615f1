//! Fields as they are found on the wire: slices of an encoded message, not yet told what they mean.

use super::{OutputError, Result};
use prost::{
    bytes::Buf,
    encoding::{WireType, decode_key, decode_varint},
};
use prost_reflect::Kind;

/// A field as it was found on the wire.
#[derive(Clone, Copy)]
pub(super) struct Found<'w> {
    pub(super) number: u32,
    pub(super) raw: Raw<'w>,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Raw<'w> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(&'w [u8]),
}

/// Reads what one wire type says.
pub(super) fn read<'w>(wire: &mut &'w [u8], kind: WireType, number: u32) -> Result<Raw<'w>> {
    let broken = || OutputError::Field(number);
    Ok(match kind {
        WireType::Varint => Raw::Varint(decode_varint(wire)?),
        WireType::ThirtyTwoBit => Raw::Fixed32(wire.try_get_u32_le().map_err(|_| broken())?),
        WireType::SixtyFourBit => Raw::Fixed64(wire.try_get_u64_le().map_err(|_| broken())?),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(wire)?).map_err(|_| broken())?;
            let (bytes, rest) = wire.split_at_checked(length).ok_or_else(broken)?;
            *wire = rest;
            Raw::Bytes(bytes)
        }
        WireType::StartGroup | WireType::EndGroup => return Err(broken()),
    })
}

/// The fields of a message by number, those of one number in the order of the wire.
pub(super) fn index(mut wire: &[u8]) -> Result<Vec<Found<'_>>> {
    let mut index = Vec::new();
    while !wire.is_empty() {
        let (number, kind) = decode_key(&mut wire)?;
        let raw = read(&mut wire, kind, number)?;
        index.push(Found { number, raw });
    }
    index.sort_by_key(|found| found.number);
    Ok(index)
}

/// The items of a repeated field: several may share one packed run of bytes.
pub(super) fn unpacked<'w>(kind: &Kind, found: Found<'w>) -> Result<Vec<Found<'w>>> {
    let (Some(packed), Raw::Bytes(mut wire)) = (packed_as(kind), found.raw) else {
        return Ok(vec![found]);
    };
    let number = found.number;
    let mut items = Vec::new();
    while !wire.is_empty() {
        let raw = read(&mut wire, packed, number)?;
        items.push(Found { number, raw });
    }
    Ok(items)
}

/// The wire type of a packable kind.
fn packed_as(kind: &Kind) -> Option<WireType> {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Some(WireType::SixtyFourBit),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Some(WireType::ThirtyTwoBit),
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => Some(WireType::Varint),
        Kind::Sint32 | Kind::Sint64 | Kind::Bool | Kind::Enum(_) => Some(WireType::Varint),
        Kind::String | Kind::Bytes | Kind::Message(_) => None,
    }
}

/// What a field that wasn't found holds.
pub(super) fn default(kind: &Kind) -> Raw<'static> {
    match packed_as(kind) {
        Some(WireType::SixtyFourBit) => Raw::Fixed64(0),
        Some(WireType::ThirtyTwoBit) => Raw::Fixed32(0),
        Some(_) => Raw::Varint(0),
        None => Raw::Bytes(b""),
    }
}

/// The bytes of a field that must be length-delimited.
pub(super) fn bytes(found: Found<'_>) -> Result<&[u8]> {
    match found.raw {
        Raw::Bytes(bytes) => Ok(bytes),
        Raw::Varint(_) | Raw::Fixed32(_) | Raw::Fixed64(_) => Err(OutputError::Field(found.number)),
    }
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
