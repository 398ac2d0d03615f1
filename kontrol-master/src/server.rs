//! The composition root: binds, builds every part, supervises the tasks, and stops them in order.
//!
//! ```text
//! stop ─┬─▶ agents: say goodbye; dispatches: cancel ──▶ listener: refuses, ends streams, drains ──▶ committer, relay
//!       └─▶ term: ends the callback ──▶ election: resigns
//! ```
//!
//! The mirror stops when both ways have come to their end.

mod actions;
mod core;
pub mod pod;

use crate::{
    action::dispatch::Dispatches,
    cluster::advertise::{self, Advertised},
    config::Config,
    metrics::Metrics,
    serve::{
        access::{self, Audit, Credentials, Gate, Meter, hosts::Hosts},
        gateway::{
            self,
            openapi::{self, Openness},
        },
        listener::Port,
        operations::{self, Operations},
        rpc,
    },
};
use anyhow::Context as _;
use axum::middleware::from_fn_with_state;
use core::Core;
use futures::future::join_all;
use kontrol_core::view::PeerMaster;
use kontrol_runtime::{host::host_name, process::reaper, service, supervise::Tasks};
use kontrol_slave::agent::Agent;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{join, net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long connections may take to finish what they are at, once this master stops.
const DRAIN: Duration = Duration::from_secs(3);
/// How long all of the stopping may take: goodbyes, the callback's grace, the drain, and the resignation.
const STOP: Duration = Duration::from_secs(10);

/// A master that is bound and ready to run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: Config,
}

/// The order of stopping. Each stage is stopped by the end of the one before it, however that ended.
#[derive(Debug, Clone)]
struct Stages {
    /// Stops the agents and the term: what the signal does.
    stop: CancellationToken,
    /// Stops the listener and every stream.
    close: CancellationToken,
    /// Stops what requests in flight still need.
    drained: CancellationToken,
    /// Stops the election.
    resign: CancellationToken,
    /// Stops the rest.
    last: CancellationToken,
}

impl Stages {
    fn new(stop: CancellationToken) -> Self {
        let [close, drained, resign, last] = std::array::from_fn(|_| CancellationToken::new());
        Self {
            stop,
            close,
            drained,
            resign,
            last,
        }
    }
}

impl Server {
    /// Binds the port.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let asked = SocketAddr::new(config.bind, config.port);
        let listener = TcpListener::bind(asked).await.with_context(|| {
            format!("can't listen on {asked}; is another program using that port (--port, KONTROL_PORT)?")
        })?;
        let address = listener
            .local_addr()
            .context("read the address listened on")?;
        Ok(Self {
            listener,
            address,
            config,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the token is cancelled and everything has stopped.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        let Self {
            listener,
            address,
            config,
        } = self;
        let own = SocketAddr::new(own_address(address.ip()), address.port());
        let (advertised, following) =
            advertise::open(config.advertise.clone(), config.ip, &config.store, address).await;
        let myself = PeerMaster {
            id: name(&config, address),
            address: advertised.borrow().address.clone().unwrap_or_default(),
            instance: String::new(),
            tls: config.access.files.identity.is_some(),
        };
        let own = own_url(&config, own, &advertised);
        let stages = Stages::new(token.clone());
        let metrics = Arc::new(Metrics::default());
        let mut tasks = Tasks::new(token.clone());
        let core = Core::start(
            &config,
            myself,
            advertised.clone(),
            own.clone(),
            &metrics,
            &stages,
            &mut tasks,
        )?;
        tasks.spawn(
            "the look at the own address",
            following.run(stages.last.clone()),
        );

        let (grpc, health) =
            rpc::routes(core.services.clone()).context("build the reflection service")?;
        let readiness = core.readiness();
        tasks.spawn(
            "the health service",
            rpc::report_health(health, readiness.clone(), token.clone()),
        );
        tasks.spawn("the reaper", reaper::run(stages.last.clone()));
        let access = config.access.clone();
        let (credentials, reading) = Credentials::follow(access.files.clone(), access.known);
        tasks.spawn(
            "the look at tokens and certificates",
            reading.run(stages.last.clone()),
        );
        let audit = Audit::new(Arc::clone(&metrics));
        let gate = Gate::new(
            access::Settings {
                authenticates: access.files.authenticate(),
                open_metrics: access.open_metrics,
            },
            credentials.clone(),
            Hosts::new(&access.hosts, advertised.clone(), credentials.clone()),
            core.services.roster.clone(),
            audit.clone(),
            Meter::new(
                config.limits.traffic.clone(),
                config.limits.said.request_bytes,
                Arc::clone(&metrics),
            ),
        );
        tasks.spawn(
            "the looks after streams",
            gate.clone().joined(stages.close.clone()),
        );
        remark(&config, address, &metrics);
        let openness = Openness {
            authenticates: access.files.authenticate(),
            open_metrics: access.open_metrics,
        };
        let openapi = openapi::document(openness, &operations::ROUTES)
            .context("describe the HTTP routes from the descriptors")?;
        let operations = Operations {
            readiness,
            metrics: Arc::clone(&metrics),
            openapi: openapi.to_string().into(),
        };
        let http = gateway::router(grpc)
            .context("read the HTTP routes from the descriptors")?
            .merge(operations.router())
            .layer(from_fn_with_state(gate, access::identify));
        let agents = pod::agents(
            &config,
            &own,
            &advertised,
            &core.services.roster,
            &core.services.election,
            &mut tasks,
        );
        // A file that does not answer must not hold up the end.
        let agents = match token.run_until_cancelled(agents).await {
            Some(agents) => agents?,
            None => Vec::new(),
        };
        tasks.spawn(
            "the agents",
            report(
                agents,
                core.services.dispatches,
                token,
                stages.close.clone().drop_guard(),
            ),
        );
        tasks.spawn("the listener", async move {
            let _then = stages.drained.drop_guard();
            let port = Port {
                limits: config.limits.port.clone(),
                credentials,
                metrics,
                audit,
                ..Port::new(listener, http)
            };
            port.serve(stages.close, DRAIN).await
        });

        let settings = &config.settings;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), %address, id = core.myself.id, advertise = core.myself.address,
            store = %config.store, ensemble = format!("{}/{}", settings.namespace, settings.app), "serving gRPC and HTTP"
        );
        let token = tasks.token().clone();
        tasks.spawn("the service manager's watchdog", service::watch(token));
        service::ready(&format!("serving gRPC and HTTP on {address}"));
        tasks.run(STOP).await.map_err(Into::into)
    }
}

