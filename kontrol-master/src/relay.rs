//! The relay: a master that doesn't lead tells the leader which pods it heard, in batches over one stream, and answers
//! a keepalive only once the leader counts it.
//!
//! ```text
//! keepalives ──▶ queue ──▶ batch n ──▶ leader        one batch on its way at a time: what comes meanwhile
//!     ◀── answers ◀── ack n ◀──────────┘             makes up the next one; an empty one every HEARTBEAT
//! ```
//!
//! Links: while this master leads, or nobody does, keepalives count at once (a new leader gives every pod a full TTL,
//! and hears of every pod that this master heard within one, as soon as the stream is up). A master that has a leader
//! and can't reach it refuses keepalives: the pods go to another master. So does one that knows of no leader and is
//! cut off from the store, unless all its peers are as well: another may lead meanwhile, and would expire a pod whose
//! keepalives were accepted here.

mod task;
#[cfg(test)]
mod tests;

pub use task::RelayTask;

use crate::{
    election::Election, error::Error, liveness::Instance, model::PodKey, roster::Roster,
    status::Status, store::Revision,
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

/// How many keepalives may wait for a batch; more are refused.
const QUEUE: usize = 65_536;
/// Most refreshes in a batch: some 20 bytes each.
const MAX_BATCH: usize = 20_000;
/// An idle stream carries an empty batch this often.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// A leader that doesn't answer a batch for this long is out of reach.
const ACK_LIMIT: Duration = Duration::from_millis(1000);
/// How long a keepalive waits for the leader, a change of leaders included. Far below the time-out of any slave.
const COUNT_LIMIT: Duration = Duration::from_millis(1500);

/// How this master's keepalives get counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// This master leads.
    Leading,
    /// The leader answers.
    Up,
    /// The leader takes the stream and has answered no batch yet: keepalives wait for it.
    Opening,
    /// Nobody leads.
    NoLeader,
    /// There is a leader, and it can't be reached.
    Down,
    /// Nobody is known to lead, the store can't be asked, and another master may see more.
    Blind,
}

/// Handle on the relay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    queue: mpsc::Sender<Item>,
    link: watch::Receiver<Link>,
}

#[derive(Debug)]
struct Item {
    key: PodKey,
    /// The record that it was held against.
    revision: Revision,
    beat: u64,
    at: Instant,
    counted: Option<oneshot::Sender<()>>,
}

impl Relay {
    /// A relay and its task. `ttl`: how long a keepalive is worth telling a new leader about.
    pub fn new(
        me: Instance,
        roster: Roster,
        election: Election,
        status: Status,
        ttl: Duration,
    ) -> (Self, RelayTask) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (link, receiver) = watch::channel(Link::NoLeader);
        let handle = Self {
            queue: sender,
            link: receiver,
        };
        let task = RelayTask {
            me,
            roster,
            election,
            status,
            ttl,
            queue,
            link,
            pending: Vec::new(),
        };
        (handle, task)
    }

    /// How keepalives get counted at this moment.
    pub fn link(&self) -> Link {
        *self.link.borrow()
    }

    /// Wakes when that changes.
    pub fn changes(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Refuses early when a keepalive could not be counted.
    pub fn check(&self) -> Result<(), Error> {
        match self.link() {
            Link::Down => Err(Self::unreachable()),
            Link::Blind => Err(Self::blind()),
            Link::Leading | Link::Up | Link::Opening | Link::NoLeader => Ok(()),
        }
    }

    /// Makes the leader count a pod that was just heard, and whose record is of this revision.
    pub async fn count(
        &self,
        key: PodKey,
        revision: Revision,
        beat: u64,
        at: Instant,
    ) -> Result<(), Error> {
        match self.link() {
            Link::Leading | Link::NoLeader => return Ok(()),
            Link::Down => return Err(Self::unreachable()),
            Link::Blind => return Err(Self::blind()),
            Link::Up | Link::Opening => {}
        }
        let (counted, answer) = oneshot::channel();
        let item = Item {
            key,
            revision,
            beat,
            at,
            counted: Some(counted),
        };
        self.queue
            .try_send(item)
            .map_err(|_| Error::Unavailable("too many keepalives at once; try again".to_owned()))?;
        match timeout(COUNT_LIMIT, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Self::unreachable()),
        }
    }

    fn unreachable() -> Error {
        Error::Unavailable("this master can't reach the leader; try another master".to_owned())
    }

    fn blind() -> Error {
        Error::Unavailable("this master can't reach the store; try another master".to_owned())
    }
}

impl Item {
    fn count(self) {
        if let Some(counted) = self.counted {
            // Whoever asked may have stopped to wait.
            let _ = counted.send(());
        }
    }
}
