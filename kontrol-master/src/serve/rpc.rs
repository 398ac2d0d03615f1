//! The gRPC face: thin adapters between `kontrol.v1` and the domain. Nothing is decided here.

mod action;
mod convert;
mod ensemble;
mod exchange;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod health;
mod keepalive;
mod operate;
mod page;
mod peer;
mod reflection;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod watch;

use crate::{
    action::{dispatch::Dispatches, history::History, session::Sessions, switchboard::Switchboard},
    cluster::{
        election::Election, error::Error, peers::Dialer, readiness::Readiness, relay::Relay,
        roster::Roster, status::Status, store::SharedStore,
    },
    ensemble::{keepalive::Keepalives, term::Memory},
    metrics::Metrics,
    serve::access::{Caller, guarded},
};
use kontrol_core::{model::invalid::clip, settings::Settings, view::View};
use kontrol_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    internal::v1::{
        exchange_service_server::ExchangeServiceServer, peer_service_server::PeerServiceServer,
    },
    v1::{
        action_service_server::{ActionServiceServer, SERVICE_NAME as ACTION},
        ensemble_service_server::{EnsembleServiceServer, SERVICE_NAME as ENSEMBLE},
        keepalive_service_server::{KeepaliveServiceServer, SERVICE_NAME as KEEPALIVE},
        operate_service_server::{OperateServiceServer, SERVICE_NAME as OPERATE},
    },
};
use kontrol_runtime::supervise::Children;
use reflection::Reflection;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

/// Largest keepalive: one with the largest payload, labels and annotations fits well.
const MAX_PING_BYTES: usize = 2 * 1024 * 1024;
/// Largest batch of a relay.
const MAX_RELAY_BYTES: usize = 4 * 1024 * 1024;
/// Largest message of a peer: an order with the largest command for a page of slaves.
const MAX_EXCHANGE_BYTES: usize = MAX_MESSAGE_BYTES + MAX_RELAY_BYTES;

/// What the services work with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The store.
    pub store: SharedStore,
    /// The roster.
    pub roster: Roster,
    /// The election.
    pub election: Election,
    /// The callback's status.
    pub status: Status,
    /// What this master handled last as the leader.
    pub memory: Memory,
    /// The intake.
    pub keepalives: Keepalives,
    /// The way to the leader.
    pub relay: Relay,
    /// Actions of this master.
    pub dispatches: Dispatches,
    /// Slaves that are attached to this master.
    pub sessions: Sessions,
    /// The way to every slave.
    pub switchboard: Switchboard,
    /// The way to other masters.
    pub dialer: Dialer,
    /// What became of actions.
    pub history: History,
    /// The id of this master.
    pub id: Arc<str>,
    /// Which start of it this is.
    pub instance: String,
    /// The tasks of streams, which are waited for at the end.
    pub streams: Children,
    /// Where it is counted who was turned away.
    pub metrics: Arc<Metrics>,
    /// Settings.
    pub settings: Arc<Settings>,
    /// Cancelled when streams are to end.
    pub token: CancellationToken,
}

impl Context {
    /// The roster, once it was read.
    fn view(&self) -> Result<Arc<View>, Error> {
        if self.roster.started() {
            return Ok(self.roster.view());
        }
        Err(Error::Unavailable(
            "this master has not read the roster yet; try another master".to_owned(),
        ))
    }
}

/// Who calls: the principal, the address, and what the client calls itself.
fn caller<T>(request: &Request<T>) -> String {
    let caller = request.extensions().get::<Caller>();
    let principal = caller.and_then(Caller::principal).map(ToString::to_string);
    let address = request
        .remote_addr()
        .map(|address| address.ip().to_string());
    let agent = request.metadata().get("user-agent");
    let agent = agent.and_then(|agent| agent.to_str().ok()).map(clip);
    [principal.as_deref(), address.as_deref(), agent]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Every service, with reflection and health. The reporter tells the health of all of them.
pub fn routes(
    context: Context,
) -> Result<(Routes, HealthReporter), prost_reflect::DescriptorError> {
    let reporter = HealthReporter::new();
    let health = health::service(reporter.clone(), context.token.clone());
    let described = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let reflection = Reflection::new(&described, context.token.clone())?;
    let (reflection, reflection_alpha) = reflection.services();
    let keepalive = KeepaliveServiceServer::new(keepalive::Service::new(context.clone()))
        .max_decoding_message_size(MAX_PING_BYTES);
    let ensemble = EnsembleServiceServer::new(ensemble::Service::new(context.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let action = ActionServiceServer::new(action::Service::new(context.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let operate = OperateServiceServer::new(operate::Service::new(context.clone()))
        .max_encoding_message_size(usize::MAX);
    let exchange = ExchangeServiceServer::new(exchange::Service::new(context.clone()))
        .max_decoding_message_size(MAX_EXCHANGE_BYTES);
    let peer = PeerServiceServer::new(peer::Service::new(context))
        .max_decoding_message_size(MAX_RELAY_BYTES);
    let described = described.into_iter().chain([
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]);
    let routes = Routes::new(keepalive)
        .add_service(ensemble)
        .add_service(action)
        .add_service(operate)
        .add_service(peer)
        .add_service(exchange)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha);
    Ok((guarded(routes, described)?, reporter))
}

/// Keeps the health service true, until the token is cancelled: serving while this master is ready.
pub async fn report_health(
    reporter: HealthReporter,
    readiness: Readiness,
    token: CancellationToken,
) {
    let mut changes = readiness.changes();
    let mut told = None;
    while !token.is_cancelled() {
        let ready = readiness.check().is_ok();
        if told != Some(ready) {
            tell(&reporter, ready).await;
            told = Some(ready);
        }
        if token.run_until_cancelled(changes.next()).await == Some(false) {
            break;
        }
    }
    tell(&reporter, false).await;
}

async fn tell(reporter: &HealthReporter, ready: bool) {
    let status = if ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for service in ["", KEEPALIVE, ENSEMBLE, ACTION, OPERATE] {
        reporter.set_service_status(service, status).await;
    }
}
