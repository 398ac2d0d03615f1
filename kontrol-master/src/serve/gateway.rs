//! The HTTP face of the gRPC services: JSON in, gRPC in process, JSON out.
//!
//! ```text
//! PUT /ping {"app":…} ──▶ rule/template: which RPC ──▶ request: path, query and body become a message
//!                                                          │
//! {"key":…} ◀── answer: proto3 JSON, NDJSON or SSE ◀── call: the very service that serves gRPC, over no socket
//! ```
//!
//! The `google.api.http` annotations of the .proto files are the one source of the routes: they are read from the
//! descriptors once, at start-up, so that a new annotated RPC is served without a line of code here. Nothing here knows
//! a service by name, holds state between requests, or decides anything that gRPC callers would not get as well.
//!
//! JSON is proto3 JSON, written by `kontrol_proto::json`: 64-bit integers are numbers there, and read in both forms here. A
//! value that a message keeps as text beside it is written and read digit for digit, see `kontrol_proto::json::exact`.
//! Errors are `{"code","message","details"}`; `code` is the number of a `google.rpc.Code`.

mod answer;
mod call;
mod endpoint;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod input;
mod json;
pub mod openapi;
mod request;
mod rule;
mod template;
#[cfg(test)]
mod tests;

use axum::{Router, extract::Request, response::Response, routing::any};
use endpoint::Endpoint;
use http::{Method, StatusCode, Version, header::CONTENT_TYPE};
use prost_reflect::DescriptorPool;
use rule::Operation;
use std::{collections::BTreeMap, sync::Arc};
use tonic::{Status, service::Routes};
use tower::ServiceExt;

/// Largest request body, in bytes: a state or an input of 1 MiB has room however its JSON is written. A larger one is
/// INVALID_ARGUMENT, as is every other body that can't be taken.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Why the annotations don't make routes. A mistake in a .proto file: it shows at the first start, on any machine.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The descriptors can't be read.
    #[error("read the protobuf descriptors: {0}")]
    Descriptors(#[from] prost_reflect::DescriptorError),
    /// An annotation that the gateway can't serve.
    #[error("the google.api.http rule of {rpc} can't be served: {reason}")]
    Rule {
        /// Full name of the RPC.
        rpc: String,
        /// What is wrong with the rule.
        reason: String,
    },
    /// Two RPCs claim the same route.
    #[error("{method} {path} is the route of both {first} and {second}")]
    Duplicate {
        /// HTTP method.
        method: String,
        /// Path template.
        path: String,
        /// Full name of the RPC that has the route.
        first: String,
        /// Full name of the RPC that wants it too.
        second: String,
    },
}

/// Builds the router of the whole port: every annotated route, gRPC itself (whatever says `application/grpc`), and a
/// JSON 404 for the rest. More routes can be merged in, from routers that have no fallback of their own.
pub fn router(grpc: Routes) -> Result<Router, GatewayError> {
    router_of(kontrol_proto::FILE_DESCRIPTOR_SET, grpc)
}

fn router_of(descriptors: &[u8], grpc: Routes) -> Result<Router, GatewayError> {
    let grpc = grpc.prepare();
    let pool = DescriptorPool::decode(descriptors)?;
    let mut endpoints: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for operation in rule::operations(&pool)? {
        let same_path = endpoints.entry(operation.template.pattern()).or_default();
        if let Some(first) = same_path.iter().find(|other| other.collides(&operation)) {
            return Err(GatewayError::Duplicate {
                method: operation.method.to_string(),
                path: operation.template.to_string(),
                first: first.rpc.name.clone(),
                second: operation.rpc.name.clone(),
            });
        }
        same_path.push(operation);
    }
    let mut router = Router::new();
    for (pattern, operations) in endpoints {
        let endpoint = Arc::new(Endpoint::new(operations, grpc.clone(), pool.clone()));
        let handler = move |request: Request| Arc::clone(&endpoint).answer(request);
        router = router.route(&pattern, any(handler));
    }
    Ok(router.fallback(move |request: Request| fallback(grpc.clone(), request)))
}

/// A refusal that stands before every route, in the form of all errors.
pub fn refusal(code: StatusCode, status: &Status) -> Response {
    error::bare(code, status)
}

/// A status, as every route says it.
pub fn refused(status: &Status) -> Response {
    let mut response = error::bare(error::http_status(status.code()), status);
    error::advise(&mut response, status);
    response
}

/// gRPC, or nothing that is here.
async fn fallback(grpc: Routes, request: Request) -> Response {
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    // A web page can send neither: what keeps pages out looks at all else.
    if is_grpc && (request.version() != Version::HTTP_2 || request.method() != Method::POST) {
        let status = Status::invalid_argument("gRPC is POST over HTTP/2: use a gRPC client");
        return refused(&status);
    }
    if is_grpc {
        return match grpc.oneshot(request).await {
            Ok(response) => response.map(axum::body::Body::new),
            Err(never) => match never {},
        };
    }
    error::not_found(request.uri().path())
}
