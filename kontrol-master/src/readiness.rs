//! Whether this master can do its work: what `/readyz` and the gRPC health service say.

use crate::{
    election::{Confirmed, Election},
    relay::{Link, Relay},
    roster::{Changes, Roster},
};
use std::borrow::Cow;
use tokio::sync::watch;

/// Tells whether this master can do its work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    roster: Roster,
    relay: Relay,
    election: Election,
}

impl Readiness {
    /// The readiness of a master with this roster, relay and election.
    pub fn new(roster: Roster, relay: Relay, election: Election) -> Self {
        Self {
            roster,
            relay,
            election,
        }
    }

    /// Whether this master can do its work; if not, why.
    pub fn check(&self) -> Result<(), Cow<'static, str>> {
        if !self.roster.started() || !self.roster.connected() {
            return Err(match self.roster.trouble() {
                Some(why) => format!("the store can't be reached: {why}").into(),
                None => "the store can't be reached".into(),
            });
        }
        if let Some(why) = *self.election.trouble().borrow() {
            return Err(why.into());
        }
        let why = match self.relay.link() {
            Link::Leading | Link::Up | Link::Late => return Ok(()),
            // Keepalives count through the store, where it can be written: the lease tells.
            Link::Down if self.election.in_touch() => return Ok(()),
            Link::Down => "neither the leader nor the store can be reached",
            Link::Opening => "the leader has not answered yet",
            Link::NoLeader => "there is no leader",
            Link::Stranger => {
                "the leader's address leads to another master: give each master an address that the others can dial \
                 (--advertise)"
            }
        };
        Err(why.into())
    }

    /// Wakes when that may have changed.
    pub fn changes(&self) -> ReadinessChanges {
        ReadinessChanges {
            roster: self.roster.changes(),
            link: self.relay.changes(),
            confirmed: self.election.confirmed(),
            trouble: self.election.trouble(),
            election: self.election.clone(),
        }
    }
}

/// Wakes when the readiness may have changed.
#[derive(Debug)]
pub struct ReadinessChanges {
    roster: Changes,
    link: watch::Receiver<Link>,
    confirmed: watch::Receiver<Confirmed>,
    trouble: watch::Receiver<Option<&'static str>>,
    election: Election,
}

impl ReadinessChanges {
    /// Waits. False once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> bool {
        self.confirmed.borrow_and_update();
        tokio::select! {
            more = self.roster.next() => more,
            more = self.link.changed() => more.is_ok(),
            more = self.confirmed.changed() => more.is_ok(),
            () = self.election.lapses() => true,
            more = self.trouble.changed() => more.is_ok(),
        }
    }
}
