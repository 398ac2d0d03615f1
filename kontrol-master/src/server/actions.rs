//! The parts that actions are made of, with their tasks started.

use super::Stages;
use crate::{
    action::{
        custody::Custody, dispatch::Dispatches, history::History, peers::PeerLinks,
        session::Sessions, switchboard::Switchboard,
    },
    cluster::{
        attention::Wakefulness, election::Election, peers::Dialer, relay::Relay, roster::Roster,
        store::SharedStore,
    },
    metrics::Metrics,
};
use kontrol_core::{liveness::Instance, settings::Settings, view::PeerMaster};
use kontrol_runtime::supervise::{Children, Tasks};
use std::sync::Arc;

/// What the parts of actions are built of.
pub(super) struct Parts<'a> {
    pub(super) me: Instance,
    pub(super) myself: &'a PeerMaster,
    pub(super) store: &'a SharedStore,
    pub(super) roster: &'a Roster,
    pub(super) election: &'a Election,
    pub(super) relay: &'a Relay,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) settings: &'a Settings,
    pub(super) dialer: &'a Dialer,
}

/// Handles on the parts.
pub(super) struct Actions {
    pub(super) dispatches: Dispatches,
    pub(super) sessions: Sessions,
    pub(super) switchboard: Switchboard,
    pub(super) history: History,
    pub(super) streams: Children,
}

impl Actions {
    /// Builds the parts and starts their tasks. Dispatches end first, so that what they cancel still gets to the slaves.
    pub(super) fn start(parts: Parts<'_>, stages: &Stages, tasks: &mut Tasks) -> Self {
        let Parts { me, settings, .. } = parts;
        let (roster, election) = (parts.roster.clone(), parts.election.clone());
        let Stages {
            stop,
            close,
            drained,
            last,
            ..
        } = stages.clone();
        let (wakefulness, attention) = Wakefulness::new();
        let (switchboard, switching) = Switchboard::new(roster.clone(), Arc::clone(parts.metrics));
        let (history, keeping) = History::new(
            Arc::clone(parts.store),
            roster.clone(),
            election.clone(),
            settings.history,
        );
        let sessions = Sessions::new(
            me,
            roster.clone(),
            parts.relay.clone(),
            switchboard.clone(),
            wakefulness,
            close.clone(),
        );
        let dispatches = Dispatches::new(
            parts.myself.clone(),
            roster.clone(),
            switchboard.clone(),
            history.clone(),
            Arc::clone(parts.metrics),
            settings,
            stop.clone(),
        );
        let links = PeerLinks::new(
            me,
            roster.clone(),
            switchboard.clone(),
            parts.dialer.clone(),
        );
        let custody = Custody::new(
            parts.myself.instance.clone(),
            roster,
            election,
            history.clone(),
            dispatches.clone(),
        );
        let streams = Children::new("a peer's stream");
        tasks.spawn("the attention", attention.run(last.clone()));
        tasks.spawn("the switchboard", switching.run(drained.clone()));
        tasks.spawn("the history", keeping.run(drained.clone()));
        tasks.spawn("the links to the peers", links.run(drained));
        tasks.spawn("the custody of actions", custody.run(stop));
        tasks.spawn("the dispatches", dispatches.clone().joined());
        tasks.spawn("the channels of slaves", sessions.clone().joined());
        tasks.spawn("the streams of the peers", streams.clone().joined(close));
        Self {
            dispatches,
            sessions,
            switchboard,
            history,
            streams,
        }
    }
}
