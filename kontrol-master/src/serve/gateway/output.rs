//! A message of an answer, as JSON.

use super::exact::{self, Exact};
use kontrol_proto::json;
use prost::{
    DecodeError,
    encoding::{self, DecodeContext, decode_key, skip_field},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage};
use std::borrow::Cow;

/// An answer that has no JSON form. The service is wrong, not the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// It is not what its descriptor says.
    #[error("the answer is no such message: {0}")]
    Wire(#[from] DecodeError),
    /// A time beyond the year 9999, or a number in a payload that is none.
    #[error("a value of the answer has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

type Result<T> = std::result::Result<T, OutputError>;

/// A message of an answer.
#[derive(Debug)]
pub(super) struct Output {
    message: DynamicMessage,
    exact: Option<Exact>,
    /// What the message says in `exact`; empty where it says nothing.
    text: Vec<u8>,
}

impl Output {
    /// Reads an encoded message.
    pub(super) fn read(kind: &MessageDescriptor, wire: &[u8]) -> Result<Self> {
        let exact = exact::of(kind);
        let (text, rest) = match &exact {
            Some(exact) => split(exact, wire)?,
            None => (Vec::new(), Cow::Borrowed(wire)),
        };
        let message = DynamicMessage::decode(kind.clone(), &*rest)?;
        Ok(Self {
            message,
            exact,
            text,
        })
    }

    /// The message as JSON, or one field of it; an absent field is `null`.
    pub(super) fn json(&self, field: Option<&FieldDescriptor>) -> Result<Vec<u8>> {
        if let Some(field) = field {
            let mut value = json::value(&self.message)?;
            return Ok(json::write_value(&value[field.json_name()].take())?);
        }
        let Some(exact) = &self.exact else {
            return Ok(json::write(&self.message)?);
        };
        let mut value = json::value(&self.message)?;
        if let Some(fields) = value.as_object_mut() {
            fields.remove(exact.json.json_name());
        }
        let rest = json::write_value(&value)?;
        if self.text.is_empty() {
            return Ok(rest);
        }
        let comma: &[u8] = if rest == b"{}" { b"" } else { b"," };
        let name = format!("{{\"{}\":", exact.value.json_name());
        Ok([name.as_bytes(), &self.text, comma, &rest[1..]].concat())
    }

    /// Whether the message could say something in a oneof, and says nothing but where the stream is (`place`): a stream's
    /// way to say that it lives.
    pub(super) fn says_nothing(&self, place: &[&str]) -> bool {
        let kind = self.message.descriptor();
        let mut said = self.message.fields();
        kind.oneofs().any(|oneof| !oneof.is_synthetic())
            && said.all(|(field, _)| place.contains(&field.name()))
    }

    /// A field of text or of a whole number; none where the message has no such field, or it is not set.
    pub(super) fn plain(&self, name: &str) -> Option<String> {
        let field = self.message.get_field_by_name(name)?;
        let number = field.as_i64().map(|number| number.to_string());
        number.or_else(|| field.as_str().map(str::to_owned))
    }
}

/// Takes a value's text out of an encoded message, and then the value itself: as a generic message a state of a MiB takes
/// hundreds of them, and its text says it all.
fn split<'w>(exact: &Exact, wire: &'w [u8]) -> Result<(Vec<u8>, Cow<'w, [u8]>)> {
    let (mut text, mut rest) = (Vec::new(), Vec::new());
    let mut left = wire;
    while !left.is_empty() {
        let begin = left;
        let (tag, kind) = decode_key(&mut left)?;
        let context = DecodeContext::default();
        if tag == exact.json.number() {
            encoding::bytes::merge(kind, &mut text, &mut left, context)?;
            continue;
        }
        skip_field(kind, tag, &mut left, context)?;
        if tag != exact.value.number() {
            rest.extend_from_slice(&begin[..begin.len() - left.len()]);
        }
    }
    let rest = if text.is_empty() {
        Cow::Borrowed(wire)
    } else {
        Cow::Owned(rest)
    };
    Ok((text, rest))
}
