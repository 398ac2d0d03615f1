//! The parts that have no face: store, roster, election, relay, intake and term, with their tasks started.

use super::{
    Stages,
    actions::{Actions, Parts},
};
use crate::{
    action::dispatch::Dispatches,
    cluster::{
        advertise::Advertised,
        election::{Campaign, Election},
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
use kontrol_core::{liveness::Instance, settings::Settings, view::PeerMaster};
use kontrol_runtime::supervise::Tasks;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;

/// Handles on the parts.
pub(super) struct Core {
    pub(super) myself: PeerMaster,
    pub(super) roster: Roster,
    pub(super) election: Election,
    store: SharedStore,
    relay: Relay,
    status: Status,
    keepalives: Keepalives,
    settings: Arc<Settings>,
    actions: Actions,
}

impl Core {
    /// Builds the parts and starts their tasks. `advertised`: the address of `myself`, as it goes on.
    pub(super) fn start(
        config: &Config,
        myself: PeerMaster,
        advertised: watch::Receiver<Advertised>,
        own: SocketAddr,
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
        let store = store::open(
            &config.store,
            &settings.namespace,
            &settings.app,
            config.etcd.clone(),
        )
        .with_context(|| format!("open the store {} (--store, KONTROL_STORE)", config.store))?;
        let store: SharedStore = Arc::new(Measured::new(store, Arc::clone(metrics)));
        let status = Status::default();
        let (roster, mirror) = Roster::new(Arc::clone(&store));
        let (election, campaign) = Campaign::advertising(
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
        });
        let hurried = store::serving(&store, settings.patience());
        let (committer, committer_task) = Committer::new(hurried, roster.clone(), Arc::clone(&id));
        let keepalives = Keepalives::new(
            me,
            roster.clone(),
            committer,
            relay.clone(),
            Arc::clone(metrics),
        );
        let term = term::Context {
            store: Arc::clone(&store),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            metrics: Arc::clone(metrics),
            id,
            settings: Arc::new(term_settings(config, own)),
        };

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
            },
            stages,
            tasks,
        );
        let Stages {
            stop,
            drained,
            resign,
            last,
            ..
        } = stages.clone();
        let until_drained = drained.clone();
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
            status.clone().announce(roster.clone(), last.clone()),
        );
        let then = resign.clone().drop_guard();
        tasks.spawn("the term", async move {
            let _then = then;
            term::supervise(term, detached, stop).await;
        });
        tasks.spawn("the election", async move {
            let _then = last.drop_guard();
            campaign.run(resign).await;
            // What drains still needs the roster: to answer, and to know whom to relay to.
            until_drained.cancelled().await;
        });
        Ok(Self {
            myself,
            roster,
            election,
            store,
            relay,
            status,
            keepalives,
            settings,
            actions,
        })
    }

    /// The actions that this master carries.
    pub(super) fn dispatches(&self) -> Dispatches {
        self.actions.dispatches.clone()
    }

    /// What the gRPC services work with.
    pub(super) fn services(&self, stages: &Stages) -> rpc::Context {
        rpc::Context {
            store: Arc::clone(&self.store),
            roster: self.roster.clone(),
            election: self.election.clone(),
            status: self.status.clone(),
            keepalives: self.keepalives.clone(),
            relay: self.relay.clone(),
            dispatches: self.actions.dispatches.clone(),
            sessions: self.actions.sessions.clone(),
            switchboard: self.actions.switchboard.clone(),
            history: self.actions.history.clone(),
            streams: self.actions.streams.clone(),
            instance: self.myself.instance.clone(),
            id: self.myself.id.as_str().into(),
            settings: Arc::clone(&self.settings),
            token: stages.close.clone(),
        }
    }

    /// Whether this master can do its work.
    pub(super) fn readiness(&self) -> Readiness {
        Readiness::new(
            self.roster.clone(),
            self.relay.clone(),
            self.election.clone(),
        )
    }
}

fn term_settings(config: &Config, own: SocketAddr) -> term::Settings {
    let callback = config.callback.clone().map(|program| {
        let runner: Arc<dyn callback::Runner> = Arc::new(callback::Settings {
            timeout: config.callback_timeout,
            ..callback::Settings::new(program, format!("http://{own}"))
        });
        runner
    });
    term::Settings {
        ttl: config.settings.ttl,
        lost: config.settings.lost,
        damper: config.settings.damper,
        damper_max: config.settings.damper_max,
        callback,
    }
}
