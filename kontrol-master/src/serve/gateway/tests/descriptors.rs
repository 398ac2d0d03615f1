//! Descriptors that only the tests know, written as the JSON of a `FileDescriptorSet`.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

/// A field of a descriptor.
pub(in crate::serve::gateway) fn field(name: &str, number: u32, kind: &str, more: Value) -> Value {
    let mut field =
        json!({"name": name, "number": number, "label": "LABEL_OPTIONAL", "type": kind});
    for (name, value) in more.as_object().into_iter().flatten() {
        field[name] = value.clone();
    }
    field
}

/// An RPC that takes and gives a `Thing`.
pub(in crate::serve::gateway) fn rpc(name: &str, rule: Value) -> Value {
    json!({"name": name, "inputType": ".test.v1.Thing", "outputType": ".test.v1.Thing",
        "options": {"[google.api.http]": rule}})
}

/// The descriptors of kontrol and of a service `test.v1.Echo` with these RPCs.
pub(in crate::serve::gateway) fn descriptors(rpcs: Value) -> Vec<u8> {
    let (string, int64, message) = ("TYPE_STRING", "TYPE_INT64", "TYPE_MESSAGE");
    let map = json!({"name": "LabelsEntry", "options": {"mapEntry": true}, "field": [
        field("key", 1, string, json!({})), field("value", 2, string, json!({}))]});
    let thing = json!({"name": "Thing", "nestedType": [map], "oneofDecl": [{"name": "choice"}], "field": [
        field("name", 1, string, json!({})),
        field("inner_thing", 2, message, json!({"typeName": ".test.v1.Inner"})),
        field("numbers", 3, int64, json!({"label": "LABEL_REPEATED"})),
        field("color", 4, "TYPE_ENUM", json!({"typeName": ".test.v1.Color"})),
        field("wait", 5, message, json!({"typeName": ".google.protobuf.Duration"})),
        field("labels", 6, message, json!({"typeName": ".test.v1.Thing.LabelsEntry", "label": "LABEL_REPEATED"})),
        field("any", 7, message, json!({"typeName": ".google.protobuf.Value"})),
        field("one", 8, string, json!({"oneofIndex": 0})),
        field("other", 9, "TYPE_INT32", json!({"oneofIndex": 0})),
        field("flag", 10, "TYPE_BOOL", json!({})),
        field("again", 11, message, json!({"typeName": ".test.v1.Thing"})),
        field("big", 12, "TYPE_UINT64", json!({})),
    ]});
    let inner = json!({"name": "Inner", "field": [field("inner_id", 1, string, json!({}))]});
    let state = json!({"name": "State", "field": [
        field("state", 1, message, json!({"typeName": ".google.protobuf.Value"})),
        field("json", 2, string, json!({})),
        field("after", 3, "TYPE_INT32", json!({})),
    ]});
    let color = json!({"name": "Color", "value": [
        {"name": "COLOR_UNSPECIFIED", "number": 0}, {"name": "COLOR_RED", "number": 1}]});
    let files = json!({"file": [{"name": "test.proto", "package": "test.v1", "syntax": "proto3",
        "dependency": ["google/api/annotations.proto", "google/protobuf/duration.proto", "google/protobuf/struct.proto"],
        "messageType": [thing, inner, state], "enumType": [color], "service": [{"name": "Echo", "method": rpcs}]}]});
    let pool = DescriptorPool::decode(kontrol_proto::FILE_DESCRIPTOR_SET).unwrap();
    let set = pool
        .get_message_by_name("google.protobuf.FileDescriptorSet")
        .unwrap();
    let mut all = kontrol_proto::FILE_DESCRIPTOR_SET.to_vec();
    DynamicMessage::deserialize(set, files)
        .unwrap()
        .encode(&mut all)
        .unwrap();
    all
}