/// Runs the agents until they have said goodbye, and the dispatches have told slaves what is cancelled: both need the
/// listener.
async fn report(
    agents: Vec<Agent>,
    dispatches: Dispatches,
    token: CancellationToken,
    _then: DropGuard,
) {
    let agents = join_all(agents.into_iter().map(|agent| agent.run(token.clone())));
    let dispatches = async {
        token.cancelled().await;
        // A store that does not answer may hold up the records; the slaves have heard by then. A panic is told elsewhere.
        let _ = timeout(DRAIN, dispatches.joined()).await;
    };
    join!(agents, dispatches);
}

/// Says what is open that may not be meant to be.
fn remark(config: &Config, address: SocketAddr, metrics: &Metrics) {
    let access = &config.access;
    if let Some(remark) = config.credentials.remark() {
        tracing::warn!("{remark}");
    }
    metrics.insecure.set(config.is_insecure().into());
    if config.is_insecure() {
        tracing::warn!(
            %address,
            "insecure: whoever reaches this port can report pods, replace the state and run commands (--insecure); give --tokens or --client-ca, with --tls-cert, to have it ask"
        );
    }
    let beyond = !address.ip().to_canonical().is_loopback();
    if beyond && access.files.tokens.is_some() && access.files.identity.is_none() {
        tracing::warn!(
            %address,
            "tokens pass this port in clear text, for everybody on the way to read; give --tls-cert and --tls-key"
        );
    }
}

/// What people call this master. Masters of one host share its name, but not a port.
fn name(config: &Config, address: SocketAddr) -> String {
    match &config.id {
        Some(id) => id.clone(),
        None => format!("{}-{}", host_name(), address.port()),
    }
}

/// The URL by which this master is reached from its own host: by its callback, and by itself as a pod. A certificate is for
/// the address that others know it by.
fn own_url(config: &Config, own: SocketAddr, advertised: &watch::Receiver<Advertised>) -> String {
    if config.access.files.identity.is_none() {
        return format!("http://{own}");
    }
    let known = advertised.borrow().address.clone();
    format!("https://{}", known.unwrap_or_else(|| own.to_string()))
}

/// The address by which this process reaches its own listener.
pub(crate) fn own_address(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => bound,
    }
}
