//! Clear text on a port that speaks TLS: whoever does that is told so, in the protocol that it speaks, and nothing of what it
//! asks is looked at.

use super::{Limits, Tracked, fair::Fair};
use crate::serve::gateway;
use axum::body::Body;
use http::{StatusCode, header::CONTENT_TYPE};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto::Builder};
use std::convert::Infallible;
use tokio::{net::TcpStream, time::timeout};
use tonic::Status;

const REASON: &str = "this port speaks TLS: use https://";

/// Answers whatever is asked, until the peer goes or the time for a request is over.
pub(super) async fn answer(server: Builder<Tracked>, stream: TcpStream, limits: &Limits) {
    let service =
        service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(refuse(&request)));
    let connection = server.serve_connection(TokioIo::new(Fair::new(stream)), service);
    // How it ends is nobody's trouble.
    let _ = timeout(limits.head, connection).await;
}

fn refuse(request: &Request<Incoming>) -> Response<Body> {
    let status = Status::failed_precondition(REASON);
    let kind = request.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return status.into_http();
    }
    gateway::refusal(StatusCode::BAD_REQUEST, &status)
}
