//! Clear text on a port that speaks TLS: whoever does that is told so, in the protocol that it speaks, and nothing of what it
//! asks is looked at.

use super::{Shared, fair::Fair};
use crate::serve::gateway;
use axum::body::Body;
use http::{StatusCode, header::CONTENT_TYPE};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, net::SocketAddr};
use tokio::{net::TcpStream, time::timeout};
use tonic::Status;

const REASON: &str = "this port speaks TLS: use https://";

/// Answers whatever is asked, until the peer goes or the time for a request is over. Whoever shows a token so has shown it to
/// everybody on the way, so that it is told.
pub(super) async fn answer(shared: &Shared, stream: TcpStream, peer: SocketAddr) {
    shared.audit.no_tls(peer, &"the peer speaks clear text");
    let service =
        service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(refuse(&request)));
    let stream = TokioIo::new(Fair::new(stream));
    let connection = shared.server.serve_connection(stream, service);
    // How it ends is nobody's trouble.
    let ended = timeout(shared.limits.head, connection);
    let _ = shared.token.run_until_cancelled(ended).await;
}

fn refuse(request: &Request<Incoming>) -> Response<Body> {
    let status = Status::failed_precondition(REASON);
    let kind = request.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return status.into_http();
    }
    gateway::refusal(StatusCode::BAD_REQUEST, &status)
}
