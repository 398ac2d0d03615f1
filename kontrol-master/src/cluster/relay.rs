//! The relay: a master that doesn't lead has the leader count which pods it heard, attached or lost sight of, and
//! answers a keepalive only once it counts.
//!
//! ```text
//!                ┌─▶ stream ──▶ batch n ──▶ leader          one batch on its way at a time; an empty one each HEARTBEAT
//! keepalives ────┤      ◀── ack n ◀──────────┘
//!                └─▶ detour ──▶ relay/<master> in the store ──▶ the leader's watch      at most five writes a second
//! ```
//!
//! A keepalive counts when this master leads and its lease is confirmed, when the leader has acknowledged it, or when it
//! stands in the store. The stream is the rule, and costs the store nothing. What the leader does not acknowledge in
//! time takes the detour as well, and all does while there is no stream (the leader died, hangs, or can't be reached):
//! so no keepalive is refused while the store can be written. The leader removes a pod only if nothing newer than what
//! it knows stands under `relay/`. A master that reaches neither the leader nor the store refuses.
//!
//! The way back: once the leader has acknowledged all that this master heard within a TTL, and the stream has kept up for
//! a while, the key is deleted.

mod detour;
mod stream;
mod task;
#[cfg(test)]
mod tests;
mod way;

pub use detour::DetourTask;
pub use task::RelayTask;
pub use way::Limits;

use crate::{
    cluster::{
        election::Election,
        error::Error,
        peers::Dialer,
        roster::Roster,
        status::Status,
        store::{self, SharedStore},
    },
    metrics::{Metrics, Queue},
};
use kontrol_core::{
    kv::Revision,
    liveness::{Detached, Instance},
    model::PodKey,
    view::View,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use way::{Sight, Way};

/// How long a batch and the answer before it may have been under way together.
const LATE_LIMIT: Duration = Duration::from_millis(1250);
/// How many keepalives may wait for a batch; more are refused.
const QUEUE: usize = 65_536;
/// How long a written record waits for a leader to tell of it, where there is none: whoever is elected reads the store.
const ELECTED_LIMIT: Duration = Duration::from_millis(100);

/// How this master and the leader are linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// This master leads.
    Leading,
    /// The leader answers.
    Up,
    /// The leader takes the stream and has not acknowledged yet all that this master heard.
    Opening,
    /// The leader takes its time to answer.
    Late,
    /// Nobody leads.
    NoLeader,
    /// There is a leader, and it can't be reached.
    Down,
    /// The leader's address leads to another master, this one maybe.
    Stranger,
}

/// What became of a keepalive that was to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It counts.
    Yes,
    /// The record that it was held against is gone or was written anew, as can be seen from this revision on. It doesn't
    /// count; it is to be decided about again.
    Again(Revision),
}

/// Handle on the relay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    stream: mpsc::Sender<Item>,
    detour: mpsc::Sender<Item>,
    link: watch::Receiver<Link>,
    detached: mpsc::Sender<Detached>,
    roster: Roster,
    election: Election,
    /// Whether other masters can share the store: if not, there is nobody to tell.
    shared: bool,
    limits: Limits,
    metrics: Arc<Metrics>,
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

/// A sign on its way to the leader.
#[derive(Debug)]
struct Item {
    sign: Sign,
    /// The attachment ended then: no sign of life.
    detached: bool,
    /// The record was written, or deleted, by that revision: no sign of life.
    written: bool,
    /// Who waits for the answer.
    answer: Option<oneshot::Sender<Counted>>,
}

impl Item {
    fn settle(self, counted: Counted) {
        if let Some(answer) = self.answer {
            // Whoever asked may have stopped to wait.
            let _ = answer.send(counted);
        }
    }

