//! The composition root: binds, builds every part, supervises the tasks, and stops them in order.
//!
//! ```text
//! stop ─┬─▶ agents: say goodbye ──▶ listener: refuses, ends streams, drains ──▶ committer, relay
//!       └─▶ term: ends the callback ──▶ election: resigns ──▶ mirror
//! ```

use crate::{
    callback,
    config::Config,
    election::Campaign,
    gateway,
    keepalive::{Committer, Keepalives},
    listener,
    liveness::Instance,
    metrics::{self, Metrics},
    pod,
    relay::{Link, Relay},
    roster::{PeerMaster, Roster},
    rpc,
    status::Status,
    store::{self, SharedStore, measured::Measured},
    term,
};
use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use futures::future::join_all;
use kontrol_slave::{identity::host_name, supervise::Tasks};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long connections may take to finish what they are at, once this master stops.
const DRAIN: Duration = Duration::from_secs(3);
/// How long all of the stopping may take: the callback's grace, the drain, and the resignation.
const STOP: Duration = Duration::from_secs(10);

/// Whether this master can do its work; if not, why.
pub fn ready(roster: &Roster, relay: &Relay) -> Result<(), &'static str> {
    if !roster.started() || !roster.connected() {
        return Err("the store can't be reached");
    }
    match relay.link() {
        Link::Leading | Link::Up => Ok(()),
        Link::NoLeader => Err("there is no leader"),
        Link::Down => Err("the leader can't be reached"),
    }
}

/// A master that is bound and ready to run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: Config,
}

impl Server {
    /// Binds the port.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let asked = SocketAddr::new(config.bind, config.port);
        let listener = TcpListener::bind(asked)
            .await
            .with_context(|| format!("can't listen on {asked}; is another program using that port (--port, KONTROL_PORT)?"))?;
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
        let settings = Arc::new(config.settings.clone());
        let me = Instance(rand::random_range(1..=u64::MAX));
        let id: Arc<str> = match &config.id {
            Some(id) => id.as_str().into(),
            // Masters of one host have one host name.
            None => format!("{}-{}", host_name(), address.port()).into(),
        };
        let metrics = Arc::new(Metrics::default());
        let store = store::open(
            &config.store,
            &settings.namespace,
            &settings.app,
            config.etcd.clone(),
        )
        .with_context(|| format!("open the store {} (--store, KONTROL_STORE)", config.store))?;
        let store: SharedStore = Arc::new(Measured::new(store, Arc::clone(&metrics)));
        let advertise = match &config.advertise {
            Some(advertise) => advertise.clone(),
            None => {
                SocketAddr::new(reachable(address.ip(), &config).await, address.port()).to_string()
            }
        };

        // The order of stopping: each stage's token is cancelled by the end of the stage before it.
        let (close, drained) = (CancellationToken::new(), CancellationToken::new());
        let (resign, last) = (CancellationToken::new(), CancellationToken::new());

        let status = Status::default();
        let (roster, mirror) = Roster::new(Arc::clone(&store));
        let (election, campaign) = Campaign::new(
            Arc::clone(&store),
            roster.clone(),
            PeerMaster {
                id: id.to_string(),
                address: advertise.clone(),
                instance: me.to_string(),
            },
            settings.fover,
        );
        let (relay, relay_task) = Relay::new(
            me,
            roster.clone(),
            election.clone(),
            status.clone(),
            settings.ttl,
        );
        let (committer, committer_task) =
            Committer::new(Arc::clone(&store), roster.clone(), Arc::clone(&id));
        let keepalives = Keepalives::new(
            me,
            roster.clone(),
            committer,
            relay.clone(),
            Arc::clone(&metrics),
        );

