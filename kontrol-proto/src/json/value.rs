//! `google.protobuf.Value` and its kin on the wire to the JSON that they stand for. The bulk of most answers.

use super::{
    MAX_DEPTH, OutputError, Result, comma, show,
    wire::{Found, Raw, bytes, read},
    write_float, write_text,
};
use prost::encoding::decode_key;

/// `google.protobuf.Value`: any JSON.
pub(super) fn write_json(out: &mut Vec<u8>, wire: &[u8], depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(OutputError::Depth);
    }
    let mut rest = wire;
    let mut last = None;
    while !rest.is_empty() {
        let (number, kind) = decode_key(&mut rest)?;
        last = Some((number, read(&mut rest, kind, number)?));
    }
    match last {
        None | Some((1, Raw::Varint(_))) => show(out, "null"),
        Some((2, Raw::Fixed64(bits))) => {
            let number = f64::from_bits(bits);
            if !number.is_finite() {
                return Err(OutputError::Json(serde::ser::Error::custom(
                    "a number that is none",
                )));
            }
            write_float(out, number)
        }
        Some((3, Raw::Bytes(text))) => write_text(out, str::from_utf8(text)?),
        Some((4, Raw::Varint(flag))) => show(out, flag != 0),
        Some((5, Raw::Bytes(wire))) => write_struct(out, wire, depth + 1),
        Some((6, Raw::Bytes(wire))) => write_list(out, wire, depth + 1),
        Some((number, _)) => Err(OutputError::Field(number)),
    }
}

/// `google.protobuf.Struct`: an object.
pub(super) fn write_struct(out: &mut Vec<u8>, mut wire: &[u8], depth: usize) -> Result<()> {
    let mut first = true;
    out.push(b'{');
    while !wire.is_empty() {
        let (number, kind) = decode_key(&mut wire)?;
        let mut entry = bytes(Found {
            number,
            raw: read(&mut wire, kind, number)?,
        })?;
        let (mut name, mut value) = (&b""[..], &b""[..]);
        while !entry.is_empty() {
            let (number, kind) = decode_key(&mut entry)?;
            let part = bytes(Found {
                number,
                raw: read(&mut entry, kind, number)?,
            })?;
            match number {
                1 => name = part,
                _ => value = part,
            }
        }
        comma(out, &mut first);
        write_text(out, str::from_utf8(name)?)?;
        out.push(b':');
        write_json(out, value, depth + 2)?;
    }
    out.push(b'}');
    Ok(())
}

/// `google.protobuf.ListValue`: an array.
pub(super) fn write_list(out: &mut Vec<u8>, mut wire: &[u8], depth: usize) -> Result<()> {
    let mut first = true;
    out.push(b'[');
    while !wire.is_empty() {
        let (number, kind) = decode_key(&mut wire)?;
        let value = bytes(Found {
            number,
            raw: read(&mut wire, kind, number)?,
        })?;
        comma(out, &mut first);
        write_json(out, value, depth + 1)?;
    }
    out.push(b']');
    Ok(())
}
