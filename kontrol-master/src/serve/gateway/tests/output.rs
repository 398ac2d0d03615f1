//! The library's writer of generic messages is the reference: this one must say the same, but for what it is there for.

use super::descriptors::{descriptors, field};
use kontrol_proto::json::{OutputError, write, write_field};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Value, json};

const SCALARS: [&str; 15] = [
    "DOUBLE", "FLOAT", "INT64", "UINT64", "INT32", "FIXED64", "FIXED32", "BOOL", "STRING", "BYTES",
    "UINT32", "SFIXED32", "SFIXED64", "SINT32", "SINT64",
];

/// A message `test.v1.Every` with each scalar kind once, repeated, and as the value of a map, and with well-known types.
fn every() -> MessageDescriptor {
    let string = "TYPE_STRING";
    let (mut fields, mut entries) = (Vec::new(), Vec::new());
    for (kind, at) in SCALARS.iter().zip(1..) {
        let name = kind.to_lowercase();
        let kind = format!("TYPE_{kind}");
        let entry = format!("{}Entry", name[..1].to_uppercase() + &name[1..] + "Map");
        let of = json!({"label": "LABEL_REPEATED", "typeName": format!(".test.v1.Every.{entry}")});
        fields.push(field(&name, at, &kind, json!({})));
        fields.push(field(
            &format!("{name}_list"),
            100 + at,
            &kind,
            json!({"label": "LABEL_REPEATED"}),
        ));
        fields.push(field(&format!("{name}_map"), 200 + at, "TYPE_MESSAGE", of));
        let key = if at % 2 == 0 { string } else { "TYPE_SINT32" };
        entries.push(
            json!({"name": entry, "options": {"mapEntry": true}, "field": [
            field("key", 1, key, json!({})), field("value", 2, &kind, json!({}))]}),
        );
    }
    let known = [
        "Value",
        "Struct",
        "ListValue",
        "Duration",
        "Timestamp",
        "Int64Value",
        "StringValue",
        "Empty",
    ];
    for (name, at) in known.iter().zip(301..) {
        let of = json!({"typeName": format!(".google.protobuf.{name}")});
        fields.push(field(
            &format!("wkt_{}", name.to_lowercase()),
            at,
            "TYPE_MESSAGE",
            of,
        ));
    }
    let of = json!({"typeName": ".test.v1.Every", "label": "LABEL_REPEATED"});
    fields.push(field("nested", 400, "TYPE_MESSAGE", of));
    fields.push(field(
        "color",
        401,
        "TYPE_ENUM",
        json!({"typeName": ".test.v1.Color"}),
    ));
    let message = json!({"name": "Every", "field": fields, "nestedType": entries});
    let file = json!({"file": [{"name": "every.proto", "package": "test.v1", "syntax": "proto3",
        "dependency": ["test.proto", "google/protobuf/duration.proto", "google/protobuf/struct.proto",
            "google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto", "google/protobuf/empty.proto"],
        "messageType": [message]}]});
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_set(descriptors(json!([])).as_slice())
        .unwrap();
    let set = pool
        .get_message_by_name("google.protobuf.FileDescriptorSet")
        .unwrap();
    let set = DynamicMessage::deserialize(set, file).unwrap();
    pool.decode_file_descriptor_set(set.encode_to_vec().as_slice())
        .unwrap();
    pool.get_message_by_name("test.v1.Every").unwrap()
}

fn message(json: Value) -> DynamicMessage {
    DynamicMessage::deserialize(every(), json).unwrap()
}

/// What the library writes.
fn reference(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap()
}

fn written(message: &DynamicMessage) -> Value {
    let text = write(&every(), &message.encode_to_vec()).unwrap();
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error}: {}", text.escape_ascii()))
}

/// Doubles by value: the library writes whole ones with a fraction.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let like = |(name, a): (&String, _)| b.get(name).is_some_and(|b| same(a, b));
            a.len() == b.len() && a.iter().all(like)
        }
        _ => a == b,
    }
}

