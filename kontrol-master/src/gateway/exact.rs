//! Values that are kept digit for digit: a message with one `google.protobuf.Value` may have a string `json` beside it, which
//! holds the same value as it was written.
//!
//! Over HTTP there is only the value, written and read digit for digit: the text goes in its place, in either direction.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

const JSON: &str = "json";
const VALUE: &str = "google.protobuf.Value";

/// The two fields of one value.
#[derive(Debug)]
pub(super) struct Exact {
    pub(super) value: FieldDescriptor,
    pub(super) json: FieldDescriptor,
}

/// The value that a message keeps digit for digit, if it does that.
pub(super) fn of(message: &MessageDescriptor) -> Option<Exact> {
    let json = message.get_field_by_name(JSON)?;
    if json.kind() != Kind::String || json.is_list() {
        return None;
    }
    let is_value = |field: &FieldDescriptor| {
        let kind = field.kind();
        kind.as_message()
            .is_some_and(|kind| kind.full_name() == VALUE)
            && !field.is_list()
    };
    let value = message.fields().find(is_value)?;
    Some(Exact { value, json })
}
