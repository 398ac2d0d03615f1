//! The guard before every gRPC service, called over a socket or by the gateway: it asks the table and the meter, bounds what
//! is sent, audits what is done, and ends streams whose callers lost what they showed.

use super::{Admission, Caller, lapse::Side, upload::Upload};
use crate::serve::listener::{Streams, Unsent};
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use kontrol_core::{
    access::table::{self, Kind},
    traffic::Call,
};
use prost_reflect::DescriptorPool;
use std::{collections::HashMap, sync::Arc};
use tonic::{Code, Status, service::Routes};

/// The rpcs that are streams, in either direction.
type Streaming = Arc<HashMap<String, Directions>>;

/// In which directions an rpc streams.
#[derive(Debug, Clone, Copy, Default)]
struct Directions {
    request: bool,
    response: bool,
}

/// These services, behind the guard. `descriptors` tell which rpcs are streams. A request without a [`Caller`] came past the
/// gate, and is refused.
pub fn guarded<'a>(
    routes: Routes,
    descriptors: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Routes, prost_reflect::DescriptorError> {
    let mut streams = HashMap::new();
    for set in descriptors {
        let pool = DescriptorPool::decode(set)?;
        let rpcs = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>());
        streams.extend(
            rpcs.filter(|rpc| rpc.is_client_streaming() || rpc.is_server_streaming())
                .map(|rpc| {
                    let name = format!("{}/{}", rpc.parent_service().full_name(), rpc.name());
                    let directions = Directions {
                        request: rpc.is_client_streaming(),
                        response: rpc.is_server_streaming(),
                    };
                    (name, directions)
                }),
        );
    }
    let guard = from_fn_with_state(Arc::new(streams), guard);
    Ok(Routes::from(routes.into_axum_router().layer(guard)))
}

async fn guard(State(streams): State<Streaming>, mut request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return refuse(&Status::internal("nobody looked at who asks"));
    };
    let rpc = request.uri().path().trim_start_matches('/').to_owned();
    if let Err(status) = caller.authorize(&rpc) {
        return refuse(&status);
    }
    let directions = streams.get(&rpc).copied();
    let is_vital = table::find(&rpc).is_some_and(|rule| rule.kind == Kind::Vital);
    if let Some(unsent) = request.extensions().get::<Unsent>().filter(|_| !is_vital)
        && let Err(status) = unsent.check()
    {
        return refuse(&status);
    }
    let mut held = None;
    let admission = match request.extensions_mut().remove::<Admission>() {
        // It came by the gateway, which has asked, and has bounded what was sent, before it read the body.
        Some(admission) => admission,
        None => match caller.begin(&rpc, call(directions.is_some())) {
            Ok(admission) => {
                request = request.map(|body| {
                    let body = caller.measured(&rpc, body);
                    let streams = directions.unwrap_or_default().request;
                    let (upload, kept) = Upload::new(body, caller.upload(), streams);
                    // What a call has sent is in memory until it is answered; what a stream has sent, a message at a time.
                    held = (!streams).then_some(kept);
                    Body::new(upload)
                });
                admission
            }
            Err(status) => return refuse(&status),
        },
    };
    let lapsed =
        (directions.is_some() && caller.principal().is_some()).then(|| caller.look_after());
    if let Some(lapsed) = &lapsed {
        request = request.map(|body| lapsed.ends(body, Side::Request));
        request.extensions_mut().insert(lapsed.clone());
    }
    // A caller that goes away meanwhile may have had it done all the same.
    let audited = caller.gate.0.audit.begin(&caller, &rpc);
    let mut response = next.run(request).await;
    audited.done(code(&response));
    drop(held);
    if directions.is_some_and(|directions| directions.response) {
        response.extensions_mut().insert(Streams);
    }
    admission.until_answered(match &lapsed {
        Some(lapsed) => response.map(|body| lapsed.ends(body, Side::Response)),
        None => response,
    })
}

/// What an rpc is to the meter.
fn call(streams: bool) -> Call {
    if streams { Call::Stream } else { Call::Request }
}

fn refuse(status: &Status) -> Response {
    status.clone().into_http::<Body>().into_response()
}

/// What became of a call, as far as it is known when the answer begins: an error comes at once, and a stream has begun.
fn code(response: &Response) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}