#[test]
fn every_kind_of_field_is_written_as_the_library_writes_it() {
    let mut full = json!({"color": "COLOR_RED", "wktDuration": "-1.500s", "wktTimestamp": "2026-01-02T03:04:05.006Z",
        "wktInt64value": i64::MIN, "wktStringvalue": "é\n", "wktEmpty": {}, "wktListvalue": [1, [], {}, null],
        "wktStruct": {"b": {"a": [true, "x", -0.5]}, "": 1e300}, "wktValue": {"a": [1, 2.5, null, false, "\u{1f600}\""]}});
    for kind in SCALARS {
        let (low, high) = match kind {
            "DOUBLE" => (json!(-1e300), json!(0.1)),
            "FLOAT" => (json!(-1.5), json!("Infinity")),
            "INT64" | "SFIXED64" | "SINT64" => (json!(i64::MIN), json!(i64::MAX)),
            "UINT64" | "FIXED64" => (json!(1), json!(u64::MAX)),
            "INT32" | "SFIXED32" | "SINT32" => (json!(i32::MIN), json!(i32::MAX)),
            "UINT32" | "FIXED32" => (json!(1), json!(u32::MAX)),
            "BOOL" => (json!(false), json!(true)),
            "STRING" => (json!("\u{0}"), json!("\"\\")),
            _ => (json!("AAECAw=="), json!("/w==")),
        };
        let name = kind.to_lowercase();
        full[&name] = high.clone();
        full[format!("{name}List")] = json!([low, high, low]);
        full[format!("{name}Map")] = json!({"-1": low, "7": high});
    }
    let nested = full.clone();
    full["nested"] = json!([nested, {}]);
    let full = message(full);
    assert!(
        same(&written(&full), &reference(&full)),
        "{}\n{}",
        written(&full),
        reference(&full)
    );
    let empty = message(json!({}));
    assert!(same(&written(&empty), &reference(&empty)));
    assert_eq!(
        written(&empty).as_object().unwrap().len(),
        3 * SCALARS.len() + 2
    );
}

#[test]
fn whole_numbers_of_json_have_no_fraction() {
    let payload = message(json!({"wktValue": [1.0, -0.0, 9_007_199_254_740_992_u64, 1e16, 0.1]}));
    let value = every().get_field_by_name("wkt_value").unwrap();
    let text = write_field(&value, &payload.encode_to_vec()).unwrap();
    assert_eq!(
        str::from_utf8(&text).unwrap(),
        "[1,0,9007199254740992,1e+16,0.1]"
    );
}

#[test]
fn a_message_in_pieces_is_put_together() {
    let mut wire = message(json!({"wktDuration": "1s"})).encode_to_vec();
    wire.extend(message(json!({"wktDuration": "0.5s", "int32": 1})).encode_to_vec());
    wire.extend(message(json!({"int32": 2})).encode_to_vec());
    let text: Value = serde_json::from_slice(&write(&every(), &wire).unwrap()).unwrap();
    assert_eq!(
        (&text["wktDuration"], &text["int32"]),
        (&json!("1.500s"), &json!(2))
    );
}

#[test]
fn an_answer_that_is_none_is_an_error() {
    let whole = message(json!({"string": "abc", "wktValue": [{"a": 1}]})).encode_to_vec();
    let mut refused = 0;
    for length in 0..whole.len() {
        refused += usize::from(write(&every(), &whole[..length]).is_err());
    }
    // Only where a field ends can a message end.
    assert_eq!(refused, whole.len() - 2);
    let endless = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| {
        let list = [vec![10], varint(inner.len()), inner].concat();
        [vec![50], varint(list.len()), list].concat()
    });
    let value = every()
        .parent_pool()
        .get_message_by_name("google.protobuf.Value")
        .unwrap();
    assert!(matches!(write(&value, &endless), Err(OutputError::Depth)));
}

fn varint(value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(value as u64, &mut out);
    out
}
