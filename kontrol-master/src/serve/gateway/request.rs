//! Makes the RPC's request of an HTTP request: of its body, query parameters, path variables, and where an EventSource goes
//! on. What is said twice is refused, but for the last: an EventSource comes back with the URL that it began with.

use super::{
    MAX_BODY_BYTES,
    answer::{Format, HISTORY, REVISION},
    error, input, json,
    rule::{self, BodyRule, Operation},
};
use crate::serve::access::{Caller, Held, UPLOAD_PATIENCE};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HOST, ORIGIN},
    request::Parts,
};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor};
use std::{borrow::Cow, collections::BTreeMap};
use tonic::Status;

/// How much of a body that is too large is read and thrown away, so that the client gets to read why.
const DISCARDED_BYTES: usize = 16 * 1024 * 1024;
/// Most dots in the name of a query parameter: recursive messages would let a caller nest without end.
pub(super) const MAX_FIELD_PATH: usize = 8;
/// Where a browser says that a request comes from.
const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// What a browser's EventSource says when it comes back.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";

/// The message that an HTTP request asks for, encoded. `held` is where the memory of the body counts, if it does.
pub(super) async fn message(
    operation: &Operation,
    parts: &Parts,
    body: Body,
    held: Option<&mut Held>,
) -> Result<Vec<u8>, Status> {
    check_site(parts)?;
    let mut wire = from_body(operation, parts, body, held).await?;
    let mut message = DynamicMessage::new(operation.rpc.input.clone());
    for (fields, values) in query(operation, parts.uri.query().unwrap_or_default())?.values() {
        let texts: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        input::set(&mut message, fields, &texts).map_err(|reason| {
            let name = dotted(fields);
            error::refusal(format!("query parameter {name}: {reason}"))
        })?;
    }
    if !operation.variables.is_empty() {
        let values = operation.template.capture(parts.uri.path());
        let values = values.ok_or_else(|| error::refusal("the path is not UTF-8"))?;
        let body = DynamicMessage::decode(operation.rpc.input.clone(), &wire[..])
            .map_err(|error| Status::internal(error.to_string()))?;
        for (fields, value) in operation.variables.iter().zip(values) {
            if said(&body, fields).is_some_and(|said| said != value) {
                let reason = "is something else in the path: give it there alone";
                let name = dotted(fields);
                return Err(error::refusal(format!("{name} {reason}")));
            }
            input::set(&mut message, fields, &[&value])
                .map_err(|reason| error::refusal(format!("{}: {reason}", dotted(fields))))?;
        }
    }
    if operation.rpc.streams && Format::of(&parts.headers) == Format::Sse {
        resume(operation, &mut message, &parts.headers)?;
    }
    message
        .encode(&mut wire)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(wire)
}

/// What a message says in a field of text; nothing when it says nothing.
fn said(message: &DynamicMessage, fields: &[FieldDescriptor]) -> Option<String> {
    let (last, outer) = fields.split_last()?;
    let mut message = Cow::Borrowed(message);
    for field in outer {
        let inner = message.get_field(field).as_message()?.clone();
        message = Cow::Owned(inner);
    }
    let text = message.get_field(last).as_str()?.to_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// Lets a stream go on where an EventSource lost it: it comes back with the URL that it began with, so that the header is
/// newer than the query. An empty one is none, as for every EventSource before its first event; of one that is no revision
/// of ours the stream begins anew, for a browser would not try again after an error. Where a place is a
/// revision of a history, each event is asked to name both.
fn resume(
    operation: &Operation,
    message: &mut DynamicMessage,
    headers: &HeaderMap,
) -> Result<(), Status> {
    let field = |name| operation.rpc.input.get_field_by_name(name);
    let Some(ref revision) = field(REVISION) else {
        return Ok(());
    };
    let history = field(HISTORY).filter(FieldDescriptor::supports_presence);
    let id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty());
    let mut asked = "";
    if let Some(id) = id {
        let text = id.to_str().unwrap_or_default();
        let number = match text.split_once('-') {
            Some((number, history)) => {
                asked = history;
                number
            }
            None => text,
        };
        if number.parse::<u64>().is_err() {
            asked = "";
        }
        set(message, revision, number).or_else(|_| set(message, revision, "0"))?;
    }
    match history {
        Some(history) if !asked.is_empty() || !message.has_field(&history) => {
            set(message, &history, asked)
        }
        Some(_) | None => Ok(()),
    }
}

fn set(message: &mut DynamicMessage, field: &FieldDescriptor, text: &str) -> Result<(), Status> {
    input::set(message, std::slice::from_ref(field), &[text])
        .map_err(|reason| error::refusal(format!("Last-Event-ID: {reason}")))
}

/// Refuses what a page of another site has a browser send: such a page can reach masters that its author can't, those on
/// loopback for one. Programs send neither header. See Fetch Metadata Request Headers (W3C) and RFC 6454.
fn check_site(parts: &Parts) -> Result<(), Status> {
    if parts.method.is_safe() {
        return Ok(());
    }
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str());
    let own = match (header(SEC_FETCH_SITE), header(ORIGIN.as_str())) {
        (Some(site), _) => matches!(site, Ok("same-origin" | "none")),
        (None, Some(origin)) => {
            let origin = origin.ok().and_then(|origin| origin.split_once("://"));
            let host = parts.uri.authority().map(|authority| authority.as_str());
            let host = host.or(header(HOST.as_str()).and_then(Result::ok));
            origin.is_some_and(|(_, origin)| Some(origin) == host)
        }
        (None, None) => true,
    };
    if own {
        return Ok(());
    }
    let reason = "a page of another site may not change anything here: send this from a program, or from a page of this master";
    Err(Status::permission_denied(reason))
}