        let loopback = SocketAddr::new(own_address(address.ip()), address.port());
        let callback = config.callback.clone().map(|program| {
            Arc::new(callback::Settings {
                timeout: config.callback_timeout,
                ..callback::Settings::new(program, format!("http://{loopback}"))
            })
        });
        let term = term::Context {
            store: Arc::clone(&store),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            metrics: Arc::clone(&metrics),
            id: Arc::clone(&id),
            settings: Arc::new(term::Settings {
                ttl: settings.ttl,
                damper: settings.damper,
                damper_max: settings.damper_max,
                callback,
            }),
        };
        let services = rpc::Context {
            store,
            roster: roster.clone(),
            election: election.clone(),
            relay: relay.clone(),
            status: status.clone(),
            keepalives,
            id: Arc::clone(&id),
            settings: Arc::clone(&settings),
            token: close.clone(),
        };
        let (grpc, health) = rpc::routes(services).context("build the reflection service")?;
        let operations = Operations {
            roster: roster.clone(),
            relay: relay.clone(),
            metrics: Arc::clone(&metrics),
        };
        let http = gateway::router(grpc)
            .context("read the HTTP routes from the descriptors")?
            .merge(operations.router());

        let mut tasks = Tasks::new(token.clone());
        tasks.spawn("the mirror of the store", mirror.run(last.clone()));
        tasks.spawn("the committer", committer_task.run(drained.clone()));
        tasks.spawn("the relay", relay_task.run(drained.clone()));
        tasks.spawn(
            "the metrics",
            metrics::observe(metrics, roster.clone(), last.clone()),
        );
        tasks.spawn(
            "the callback's announcements",
            status.announce(roster.clone(), last.clone()),
        );
        tasks.spawn(
            "the health service",
            rpc::report_health(health, roster.clone(), relay.clone(), token.clone()),
        );
        let agents = pod::agents(
            &config, loopback, &advertise, &roster, &election, &mut tasks,
        )
        .await?;
        tasks.spawn("the agents", {
            let (token, next) = (token.clone(), close.clone().drop_guard());
            async move {
                join_all(agents.into_iter().map(|agent| agent.run(token.clone()))).await;
                token.cancelled().await;
                drop(next);
            }
        });
        tasks.spawn("the listener", {
            let next = drained.drop_guard();
            async move {
                let served = listener::serve(listener, http, close, DRAIN).await;
                drop(next);
                served
            }
        });
        tasks.spawn("the term", {
            let next = resign.clone().drop_guard();
            async move {
                term::supervise(term, token).await;
                drop(next);
            }
        });
        tasks.spawn("the election", {
            let next = last.drop_guard();
            async move {
                campaign.run(resign).await;
                drop(next);
            }
        });

        tracing::info!(
            %address, advertise, %id, store = %config.store, ensemble = format!("{}/{}", settings.namespace, settings.app),
            "serving gRPC and HTTP"
        );
        tasks.run(STOP).await.map_err(Into::into)
    }
}

/// The address by which this process reaches its own listener.
fn own_address(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) | IpAddr::V6(_) => bound,
    }
}

/// An address by which others reach a listener that is bound to this one.
async fn reachable(bound: IpAddr, config: &Config) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    if let Some(ip) = config.ip {
        return ip;
    }
    match pod::outward_address(config).await {
        Some(ip) => ip,
        None => {
            tracing::warn!("can't tell by which address others reach this master; set --advertise");
            own_address(bound)
        }
    }
}

/// What the routes of operation answer from.
#[derive(Debug, Clone)]
struct Operations {
    roster: Roster,
    relay: Relay,
    metrics: Arc<Metrics>,
}

impl Operations {
    fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| std::future::ready("ok\n")))
            .route(
                "/readyz",
                get(|State(operations): State<Self>| std::future::ready(operations.readyz())),
            )
            .route(
                "/metrics",
                get(|State(operations): State<Self>| std::future::ready(operations.metrics())),
            )
            .with_state(self)
    }

    fn readyz(&self) -> impl IntoResponse + use<> {
        match ready(&self.roster, &self.relay) {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        }
    }

    fn metrics(&self) -> impl IntoResponse + use<> {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], self.metrics.encode())
    }
}
