//! Messages as proto3 JSON, the way that masters and the command line write it.
//!
//! Fields that hold their default are written too, but absent messages and members of a oneof are not. One deviation from
//! proto3 JSON: 64-bit integers are numbers, not strings, because operators compare `seq`, `epoch` and `revision` with jq.

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde::Serialize;
use serde_json::{Result, Serializer, Value, ser::Formatter};
use std::io::{self, Write};

const OPTIONS: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(false)
    .skip_default_fields(false);

/// A message on one line, its fields in the order of their numbers. Errors: a time that has no text form, or a number of a
/// `google.protobuf.Value` that is none.
pub fn write(message: &DynamicMessage) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, Short);
    message.serialize_with_options(&mut serializer, &OPTIONS)?;
    Ok(text)
}

/// A message as a JSON value. Errors: as of `write`.
pub fn value(message: &DynamicMessage) -> Result<Value> {
    message.serialize_with_options(serde_json::value::Serializer, &OPTIONS)
}

/// A JSON value on one line.
pub fn write_value(value: &Value) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, Short))?;
    Ok(text)
}

/// Writes whole doubles as users wrote them: `1`, not `1.0`. Every number of a `google.protobuf.Value` is a double.
struct Short;

impl Formatter for Short {
    fn write_f64<W>(&mut self, writer: &mut W, value: f64) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        // Behind this doubles skip whole numbers, so that digits would be shown which nobody wrote.
        const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
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
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    #[test]
    fn a_message_is_one_text_with_short_numbers_and_its_defaults() {
        let pool = DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
        let pod = pool.get_message_by_name("kontrol.v1.Pod").unwrap();
        let payload = json!([1.0, -0.0, 9_007_199_254_740_992_u64, 1e16, 0.1]);
        let labels = json!({"a": "1"});
        let given = json!({"seq": "18446744073709551615", "payload": payload, "labels": labels});
        let message = DynamicMessage::deserialize(pod, given).unwrap();
        let text = String::from_utf8(write(&message).unwrap()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"key":"","id":"","app":"","ip":"","role":"","seq":18446744073709551615,"nonce":"","#,
                r#""payload":[1,0,9007199254740992,1e+16,0.1],"labels":{"a":"1"},"annotations":{},"#,
                r#""node":"","attachedMaster":""}"#
            )
        );
        let value = write_value(&value(&message).unwrap()).unwrap();
        let read = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        assert_eq!(read(&value), read(text.as_bytes()));
    }
}