async fn from_body(
    operation: &Operation,
    parts: &Parts,
    body: Body,
    held: Option<&mut Held>,
) -> Result<Vec<u8>, Status> {
    if matches!(operation.body, BodyRule::Nothing) {
        return Ok(Vec::new());
    }
    check_content(&parts.headers)?;
    let caller = parts.extensions.get::<Caller>();
    let rpc = operation.rpc.uri.path().trim_start_matches('/');
    let most = caller.and_then(|caller| caller.most_bytes(rpc));
    let most = most.unwrap_or(MAX_BODY_BYTES);
    let too_large = || match caller {
        Some(caller) => caller.too_large(most),
        None => Status::invalid_argument(format!("the body is larger than {most} bytes")),
    };
    let text = tokio::time::timeout(
        UPLOAD_PATIENCE,
        collect(&parts.headers, body, held, most, too_large),
    )
    .await
    .map_err(|_| error::refusal("the body took too long to arrive"))??;
    let text = text.trim_ascii();
    match &operation.body {
        _ if text.is_empty() => Ok(Vec::new()),
        BodyRule::Field(field) => json::read_field(field, text),
        BodyRule::Everything | BodyRule::Nothing => json::read(&operation.rpc.input, text),
    }
}

/// Takes what may be JSON: unlabelled bodies, and those that curl labels as a form unless told otherwise.
fn check_content(headers: &HeaderMap) -> Result<(), Status> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        let message = "the body is compressed: send it without a content-encoding";
        return Err(error::refusal(message));
    }
    let Some(kind) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let kind = String::from_utf8_lossy(kind.as_bytes());
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    let known = [
        "",
        "application/json",
        "text/json",
        "text/plain",
        "application/x-www-form-urlencoded",
    ];
    if known.contains(&essence.as_str()) || essence.ends_with("+json") {
        return Ok(());
    }
    Err(error::refusal(format!(
        "content-type {essence} is not taken: send application/json"
    )))
}

async fn collect(
    headers: &HeaderMap,
    mut body: Body,
    mut held: Option<&mut Held>,
    most: usize,
    too_large: impl Fn() -> Status,
) -> Result<Bytes, Status> {
    let announced = http_body::Body::size_hint(&body).lower();
    if announced > most as u64 && headers.contains_key(EXPECT) {
        // The client waits for a word before it sends anything.
        return Err(too_large());
    }
    let mut text = BytesMut::new();
    let mut received = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| error::refusal("the body broke off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        received += data.len();
        if received <= most {
            if let Some(held) = held.as_mut() {
                held.grow(data.len())?;
            }
            text.extend_from_slice(&data);
        } else if received > most + DISCARDED_BYTES {
            break;
        } else {
            text = BytesMut::new();
        }
    }
    if received > most {
        return Err(too_large());
    }
    Ok(text.freeze())
}

/// The fields that query parameters fill, with their values: by field, so that two spellings of a name are one name.
type Query<'q> = BTreeMap<String, (Vec<FieldDescriptor>, Vec<Cow<'q, str>>)>;

fn query<'q>(operation: &Operation, query: &'q str) -> Result<Query<'q>, Status> {
    let mut given = Query::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name)?;
        let fields = parameter(operation, &name).map_err(|reason| {
            error::refusal(format!("unknown query parameter {name:?}: {reason}"))
        })?;
        let is_list = fields.last().is_some_and(FieldDescriptor::is_list);
        let (_, values) = given
            .entry(dotted(&fields))
            .or_insert_with(|| (fields, Vec::new()));
        if !values.is_empty() && !is_list {
            let message = format!("query parameter {name} is given twice");
            return Err(error::refusal(message));
        }
        values.push(decode(value)?);
    }
    Ok(given)
}

/// The fields that a query parameter's name leads through.
fn parameter(operation: &Operation, name: &str) -> Result<Vec<FieldDescriptor>, String> {
    if name.split('.').count() > MAX_FIELD_PATH {
        return Err(format!("has more than {MAX_FIELD_PATH} parts"));
    }
    let fields = rule::field_path(&operation.rpc.input, name)?;
    match &operation.body {
        BodyRule::Everything => return Err("give it in the body".into()),
        BodyRule::Field(body) if fields.first() == Some(body) => {
            return Err("it is the body".into());
        }
        BodyRule::Field(_) | BodyRule::Nothing => {}
    }
    if operation.variables.contains(&fields) {
        return Err("it is in the path".into());
    }
    Ok(fields)
}

fn decode(text: &str) -> Result<Cow<'_, str>, Status> {
    let not_utf8 = || error::refusal("the query is not UTF-8");
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8();
        return Ok(Cow::Owned(decoded.map_err(|_| not_utf8())?.into_owned()));
    }
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| not_utf8())
}

fn dotted(fields: &[FieldDescriptor]) -> String {
    let names: Vec<&str> = fields.iter().map(FieldDescriptor::name).collect();
    names.join(".")
}