    /// Whether nobody waits for it any more. What nobody ever waited for is not abandoned.
    fn abandoned(&self) -> bool {
        self.answer.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// What a relay works with.
#[derive(Debug)]
pub struct Parts {
    /// This start of this master.
    pub me: Instance,
    /// The id of this master.
    pub id: Arc<str>,
    /// The store.
    pub store: SharedStore,
    /// The roster.
    pub roster: Roster,
    /// The election.
    pub election: Election,
    /// Where the callback's status is told, as the leader tells it.
    pub status: Status,
    /// How long a pod may be silent, and so how long a keepalive is worth telling a new leader about.
    pub ttl: Duration,
    /// How often pods report.
    pub interval: Duration,
    /// Where this master's term reads which channels ended.
    pub detached: mpsc::Sender<Detached>,
    /// Where a full queue is counted.
    pub metrics: Arc<Metrics>,
    /// How the leader is dialled.
    pub dialer: Dialer,
}

impl Relay {
    /// A relay, and its two tasks: the stream to the leader, and the detour through the store.
    pub fn new(parts: Parts) -> (Self, RelayTask, DetourTask) {
        let limits = Limits::serving(parts.interval);
        let (stream, to_stream) = mpsc::channel(QUEUE);
        let (detour, to_detour) = mpsc::channel(QUEUE);
        let (link, receiver) = watch::channel(Link::NoLeader);
        let handle = Self {
            stream,
            detour,
            link: receiver.clone(),
            detached: parts.detached,
            roster: parts.roster.clone(),
            election: parts.election.clone(),
            shared: parts.store.leases_expire(),
            limits,
            metrics: parts.metrics,
        };
        let detour = DetourTask::new(
            parts.me,
            parts.id,
            store::serving(&parts.store, limits.answer),
            parts.roster.clone(),
            to_detour,
            receiver,
        );
        let task = RelayTask {
            me: parts.me,
            roster: parts.roster,
            election: parts.election,
            status: parts.status,
            ttl: parts.ttl,
            limits,
            queue: to_stream,
            link,
            echo: None,
            pending: Vec::new(),
            told_down: None,
            dialer: parts.dialer,
        };
        (handle, task, detour)
    }

    /// How this master and the leader are linked at this moment.
    pub fn link(&self) -> Link {
        *self.link.borrow()
    }

    /// Wakes when that changes.
    pub fn changes(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    fn way(&self) -> Way {
        way::way(Sight {
            leads: self.election.leads().is_some(),
            shared: self.shared,
            sees_store: self.roster.connected(),
            link: self.link(),
        })
    }

    /// Refuses early when a keepalive could not be counted.
    pub fn check(&self) -> Result<(), Error> {
        match self.way() {
            Way::Refuse => Err(unreachable()),
            Way::Here | Way::Stream | Way::Both | Way::Detour => Ok(()),
        }
    }

    /// Makes a pod count that was just heard.
    pub async fn count(&self, sign: Sign) -> Result<Counted, Error> {
        let way = self.way();
        match way {
            Way::Here => return Ok(Counted::Yes),
            Way::Refuse => return Err(unreachable()),
            Way::Stream | Way::Both | Way::Detour => {}
        }
        let end = Instant::now() + self.limits.answer;
        let mut acknowledged = match way {
            Way::Stream | Way::Both => Some(self.hand(&self.stream, Queue::Relay, sign)?),
            Way::Here | Way::Detour | Way::Refuse => None,
        };
        if way == Way::Stream
            && let Some(answer) = &mut acknowledged
        {
            match timeout(self.limits.patience, &mut *answer).await {
                Ok(Ok(counted)) => return Ok(counted),
                // The stream broke.
                Ok(Err(_)) => acknowledged = None,
                Err(_) => {}
            }
        }
        // Time has passed, in which this master may have been elected.
        match self.way() {
            Way::Here => return Ok(Counted::Yes),
            Way::Refuse => return Err(unreachable()),
            Way::Stream | Way::Both | Way::Detour => {}
        }
        let stored = if self.roster.connected() {
            Some(self.hand(&self.detour, Queue::Detour, sign)?)
        } else {
            None
        };
        match timeout_at(end, first(acknowledged, stored)).await {
            Ok(Some(counted)) => Ok(counted),
            Ok(None) | Err(_) if self.election.leads().is_some() => Ok(Counted::Yes),
            Ok(None) | Err(_) => Err(unreachable()),
        }
    }

    /// Makes the leader know that a pod's record was written, before anyone is told: what other masters hear of the pod from
    /// then on they must not hold against an older one. Where there is no stream to the leader, it learns it from the store.
    /// False when there is one, and the leader did not answer in time; how long that is, is the caller's to say, within what
    /// a keepalive may take.
    pub async fn written(&self, key: PodKey, revision: Revision, limit: Duration) -> bool {
        if let Some(member) = self.roster.peek().member(key) {
            member.heard.wrote(revision);
        }
        let start = Instant::now();
        let mut link = self.changes();
        loop {
            link.borrow_and_update();
            match self.way() {
                Way::Stream | Way::Both => break,
                Way::Here | Way::Refuse => return true,
                // Whoever was elected a moment ago hears of it as soon as it takes the stream.
                Way::Detour => {
                    match timeout_at(start + limit.min(ELECTED_LIMIT), link.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return true,
                    }
                }
            }
        }
        let (sender, answer) = oneshot::channel();
        let item = Item {
            sign: Sign {
                key,
                revision,
                beat: 0,
                attachment: 0,
                at: Instant::now(),
            },
            detached: false,
            written: true,
            answer: Some(sender),
        };
        // A stream that breaks meanwhile is a leader that is gone, or reads the store.
        let end = start + limit.min(self.limits.answer);
        self.stream.try_send(item).is_ok() && timeout_at(end, answer).await.is_ok()
    }

    /// Tells the leader that an attachment ended without a goodbye. Where that can't be told, the pod's TTL decides.
    pub fn detached(&self, sign: Sign) {
        let item = Item {
            sign,
            detached: true,
            written: false,
            answer: None,
        };
        // A full queue is of keepalives, which matter more.
        let sent = match self.way() {
            Way::Here => return self.detached_here(sign),
            Way::Stream | Way::Both => self.stream.try_send(item),
            Way::Detour => self.detour.try_send(item),
            Way::Refuse => return,
        };
        if sent.is_err() {
            self.metrics.turned_away(Queue::Ends);
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
            if self.detached.try_send(detached).is_err() {
                self.metrics.turned_away(Queue::Ends);
            }
        }
    }

    fn hand(
        &self,
        to: &mpsc::Sender<Item>,
        queue: Queue,
        sign: Sign,
    ) -> Result<oneshot::Receiver<Counted>, Error> {
        let (sender, answer) = oneshot::channel();
        let item = Item {
            sign,
            detached: false,
            written: false,
            answer: Some(sender),
        };
        to.try_send(item).map_err(|_| {
            self.metrics.turned_away(queue);
            Error::Unavailable("too many keepalives at once; try again".to_owned())
        })?;
        Ok(answer)
    }
}

/// Counts a sign that a peer heard, on the leader. False when the record that it was held against is known to be gone or
/// to be written anew, though the view may not show that yet.
pub fn hear(view: &View, sign: Sign, master: Instance) -> bool {
    let Some(member) = view.member(sign.key) else {
        // A record that this view doesn't show yet gives its pod a full TTL once it does.
        return sign.revision > view.revision();
    };
    if sign.revision < member.mod_revision || !member.heard.is_latest(sign.revision) {
        return false;
    }
    member.heard.touch(sign.at, sign.beat, Some(master));
    member.heard.attach(sign.attachment);
    // Again, now that it is noted: it may be about to be removed.
    member.heard.is_latest(sign.revision)
}

/// Whether a batch may have been under way for too long to count: since the answer with the stamp that it echoes, `since`
/// has passed on the leader's clock, and `held` of that before it was sent. Its caller takes the stream for broken by then.
pub fn is_late(since: Duration, held: Duration) -> bool {
    since.saturating_sub(held) > LATE_LIMIT
}

/// The first answer of the two ways; nothing when neither gives one.
async fn first(
    mut acknowledged: Option<oneshot::Receiver<Counted>>,
    mut stored: Option<oneshot::Receiver<Counted>>,
) -> Option<Counted> {
    loop {
        // Both arms are cancel safe: a receiver that gave its answer is not asked again.
        tokio::select! {
            answer = receive(&mut acknowledged), if acknowledged.is_some() => match answer {
                Some(counted) => return Some(counted),
                None => acknowledged = None,
            },
            answer = receive(&mut stored), if stored.is_some() => match answer {
                Some(counted) => return Some(counted),
                None => stored = None,
            },
            else => return None,
        }
    }
}

async fn receive(answer: &mut Option<oneshot::Receiver<Counted>>) -> Option<Counted> {
    match answer {
        Some(answer) => answer.await.ok(),
        None => None,
    }
}

fn unreachable() -> Error {
    Error::Unavailable(
        "this master reaches neither the leader nor the store in time; try another master"
            .to_owned(),
    )
}
