//! Feeds what is no JSON object to the proto3 JSON reader: path variables, query parameters, a body that is one field.
//!
//! So there is one reader of values, with one idea of what an enum, a duration or a 64-bit integer looks like as text.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind};
use serde::{
    Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor,
        value::{Error, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

/// Messages that proto3 JSON writes as one string or number, so that they fit in a path or a query.
const ONE_TEXT: [&str; 12] = [
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "google.protobuf.FieldMask",
    "google.protobuf.BoolValue",
    "google.protobuf.BytesValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.FloatValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.StringValue",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
];

/// Whether a field's value, or each item of it, is one text in a path or a query.
pub(super) fn is_one_text(field: &FieldDescriptor) -> bool {
    let kind = field.kind();
    let fits = kind
        .as_message()
        .is_none_or(|inner| ONE_TEXT.contains(&inner.full_name()));
    fits && !field.is_map()
}

/// Sets the field at the end of a field path from texts: one, or any number where the field is repeated.
pub(super) fn set(
    message: &mut DynamicMessage,
    path: &[FieldDescriptor],
    texts: &[&str],
) -> Result<(), String> {
    let (leaf, parents) = path.split_last().ok_or("names no field")?;
    let kind = leaf.kind();
    if !is_one_text(leaf) {
        return Err("can't be given here, only in a JSON body".into());
    }
    let given = OneField {
        name: leaf.json_name(),
        value: Given {
            texts,
            kind: &kind,
            is_list: leaf.is_list(),
        },
    };
    let mut holder = DynamicMessage::deserialize(leaf.parent_message().clone(), given)
        .map_err(|error| error.to_string())?;
    let mut target = message;
    for field in parents {
        let inner = target.get_field_mut(field).as_message_mut();
        target = inner.ok_or_else(|| format!("{} has no fields", field.name()))?;
    }
    match holder.take_field(leaf) {
        Some(value) => target.set_field(leaf, value),
        None => target.clear_field(leaf),
    }
    Ok(())
}

/// An object of one field, around the reader of its value.
pub(super) struct OneField<'a, D> {
    pub(super) name: &'a str,
    pub(super) value: D,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for OneField<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        visitor.visit_map(OneEntry {
            name: Some(self.name),
            value: Some(self.value),
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct OneEntry<'a, D> {
    name: Option<&'a str>,
    value: Option<D>,
}

impl<'de, D: Deserializer<'de>> MapAccess<'de> for OneEntry<'_, D> {
    type Error = D::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, D::Error> {
        let name = self.name.take();
        name.map(|name| seed.deserialize(name.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, D::Error> {
        let value = self.value.take();
        seed.deserialize(value.ok_or_else(|| D::Error::custom("has no value"))?)
    }
}

/// The texts of one field.
struct Given<'a> {
    texts: &'a [&'a str],
    kind: &'a Kind,
    is_list: bool,
}

impl<'de> Deserializer<'de> for Given<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let kind = self.kind;
        let mut texts = self.texts.iter().map(|text| Text { text, kind });
        if self.is_list {
            visitor.visit_seq(SeqDeserializer::new(texts))
        } else {
            let text = texts.next().ok_or_else(|| Error::custom("has no value"))?;
            text.deserialize_any(visitor)
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// One text. The reader takes strings for everything but booleans and the numbers of enums.
struct Text<'a> {
    text: &'a str,
    kind: &'a Kind,
}

impl IntoDeserializer<'_, Error> for Text<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Text<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let message = self.kind.as_message();
        let is_bool = matches!(self.kind, Kind::Bool)
            || message.is_some_and(|inner| inner.full_name() == "google.protobuf.BoolValue");
        if is_bool {
            let flag = self.text.parse();
            return visitor
                .visit_bool(flag.map_err(|_| Error::custom("is neither true nor false"))?);
        }
        match self.text.parse::<i32>() {
            Ok(number) if matches!(self.kind, Kind::Enum(_)) => visitor.visit_i32(number),
            _ => visitor.visit_str(self.text),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
