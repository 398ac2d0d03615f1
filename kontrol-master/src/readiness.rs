//! Whether this master can do its work: what `/readyz` and the gRPC health service say.

use crate::{
    relay::{Link, Relay},
    roster::{Changes, Roster},
};
use tokio::sync::watch;

/// Tells whether this master can do its work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    roster: Roster,
    relay: Relay,
}

impl Readiness {
    /// The readiness of a master with this roster and relay.
    pub fn new(roster: Roster, relay: Relay) -> Self {
        Self { roster, relay }
    }

    /// Whether this master can do its work; if not, why.
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.roster.started() || !self.roster.connected() {
            return Err("the store can't be reached");
        }
        match self.relay.link() {
            Link::Leading | Link::Up => Ok(()),
            Link::Opening => Err("the leader has not answered yet"),
            Link::NoLeader => Err("there is no leader"),
            Link::Blind => Err("the store can't be reached"),
            Link::Down => Err("the leader can't be reached"),
        }
    }

    /// Wakes when that may have changed.
    pub fn changes(&self) -> ReadinessChanges {
        ReadinessChanges {
            roster: self.roster.changes(),
            link: self.relay.changes(),
        }
    }
}

/// Wakes when the readiness may have changed.
#[derive(Debug)]
pub struct ReadinessChanges {
    roster: Changes,
    link: watch::Receiver<Link>,
}

impl ReadinessChanges {
    /// Waits. False once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            more = self.roster.next() => more,
            more = self.link.changed() => more.is_ok(),
        }
    }
}
