//! The relay: a master that doesn't lead tells the leader which pods it heard, attached or lost sight of, in batches over
//! one stream, and answers a keepalive only once the leader counts it.
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
    election::Election,
    error::Error,
    liveness::{Detached, Instance},
    model::PodKey,
    roster::Roster,
    status::Status,
    store::Revision,
};
use std::{sync::Arc, time::Duration};
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
    detached: mpsc::Sender<Detached>,
    roster: Roster,
}

/// A sign of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Sign {
    /// The pod's key.
    pub key: PodKey,
    /// The revision of the record that it was held against.
    pub revision: Revision,
    /// The beat; 0: unknown.
    pub beat: u64,
    /// The number of its attachment to this master; 0: none.
    pub attachment: u64,
    /// When it came.
    pub at: Instant,
}

#[derive(Debug)]
struct Item {
    sign: Sign,
    /// The attachment ended then: no sign of life.
    detached: bool,
    counted: Option<oneshot::Sender<()>>,
}

impl Relay {
    /// A relay and its task. `ttl`: how long a keepalive is worth telling a new leader about. `detached`: where this
    /// master's term reads which channels ended.
    pub fn new(
        me: Instance,
        roster: Roster,
        election: Election,
        status: Status,
        ttl: Duration,
        detached: mpsc::Sender<Detached>,
    ) -> (Self, RelayTask) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (link, receiver) = watch::channel(Link::NoLeader);
        let handle = Self {
            queue: sender,
            link: receiver,
            detached,
            roster: roster.clone(),
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

    /// Makes the leader count a pod that was just heard.
    pub async fn count(&self, sign: Sign) -> Result<(), Error> {
        match self.link() {
            Link::Leading | Link::NoLeader => return Ok(()),
            Link::Down => return Err(Self::unreachable()),
            Link::Blind => return Err(Self::blind()),
            Link::Up | Link::Opening => {}
        }
        let (counted, answer) = oneshot::channel();
        let item = Item {
            sign,
            detached: false,
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

    /// Tells the leader that an attachment ended without a goodbye. Where that can't be told, the pod's TTL decides.
    pub fn detached(&self, sign: Sign) {
        let item = Item {
            sign,
            detached: true,
            counted: None,
        };
        match self.link() {
            Link::Leading => self.detached_here(sign),
            // A full queue is of keepalives, which matter more.
            Link::Up | Link::Opening => drop(self.queue.try_send(item)),
            Link::NoLeader | Link::Down | Link::Blind => {}
        }
    }

    /// Tells this master's own term, which leads, that an attachment ended without a goodbye, here or at a peer.
    pub fn detached_here(&self, sign: Sign) {
        let view = self.roster.peek();
        if let Some(member) = view.member(sign.key)
            && member.mod_revision <= sign.revision
        {
            let detached = Detached {
                pod: (sign.key, member.pod.seq()),
                heard: Arc::clone(&member.heard),
                attachment: sign.attachment,
                at: sign.at,
            };
            // More than the queue holds are left to their TTL.
            let _ = self.detached.try_send(detached);
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
