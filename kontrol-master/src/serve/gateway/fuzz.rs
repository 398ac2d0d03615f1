//! What must hold of the gateway, whatever comes over HTTP. The RPCs are all those that have a route.

use super::{error::http_status, json, request, router_of, rule, rule::Operation};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::ACCEPT};
use kontrol_core::fuzz::said;
use kontrol_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    json::write,
    v1::{DispatchRequest, PingRequest, PutStateRequest},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use std::{cell::LazyCell, sync::LazyLock};
use tokio::runtime::{Builder, Runtime};
use tonic::{Code, service::Routes};
use tower::ServiceExt;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors"));
static OPERATIONS: LazyLock<Vec<Operation>> =
    LazyLock::new(|| rule::operations(&POOL).expect("our own annotations"));

thread_local! {
    static RUNTIME: LazyCell<Runtime> = const { LazyCell::new(|| {
        let runtime = Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime on this thread")
    }) };
    static ROUTER: LazyCell<Router> = LazyCell::new(|| {
        router_of(FILE_DESCRIPTOR_SET, silent()).expect("our own annotations")
    });
}

/// Which RPC (a byte), values of its path variables with `/` between them, `?` and a query, a line end, a body: the message
/// can be decoded, and is what its JSON says. What is refused is the caller's fault, in one line.
pub fn http_json(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else {
        return;
    };
    let operation = &OPERATIONS[usize::from(*which) % OPERATIONS.len()];
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (target, body) = rest.split_at(end.unwrap_or(rest.len()));
    let Some(uri) = str::from_utf8(target)
        .ok()
        .and_then(|target| uri_of(operation, target))
    else {
        return;
    };
    let request = Request::builder().method(&operation.method).uri(uri);
    let Ok(request) = request.body(()) else {
        return;
    };
    let (parts, ()) = request.into_parts();
    let body = Body::from(Bytes::copy_from_slice(body));
    let made =
        RUNTIME.with(|runtime| runtime.block_on(request::message(operation, &parts, body, None)));
    match made {
        Ok(wire) => decoded(operation, &wire),
        Err(status) => {
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            said(status.message());
        }
    }
}

/// The target that leads to an operation.
fn uri_of(operation: &Operation, target: &str) -> Option<String> {
    let (values, query) = target.split_once('?').unwrap_or((target, ""));
    let mut values = values.split('/');
    let shown = operation.template.to_string();
    let mut path = String::new();
    for (at, segment) in shown.split('/').enumerate() {
        if at > 0 {
            path.push('/');
        }
        match segment.split_once('}') {
            Some((_, verb)) => {
                path.push_str(values.next().filter(|value| !value.is_empty())?);
                path.push_str(verb);
            }
            None => path.push_str(segment),
        }
    }
    path.push('?');
    path.push_str(query);
    Some(path)
}

fn decoded(operation: &Operation, wire: &[u8]) {
    let input = &operation.rpc.input;
    assert!(wire.len() <= 2 * MAX_MESSAGE_BYTES);
    DynamicMessage::decode(input.clone(), wire).expect("what is read can be decoded");
    match input.name() {
        "PingRequest" => drop(PingRequest::decode(wire).expect("a service decodes it")),
        "PutStateRequest" => drop(PutStateRequest::decode(wire).expect("a service decodes it")),
        "DispatchRequest" => drop(DispatchRequest::decode(wire).expect("a service decodes it")),
        _ => {}
    }
    let text = write(input, wire).expect("what came as JSON can be written as JSON");
    let again = json::read(input, &text).expect("what is written can be read");
    let text_again = write(input, &again).expect("the same");
    let value = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("it is JSON");
    assert_eq!(value(&text_again), value(&text));
}

/// A method (a byte) and headers (a byte), a target, a line end, `Last-Event-ID`, a line end, a body: whatever is asked for, the answer
/// is JSON, and blames the caller for what is wrong. A value that is encoded in a path is the value that arrives.
pub fn http_routes(data: &[u8]) {
    let [method, headers, rest @ ..] = data else {
        return;
    };
    let mut lines = rest.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (target, last_id, body) = (line(), line(), line());
    if let Ok(text) = str::from_utf8(target)
        && !text.is_empty()
    {
        captured(text);
    }
    let methods = [
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::HEAD,
    ];
    let method = &methods[usize::from(*method) % methods.len()];
    let mut request = Request::builder().method(method).uri(target);
    if headers & 1 > 0 {
        request = request.header(ACCEPT, "text/event-stream");
    }
    if headers & 2 > 0 {
        request = request.header("last-event-id", last_id);
    }
    if headers & 4 > 0 {
        request = request.header("sec-fetch-site", last_id);
    }
    let Ok(request) = request.body(Body::from(Bytes::copy_from_slice(body))) else {
        return;
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let router = ROUTER.with(|router| Router::clone(router));
            let response = router.oneshot(request).await;
            let response = response.unwrap_or_else(|never| match never {});
            answered(method, response).await;
        });
    });
}

/// A service that answers everything with the message that says nothing.
fn silent() -> Routes {
    let answer = |_: Request| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let body = http_body_util::Full::new(Bytes::from_static(&[0; 5]));
        let body = http_body_util::BodyExt::with_trailers(body, async { Some(Ok(trailers)) });
        Response::new(Body::new(body))
    };
    Routes::from(Router::new().fallback(answer))
}

async fn answered(method: &Method, response: Response) {
    let status = response.status();
    let kind = response.headers()["content-type"].clone();
    let body = to_bytes(response.into_body(), usize::MAX).await;
    let body = body.expect("the answer comes to its end");
    if method == Method::HEAD {
        return;
    }
    if status == StatusCode::OK {
        let is_stream = kind != "application/json";
        assert!(is_stream || serde_json::from_slice::<Value>(&body).is_ok());
        return;
    }
    let known = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::PermissionDenied,
    ];
    let blames_the_caller = known.map(http_status).contains(&status);
    assert!(
        blames_the_caller || status == StatusCode::METHOD_NOT_ALLOWED,
        "{status}"
    );
    let error: Value = serde_json::from_slice(&body).expect("an error is JSON");
    said(error["message"].as_str().expect("it has a message"));
    assert!(error["code"].is_u64() && error["details"].is_array());
}

/// Each variable of each template takes a text that was encoded for it, whatever is in it.
fn captured(text: &str) {
    let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    for operation in OPERATIONS.iter().filter(|one| !one.variables.is_empty()) {
        let values = vec![encoded.as_str(); operation.variables.len()].join("/");
        let path = uri_of(operation, &values).expect("there is a value for each");
        let path = path.trim_end_matches('?');
        let found = operation.template.capture(path).expect("it is UTF-8");
        assert!(found.iter().all(|found| found == text), "{path}");
    }
}
