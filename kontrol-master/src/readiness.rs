//! Whether this master can do its work: what `/readyz` and the gRPC health service say.

use crate::{
    election::{Confirmed, Election},
    relay::{Link, Relay},
    roster::{Changes, Roster},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

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
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.roster.started() || !self.roster.connected() {
            return Err("the store can't be reached");
        }
        if let Some(why) = *self.election.trouble().borrow() {
            return Err(why);
        }
        match self.relay.link() {
            Link::Leading | Link::Up | Link::Late => Ok(()),
            // Keepalives count through the store, where it can be written: the lease tells.
            Link::Down if self.election.in_touch() => Ok(()),
            Link::Down => Err("neither the leader nor the store can be reached"),
            Link::Opening => Err("the leader has not answered yet"),
            Link::NoLeader => Err("there is no leader"),
            Link::Stranger => Err(
                "the leader's address leads to another master: give each master an address that the others can dial \
                 (--advertise)",
            ),
        }
    }

    /// Wakes when that may have changed.
    pub fn changes(&self) -> ReadinessChanges {
        ReadinessChanges {
            roster: self.roster.changes(),
            link: self.relay.changes(),
            confirmed: self.election.confirmed(),
            trouble: self.election.trouble(),
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
}

impl ReadinessChanges {
    /// Waits. False once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> bool {
        let end = self.confirmed.borrow_and_update().end();
        let end = end.filter(|end| *end > Instant::now());
        let lapsed = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            more = self.roster.next() => more,
            more = self.link.changed() => more.is_ok(),
            more = self.confirmed.changed() => more.is_ok(),
            () = lapsed => true,
            more = self.trouble.changed() => more.is_ok(),
        }
    }
}
