//! A master that leads, without a network, under virtual time: a client of a service is its server's caller.

mod peer;
mod status;
mod streams;

use super::*;
use crate::{
    cluster::{
        attention::Wakefulness,
        election::Campaign,
        relay::Parts,
        store::{EtcdOptions, StoreUrl, open},
    },
    ensemble::keepalive::Committer,
};
use kontrol_core::{
    kv::{Op, Outcome, Txn},
    liveness::Instance,
    model::Pod,
    testing::report,
    view::{PeerMaster, pod_key},
};
use kontrol_runtime::clock::Clock;
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinSet};

const ME: Instance = Instance(1);

/// A master that leads.
struct Leader {
    context: Context,
    epoch: i64,
    _tasks: JoinSet<()>,
}

impl Leader {
    async fn start() -> Self {
        Self::on(open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap()).await
    }

    async fn on(store: SharedStore) -> Self {
        let second = Duration::from_secs(1);
        let settings = Arc::new(Settings {
            ttl: 5 * second,
            lost: 60 * second,
            ..kontrol_core::testing::settings()
        });
        let token = CancellationToken::new();
        let myself = PeerMaster {
            id: "leader".into(),
            address: "leader:1".into(),
            instance: ME.to_string(),
            tls: false,
        };
        let (roster, mirror) = Roster::new(store.clone());
        let (election, campaign) = Campaign::by(
            Clock::of_runtime(),
            store.clone(),
            roster.clone(),
            myself.clone(),
            settings.fover,
        );
        let status = Status::default();
        let (relay, _, _) = Relay::new(Parts {
            me: ME,
            id: "leader".into(),
            store: store.clone(),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            ttl: settings.ttl,
            interval: settings.interval(),
            detached: mpsc::channel(1).0,
            metrics: Arc::default(),
            dialer: crate::cluster::peers::Dialer::default(),
        });
        let (committer, _) = Committer::new(
            store.clone(),
            roster.clone(),
            "leader".into(),
            settings.limits.clone(),
            Arc::default(),
        );
        let metrics = Arc::default();
        let (switchboard, switching) = Switchboard::new(roster.clone(), Arc::clone(&metrics));
        let (history, _) = History::new(
            store.clone(),
            roster.clone(),
            election.clone(),
            settings.history,
        );
        let dispatches = Dispatches::new(
            myself.clone(),
            roster.clone(),
            switchboard.clone(),
            history.clone(),
            Arc::clone(&metrics),
            &settings,
            token.clone(),
        );
        let sessions = Sessions::new(
            ME,
            roster.clone(),
            relay.clone(),
            switchboard.clone(),
            Wakefulness::new().0,
            token.clone(),
        );
        let keepalives = Keepalives::new(ME, roster.clone(), committer, relay.clone(), metrics);
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror.run(token.clone()));
        tasks.spawn(campaign.run(token.clone()));
        tasks.spawn(switching.run(token.clone()));
        let mut lead = election.changes();
        let fence = lead.wait_for(Option::is_some).await.unwrap().clone();
        let context = Context {
            metrics: Arc::default(),
            store,
            roster,
            election,
            status,
            memory: Memory::default(),
            keepalives,
            relay,
            dispatches,
            sessions,
            switchboard,
            history,
            id: "leader".into(),
            instance: myself.instance,
            streams: Children::new("a stream"),
            settings,
            token,
            dialer: crate::cluster::peers::Dialer::default(),
        };
        Self {
            context,
            epoch: fence.unwrap().epoch(),
            _tasks: tasks,
        }
    }

    /// A pod joins; tells the revision of its record.
    async fn join(&self, pod: &Pod) -> i64 {
        let txn = Txn {
            ops: vec![Op::put(pod_key(pod.key()), pod.encode())],
            ..Txn::default()
        };
        let store: &SharedStore = &self.context.store;
        let Outcome::Committed(revision) = store.commit(txn).await.unwrap() else {
            unreachable!("nothing is compared");
        };
        let limit = Duration::from_secs(1);
        assert!(self.context.roster.caught_up(revision, limit).await);
        revision
    }
}
