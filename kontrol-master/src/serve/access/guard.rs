//! The guard before every gRPC service, called over a socket or by the gateway: it asks the table and the meter, audits what
//! is done, and ends streams whose callers lost what they showed.

use super::{
    Admission, Caller,
    lapse::{Side, Until},
};
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use kontrol_core::traffic::Call;
use prost_reflect::DescriptorPool;
use std::{collections::HashSet, sync::Arc};
use tonic::{Code, Status, service::Routes};

/// The rpcs that are streams, in either direction.
type Streams = Arc<HashSet<String>>;

/// These services, behind the guard. `descriptors` tell which rpcs are streams. A request without a [`Caller`] came past the
/// gate, and is refused.
pub fn guarded<'a>(
    routes: Routes,
    descriptors: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Routes, prost_reflect::DescriptorError> {
    let mut streams = HashSet::new();
    for set in descriptors {
        let pool = DescriptorPool::decode(set)?;
        let rpcs = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>());
        streams.extend(
            rpcs.filter(|rpc| rpc.is_client_streaming() || rpc.is_server_streaming())
                .map(|rpc| format!("{}/{}", rpc.parent_service().full_name(), rpc.name())),
        );
    }
    let guard = from_fn_with_state(Arc::new(streams), guard);
    Ok(Routes::from(routes.into_axum_router().layer(guard)))
}

async fn guard(State(streams): State<Streams>, mut request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return refuse(&Status::internal("nobody looked at who asks"));
    };
    let rpc = request.uri().path().trim_start_matches('/').to_owned();
    if let Err(status) = caller.authorize(&rpc) {
        return refuse(&status);
    }
    let streams = streams.contains(&rpc);
    let admission = match request.extensions_mut().remove::<Admission>() {
        // It came by the gateway, which has asked before it read the body.
        Some(admission) => admission,
        None => match caller.begin(&rpc, call(streams)) {
            Ok(admission) => {
                request = request.map(|body| caller.measured(&rpc, body));
                admission
            }
            Err(status) => return refuse(&status),
        },
    };
    let lapses = streams && caller.principal().is_some();
    let request = if lapses {
        request.map(|body| until(body, &caller, Side::Request))
    } else {
        request
    };
    let response = next.run(request).await;
    caller.gate.0.audit.done(&caller, &rpc, code(&response));
    admission.until_answered(if lapses {
        response.map(|body| until(body, &caller, Side::Response))
    } else {
        response
    })
}

/// What an rpc is to the meter.
fn call(streams: bool) -> Call {
    if streams { Call::Stream } else { Call::Request }
}

fn until(body: Body, caller: &Caller, side: Side) -> Body {
    let body = tonic::body::Body::new(body);
    Body::new(Until::new(body, caller.clone().lapse(), side))
}

fn refuse(status: &Status) -> Response {
    status.clone().into_http::<Body>().into_response()
}

/// What became of a call, as far as it is known when the answer begins: an error comes at once, and a stream has begun.
fn code(response: &Response) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}
