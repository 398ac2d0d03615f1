//! Errors as HTTP says them: one table from `google.rpc.Code` to a status, one body, `{"code","message","details"}`.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use kontrol_core::model::invalid::{clip, one_line};
use kontrol_proto::json;
use prost::Message;
use prost_reflect::DescriptorPool;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use tonic::{Code, Status};

/// What the error's body says.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    /// Number of the `google.rpc.Code`.
    code: i32,
    /// What is wrong, for a person.
    message: &'a str,
    /// The details that the service attached, each an object with its `@type`.
    details: Vec<Value>,
}

/// An error as the last line of a stream, told from its messages by its one field.
#[derive(Debug, Serialize)]
pub(super) struct LastLine<'a> {
    pub(super) error: ErrorBody<'a>,
}

/// `google.rpc.Status`, as `grpc-status-details-bin` carries it.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

impl<'a> ErrorBody<'a> {
    pub(super) fn new(status: &'a Status, pool: &DescriptorPool) -> Self {
        let details = RpcStatus::decode(status.details()).unwrap_or_default();
        Self {
            code: status.code() as i32,
            message: status.message(),
            details: details
                .details
                .iter()
                .map(|any| detail(any, pool))
                .collect(),
        }
    }
}

/// A detail as JSON. Of one whose type the descriptors don't have, only the type can be told.
fn detail(any: &prost_types::Any, pool: &DescriptorPool) -> Value {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let fields = pool
        .get_message_by_name(name)
        .and_then(|message| json::write(&message, &any.value).ok())
        .and_then(|text| serde_json::from_slice(&text).ok());
    let kind = Value::from(any.type_url.as_str());
    match fields {
        Some(Value::Object(mut fields)) => {
            fields.insert("@type".into(), kind);
            Value::Object(fields)
        }
        Some(value) => serde_json::json!({"@type": kind, "value": value}),
        None => serde_json::json!({"@type": kind}),
    }
}

/// The HTTP status of a `google.rpc.Code`.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // The client closed the request: nginx's number, which googleapis took over.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The response that says a status.
pub(super) fn response(status: &Status, pool: &DescriptorPool) -> Response {
    let mut response = plain(http_status(status.code()), &ErrorBody::new(status, pool));
    advise(&mut response, status);
    response
}

/// Says what to do about it, where HTTP has a header for that: show who one is (RFC 6750, 3), or try again later.
pub(super) fn advise(response: &mut Response, status: &Status) {
    if status.code() == Code::ResourceExhausted {
        let seconds = HeaderValue::from_static("1");
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    if status.code() == Code::Unauthenticated {
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
}

/// A status without details, under another number than the table's.
pub(super) fn bare(code: StatusCode, status: &Status) -> Response {
    let body = ErrorBody {
        code: status.code() as i32,
        message: status.message(),
        details: Vec::new(),
    };
    plain(code, &body)
}

/// The request is wrong, and how: what that quotes can be as long as a URL, and hold anything.
pub(super) fn refusal(reason: impl fmt::Display) -> Status {
    Status::invalid_argument(one_line(reason))
}

/// Nothing is at this path.
pub(super) fn not_found(path: &str) -> Response {
    let body = ErrorBody {
        code: Code::NotFound as i32,
        message: &one_line(format_args!("nothing is at {path}")),
        details: Vec::new(),
    };
    plain(StatusCode::NOT_FOUND, &body)
}

/// Something is at this path, for these methods.
pub(super) fn method_not_allowed(method: &Method, path: &str, allowed: &str) -> Response {
    let body = ErrorBody {
        code: Code::Unimplemented as i32,
        message: &one_line(format_args!("{} takes {allowed}, not {method}", clip(path))),
        details: Vec::new(),
    };
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, &body);
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

fn plain(status: StatusCode, body: &ErrorBody<'_>) -> Response {
    // Numbers, strings and JSON have no way to fail to become JSON.
    let body = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_status_that_googleapis_gives_it() {
        let statuses: Vec<u16> = (0..=16)
            .map(|code| http_status(Code::from(code)).as_u16())
            .collect();
        assert_eq!(
            statuses,
            [
                200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401
            ]
        );
    }

    #[test]
    fn details_are_told_as_far_as_their_types_are_known() {
        let pool = DescriptorPool::decode(kontrol_proto::FILE_DESCRIPTOR_SET).unwrap();
        let known = kontrol_proto::v1::PutStateResponse { revision: 7 };
        let details = [
            (
                "type.googleapis.com/kontrol.v1.PutStateResponse",
                known.encode_to_vec(),
            ),
            ("type.googleapis.com/x.Unknown", vec![8, 1]),
        ];
        let details = RpcStatus {
            details: details
                .map(|(url, value)| prost_types::Any {
                    type_url: url.into(),
                    value,
                })
                .to_vec(),
        };
        let status = Status::with_details(Code::Aborted, "no", details.encode_to_vec().into());
        assert_eq!(
            serde_json::to_value(ErrorBody::new(&status, &pool)).unwrap(),
            serde_json::json!({"code": 10, "message": "no", "details": [
                {"@type": "type.googleapis.com/kontrol.v1.PutStateResponse", "revision": 7},
                {"@type": "type.googleapis.com/x.Unknown"},
            ]})
        );
    }
}
