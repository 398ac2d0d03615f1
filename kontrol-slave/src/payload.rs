//! The pod's payload: a JSON file that is watched, what a payload may be, and JSON as `google.protobuf.Value`.
//!
//! Invariant: the receiver always holds the last good value; a file that is missing, broken or too large never replaces
//! it. Each trouble is said once, until the file is good again. At first, without a file, the value is `""`.
//!
//! What is too large is judged in the one form that masters judge as well, canonical JSON. A protobuf number is a double:
//! a file with an integer that no double holds is refused, so that none changes on the way. Write those as strings.

use kontrol_core::{
    json,
    limits::{EXACT, MAX_PAYLOAD_BYTES},
    strict::{self, Fault},
};
use kontrol_runtime::folder::{Changes, Content, Hint, Reader};
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::{Map, Value};
use std::{io, path::PathBuf, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Largest payload file, in bytes: white space and escapes don't count as payload.
const MAX_FILE_BYTES: usize = 1024 * 1024;
/// How long a file must stay broken to be called so: one that is written in place is broken in between.
const SETTLE: Duration = Duration::from_millis(200);

/// Why a payload is of no use, or the file that should hold it.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// There is none.
    #[error("the file does not exist")]
    Missing,
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[source] io::Error),
    /// The file is too large.
    #[error("it is larger than {} KiB, the most that is read", MAX_FILE_BYTES / 1024)]
    TooLong,
    /// The payload is too large.
    #[error("it is {0} bytes of canonical JSON, and a payload may have {MAX_PAYLOAD_BYTES}")]
    TooLarge(usize),
    /// It is not JSON.
    #[error("it is not valid JSON: {0}")]
    Json(#[source] Fault),
    /// It would change on its way, or nests too deep.
    #[error("{0}")]
    Unfit(#[source] Fault),
}

/// Reads the payload file and prepares to follow it. The receiver holds the first value already; run the task to have
/// it follow the file.
pub async fn open(path: PathBuf) -> (watch::Receiver<Value>, PayloadTask) {
    let (sender, receiver) = watch::channel(Value::String(String::new()));
    let mut task = PayloadTask {
        // Watched before it is read, so that no change falls in between.
        changes: Changes::of_file(&path),
        path,
        reader: Reader::new(1),
        content: Content::default(),
        sender,
        said: None,
    };
    if let Err(error) = task.read().await {
        task.say(&error);
    }
    (receiver, task)
}

/// Follows a payload file.
#[derive(Debug)]
pub struct PayloadTask {
    path: PathBuf,
    changes: Changes,
    reader: Reader,
    /// The file as it was last read.
    content: Content,
    sender: watch::Sender<Value>,
    /// The trouble that was said last.
    said: Option<String>,
}

impl PayloadTask {
    /// Follows the file until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let work = async {
            loop {
                let hint = self.changes.next().await;
                self.look(hint).await;
            }
        };
        token.run_until_cancelled(work).await;
    }

    async fn look(&mut self, hint: Hint) {
        if hint == Hint::Tick && self.content.is_current(&self.path, &self.reader).await {
            return;
        }
        if self.read().await.is_ok() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        if let Err(error) = self.read().await {
            self.say(&error);
        }
    }

    /// Reads the file and publishes what it says, if that is news.
    async fn read(&mut self) -> Result<(), PayloadError> {
        self.content = self.reader.read(&self.path, MAX_FILE_BYTES).await;
        let value = parse(&self.content)?;
        if self.said.take().is_some() {
            tracing::info!(path = %self.path.display(), "the payload file is good again");
        }
        self.sender.send_if_modified(|old| {
            let news = *old != value;
            *old = value;
            news
        });
        Ok(())
    }

    fn say(&mut self, error: &PayloadError) {
        let text = error.to_string();
        if self.said.as_ref() != Some(&text) {
            let path = self.path.display();
            tracing::warn!(%path, "payload file: {text}; the pod goes on reporting the last good one, if any");
            self.said = Some(text);
        }
    }
}

/// What a payload file says.
fn parse(content: &Content) -> Result<Value, PayloadError> {
    match content {
        Content::Missing => Err(PayloadError::Missing),
        Content::Failed(error) => Err(PayloadError::Io(io::Error::new(
            error.kind(),
            error.to_string(),
        ))),
        Content::Read { bytes, .. } if bytes.len() > MAX_FILE_BYTES => Err(PayloadError::TooLong),
        Content::Read { bytes, .. } => {
            let value = strict::value(bytes).map_err(|fault| {
                if fault.malformed {
                    PayloadError::Json(fault)
                } else {
                    PayloadError::Unfit(fault)
                }
            })?;
            check_size(&value)?;
            Ok(value)
        }
    }
}

/// Whether a value can be a payload: it is not too large, does not nest too deep, and does not change on its way.
pub fn check(value: &Value) -> Result<(), PayloadError> {
    strict::value(value.to_string().as_bytes()).map_err(PayloadError::Unfit)?;
    check_size(value)
}

fn check_size(value: &Value) -> Result<(), PayloadError> {
    let size = json::canonical(value).len();
    if size > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge(size));
    }
    Ok(())
}

/// JSON as protobuf says it. Numbers become doubles.
pub fn to_proto(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        // Without arbitrary precision every number of serde_json has a double.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(to_proto).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), to_proto(value)))
                .collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A protobuf value that JSON cannot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    /// A number that is infinite or none at all.
    #[error("holds a number that JSON cannot write (infinity or NaN)")]
    Number,
    /// A value without a kind.
    #[error("holds a value without a kind")]
    Empty,
}

/// Protobuf as JSON. Whole numbers that a double holds exactly become integers.
pub fn from_proto(value: prost_types::Value) -> Result<Value, NotJson> {
    Ok(match value.kind.ok_or(NotJson::Empty)? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(flag) => Value::Bool(flag),
        Kind::NumberValue(number) => number_from(number)?,
        Kind::StringValue(text) => Value::String(text),
        Kind::ListValue(list) => {
            let items: Result<Vec<Value>, _> = list.values.into_iter().map(from_proto).collect();
            Value::Array(items?)
        }
        Kind::StructValue(fields) => {
            let fields: Result<Map<String, Value>, _> = fields
                .fields
                .into_iter()
                .map(|(name, value)| Ok((name, from_proto(value)?)))
                .collect();
            Value::Object(fields?)
        }
    })
}

fn number_from(number: f64) -> Result<Value, NotJson> {
    if number.fract() == 0.0 && number.abs() <= EXACT {
        // Exact: whole, and within the range that a double counts in ones.
        return Ok(Value::from(number as i64));
    }
    serde_json::Number::from_f64(number)
        .map(Value::Number)
        .ok_or(NotJson::Number)
}

#[cfg(test)]
mod tests;
