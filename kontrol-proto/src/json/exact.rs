//! Values that a message can hold as text as well: beside a `google.protobuf.Value` called `state` that is a field `json` or
//! `state_json`, a string or bytes.
//!
//! Over HTTP there is only the value, written and read as it stands: the text goes in its place, in either direction.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

const VALUE: &str = "google.protobuf.Value";

/// The two fields of one value.
#[derive(Debug)]
pub struct Exact {
    /// The value.
    pub value: FieldDescriptor,
    /// Its text.
    pub json: FieldDescriptor,
}

/// The value that a message can hold as text, if there is one.
pub fn of(message: &MessageDescriptor) -> Option<Exact> {
    let is_value = |field: &FieldDescriptor| {
        let kind = field.kind();
        kind.as_message()
            .is_some_and(|kind| kind.full_name() == VALUE)
            && !field.is_list()
    };
    let value = message.fields().find(is_value)?;
    let named = format!("{}_json", value.name());
    let json = message.get_field_by_name(&named);
    let json = json.or_else(|| message.get_field_by_name("json"))?;
    let is_text = matches!(json.kind(), Kind::String | Kind::Bytes) && !json.is_list();
    is_text.then_some(Exact { value, json })
}
