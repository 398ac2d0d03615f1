//! The parts that have no face: store, roster, election, relay, intake and term, with their tasks started.

use super::{
    Stages,
    actions::{Actions, Parts},
};
use crate::{
    cluster::{
        advertise::Advertised,
        election::Campaign,
        peers::Dialer,
        readiness::Readiness,
        relay::{self, Relay},
        roster::{Roster, gauges},
        status::Status,
        store::{self, SharedStore, measured::Measured},
    },
    config::Config,
    ensemble::{
        callback,
        keepalive::{Committer, Keepalives},
        term,
    },
    metrics::Metrics,
    serve::rpc,
};
use anyhow::Context as _;
use kontrol_core::{
    liveness::{Detached, Instance},
    view::PeerMaster,
};
use kontrol_runtime::{clock::Clock, supervise::Tasks};
use std::{path::Path, sync::Arc};
use tokio::sync::{mpsc, watch};

/// Handles on the parts.
pub(super) struct Core {
    pub(super) myself: PeerMaster,
    /// What the gRPC services work with, and much of the rest too.
    pub(super) services: rpc::Context,
}

impl Core {
    /// Builds the parts and starts their tasks. `advertised`: the address of `myself`, as it goes on. `own`: the URL by which the
    /// callback reaches this master.
    pub(super) fn start(
        config: &Config,
        myself: PeerMaster,
        advertised: watch::Receiver<Advertised>,
        own: String,
        metrics: &Arc<Metrics>,
        stages: &Stages,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let settings = Arc::new(config.settings.clone());
        let me = Instance(rand::random_range(1..=u64::MAX));
        let id: Arc<str> = myself.id.as_str().into();
        let myself = PeerMaster {
            instance: me.to_string(),
            ..myself
        };
        let store = open_store(config, metrics)?;
        let dialer = Dialer::new(config.credentials.clone());
        let (status, memory) = (Status::default(), term::Memory::default());
        let (roster, mirror) = Roster::new(Arc::clone(&store));
        let (election, campaign) = Campaign::advertising(
            Clock::default(),
            Arc::clone(&store),
            roster.clone(),
            myself.clone(),
            advertised,
            settings.fover,
        );
        let (detachments, detached) = term::detachments();
        let (relay, relay_task, detour) = Relay::new(relay::Parts {
            me,
            id: Arc::clone(&id),
            store: Arc::clone(&store),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            ttl: settings.ttl,
            interval: settings.interval(),
            detached: detachments,
            metrics: Arc::clone(metrics),
            dialer: dialer.clone(),
        });
        let hurried = store::serving(&store, settings.patience());
        let (committer, committer_task) = Committer::new(
            hurried,
            roster.clone(),
            Arc::clone(&id),
            Arc::clone(metrics),
        );
        let keepalives = Keepalives::new(
            me,
            roster.clone(),
            committer,
            relay.clone(),
            Arc::clone(metrics),
        );
        let actions = Actions::start(
            Parts {
                me,
                myself: &myself,
                store: &store,
                roster: &roster,
                election: &election,
                relay: &relay,
                metrics,
                settings: &settings,
                dialer: &dialer,
            },
            stages,
            tasks,
        );
        let Stages { drained, last, .. } = stages.clone();
        tasks.spawn("the mirror of the store", mirror.run(last.clone()));
        tasks.spawn("the committer", committer_task.run(drained.clone()));
        tasks.spawn("the relay", relay_task.run(drained.clone()));
        tasks.spawn("the relay through the store", detour.run(drained));
        tasks.spawn(
            "the metrics",
            gauges::observe(Arc::clone(metrics), roster.clone(), last.clone()),
        );
        tasks.spawn(
            "the callback's announcements",
            status.clone().announce(roster.clone(), last),
        );
        let term = term::Context {
            store: Arc::clone(&store),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            memory: memory.clone(),
            metrics: Arc::clone(metrics),
            id: Arc::clone(&id),
            settings: Arc::new(term_settings(config, own)),
        };
        lead(term, detached, campaign, stages, tasks);
        let services = rpc::Context {
            instance: myself.instance.clone(),
            token: stages.close.clone(),
            store,
            roster,
            election,
            status,
            memory,
            keepalives,
            relay,
            dispatches: actions.dispatches,
            sessions: actions.sessions,
            switchboard: actions.switchboard,
            dialer,
            history: actions.history,
            streams: actions.streams,
            metrics: Arc::clone(metrics),
            id,
            settings,
        };
        Ok(Self { myself, services })
    }

    /// Whether this master can do its work.
    pub(super) fn readiness(&self) -> Readiness {
        let rpc::Context {
            roster,
            relay,
            election,
            ..
        } = self.services.clone();
        Readiness::new(roster, relay, election)
    }
}

fn open_store(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<SharedStore> {
    let (url, settings) = (&config.store, &config.settings);
    let store = store::open(url, &settings.namespace, &settings.app, config.etcd.clone())
        .with_context(|| format!("open the store {url} (--store, KONTROL_STORE)"))?;
    Ok(Arc::new(Measured::new(store, Arc::clone(metrics))))
}

/// Starts the term and the election. This master resigns once its term has ended, and the rest stops behind that.
fn lead(
    term: term::Context,
    detached: mpsc::Receiver<Detached>,
    campaign: Campaign,
    stages: &Stages,
    tasks: &mut Tasks,
) {
    let Stages {
        stop,
        drained,
        resign,
        last,
        ..
    } = stages.clone();
    let then = resign.clone().drop_guard();
    tasks.spawn("the term", async move {
        let _then = then;
        term::supervise(term, detached, stop).await;
    });
    tasks.spawn("the election", async move {
        let _then = last.drop_guard();
        campaign.run(resign).await;
        // What drains still needs the roster: to answer, and to know whom to relay to.
        drained.cancelled().await;
    });
}

fn term_settings(config: &Config, own: String) -> term::Settings {
    let callback = config.callback.clone().map(|program| {
        let runner: Arc<dyn callback::Runner> = Arc::new(callback::Settings {
            timeout: config.callback_timeout,
            ca: config.credentials.ca().map(Path::to_owned),
            ..callback::Settings::new(program, own)
        });
        runner
    });
    term::Settings {
        ttl: config.settings.ttl,
        lost: config.settings.lost,
        damper: config.settings.damper,
        damper_max: config.settings.damper_max,
        safeguard: config.settings.safeguard,
        authenticates: config.access.files.authenticate(),
        callback,
    }
}
