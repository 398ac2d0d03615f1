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
//! cut off from the store: another may lead meanwhile, and would expire a pod whose keepalives were accepted here.

use crate::{
    backoff::Backoff,
    election::Election,
    error::Error,
    liveness::Instance,
    model::PodKey,
    roster::{Candidate, Roster},
    status::Status,
    store::Revision,
};
use kontrol_proto::internal::v1::{
    Refresh, RelayRequest, RelayResponse, peer_service_client::PeerServiceClient,
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status as RpcStatus, Streaming, transport::Endpoint};

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
    /// Nobody is known to lead, and the store can't be asked.
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

/// The task behind [`Relay`].
#[derive(Debug)]
pub struct RelayTask {
    me: Instance,
    roster: Roster,
    election: Election,
    status: Status,
    ttl: Duration,
    queue: mpsc::Receiver<Item>,
    link: watch::Sender<Link>,
    /// Taken from the queue and not yet counted.
    pending: Vec<Item>,
}

/// Why a stream to the leader ended.
enum Ended {
    /// Another master leads now, or none.
    Moved,
    /// The callee was reached and says that it doesn't lead.
    NotLeading,
    /// The callee was reached and knows a later leader, which this master's roster doesn't show yet.
    Overtaken,
    /// It can't be reached, or doesn't answer.
    Broken(String),
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

impl RelayTask {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        token.run_until_cancelled(self.relay()).await;
    }

    async fn relay(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let mut overtaken: Option<Instant> = None;
        let mut changes = self.roster.changes();
        let mut lead = self.election.changes();
        loop {
            let leader = self.roster.peek().leader().cloned();
            let ended = match leader {
                _ if self.election.leads().is_some() => {
                    self.count_alone(Link::Leading);
                    None
                }
                Some(leader) if !leader.master.is(self.me) => {
                    Some(self.stream(&leader, &mut backoff).await)
                }
                // Nobody leads; or we will in a moment, or did until just now.
                Some(_) | None => {
                    self.forget_run();
                    self.count_leaderless();
                    None
                }
            };
            let ended = match (ended, overtaken) {
                // As a rule the roster shows it in a moment. Cut off from the store, it never does.
                (Some(Ended::Overtaken), Some(since)) if since.elapsed() > ACK_LIMIT => Some(
                    Ended::Broken("another leads since, and the store doesn't tell who".to_owned()),
                ),
                (Some(Ended::Overtaken), since) => {
                    overtaken = since.or_else(|| Some(Instant::now()));
                    sleep(HEARTBEAT / 4).await;
                    continue;
                }
                (ended, _) => {
                    overtaken = None;
                    ended
                }
            };
            match ended {
                Some(Ended::Moved | Ended::Overtaken) => continue,
                Some(Ended::NotLeading) => {
                    self.count_leaderless();
                    sleep(HEARTBEAT).await;
                }
                Some(Ended::Broken(cause)) => {
                    let before = self.link.send_replace(Link::Down);
                    if before != Link::Down {
                        tracing::warn!(
                            cause,
                            "can't reach the leader; refusing keepalives until it is back or another leads"
                        );
                    }
                    self.drop_late();
                    sleep(backoff.failed()).await;
                }
                None => {
                    // All arms are cancel safe; a lost wake-up costs at most a heart-beat.
                    tokio::select! {
                        _ = changes.next() => {}
                        _ = lead.changed() => {}
                        () = sleep(HEARTBEAT) => {}
                    }
                }
            }
        }
    }

    /// Keepalives count until somebody leads, unless this master could not see who does.
    fn count_leaderless(&mut self) {
        if self.roster.connected() && self.election.in_touch() {
            self.count_alone(Link::NoLeader);
            return;
        }
        let before = self.link.send_replace(Link::Blind);
        // Before the first snapshot there is nothing to lose sight of.
        if before != Link::Blind && self.roster.started() {
            tracing::warn!("can't ask the store who leads; refusing keepalives until it is back");
        }
        self.drop_late();
    }

    /// Keepalives count without anybody else.
    fn count_alone(&mut self, link: Link) {
        self.link
            .send_if_modified(|now| std::mem::replace(now, link) != link);
        let mut waiting = std::mem::take(&mut self.pending);
        while let Ok(item) = self.queue.try_recv() {
            waiting.push(item);
        }
        waiting.into_iter().for_each(Item::count);
    }

    /// Answers no to keepalives that waited too long, by dropping them.
    fn drop_late(&mut self) {
        while let Ok(item) = self.queue.try_recv() {
            self.pending.push(item);
        }
        self.pending
            .retain(|item| item.at.elapsed() < ACK_LIMIT / 2);
    }

    /// The leader is gone, and with it what its callback was doing.
    fn forget_run(&self) {
        self.status.update(|status| {
            status.running_since = None;
            status.running_digest.clear();
            status.pending_since = None;
            status.retry_at = None;
        });
    }

    async fn stream(&mut self, leader: &Candidate, backoff: &mut Backoff) -> Ended {
        let uri = format!("http://{}", leader.master.address);
        let endpoint = match Endpoint::from_shared(uri) {
            Ok(endpoint) => endpoint.connect_timeout(ACK_LIMIT / 2).tcp_nodelay(true),
            Err(error) => {
                return Ended::Broken(format!("its address {:?}: {error}", leader.master.address));
            }
        };
        let (sender, receiver) = mpsc::channel(1);
        let open = async {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| RpcStatus::unavailable(source(&error)))?;
            PeerServiceClient::new(channel)
                .max_decoding_message_size(1 << 20)
                .relay(ReceiverStream::new(receiver))
                .await
        };
        let mut answers = match timeout(ACK_LIMIT, open).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::from(&status),
            Err(_) => return Ended::Broken("no answer in time".to_owned()),
        };
        // From here on keepalives go into the queue; `catch_up` sees those that counted alone before.
        self.link.send_if_modified(|now| {
            let alone = matches!(now, Link::Leading | Link::NoLeader);
            if alone {
                *now = Link::Opening;
            }
            alone
        });
        self.catch_up();
        // What was on its way when it ends may or may not count; it goes to whoever leads next, which can do no harm.
        self.batches(leader, &sender, &mut answers, backoff).await
    }

    /// Whoever leads now hears of every pod that this master heard lately.
    fn catch_up(&mut self) {
        let view = self.roster.view();
        // What an earlier stream left of this is told anew.
        self.pending.retain(|item| item.counted.is_some());
        for pod in view.pods() {
            let Some(member) = view.member(pod.key()) else {
                continue;
            };
            if member.heard.master() == Some(self.me)
                && let Some(at) = member.heard.at()
                && at.elapsed() < self.ttl
            {
                self.pending.push(Item {
                    key: pod.key(),
                    revision: member.mod_revision,
                    beat: member.heard.beat(),
                    at,
                    counted: None,
                });
            }
        }
    }

    async fn batches(
        &mut self,
        leader: &Candidate,
        sender: &mpsc::Sender<RelayRequest>,
        answers: &mut Streaming<RelayResponse>,
        backoff: &mut Backoff,
    ) -> Ended {
        let mut changes = self.roster.changes();
        let mut number = 0;
        loop {
            let mut due = number == 0 || !self.pending.is_empty();
            if !due {
                // All arms are cancel safe: `recv_many` takes nothing unless it completes, and an answer that comes
                // between two batches ends the stream anyway.
                tokio::select! {
                    taken = self.queue.recv_many(&mut self.pending, MAX_BATCH) => {
                        if taken == 0 {
                            return Ended::Moved;
                        }
                    }
                    more = changes.next() => {
                        let epoch = self.roster.peek().leader().map(|now| now.epoch);
                        if !more || epoch != Some(leader.epoch) {
                            return Ended::Moved;
                        }
                    }
                    answer = answers.message() => return match answer {
                        Err(status) => Ended::from(&status),
                        Ok(_) => Ended::Broken("the stream closed".to_owned()),
                    },
                    () = sleep(HEARTBEAT) => due = true,
                }
            }
            if due {
                number += 1;
                let size = self.pending.len().min(MAX_BATCH);
                if sender.try_send(self.batch(leader, number, size)).is_err() {
                    return Ended::Broken("the stream closed".to_owned());
                }
                if let Some(ended) = self.answer(answers, number, size).await {
                    return ended;
                }
                backoff.reset();
                if self.link.send_replace(Link::Up) != Link::Up {
                    tracing::info!(
                        leader = leader.master.address,
                        epoch = leader.epoch,
                        "following the leader"
                    );
                }
            }
        }
    }

    fn batch(&self, leader: &Candidate, number: u64, size: usize) -> RelayRequest {
        let refreshes = self.pending[..size].iter().map(|item| {
            let key = item.key.as_u128();
            Refresh {
                key_high: u64::try_from(key >> 64).unwrap_or_default(),
                key_low: u64::try_from(key & u128::from(u64::MAX)).unwrap_or_default(),
                age_ms: u32::try_from(item.at.elapsed().as_millis()).unwrap_or(u32::MAX),
                beat: item.beat,
                revision: item.revision,
            }
        });
        RelayRequest {
            master: self.me.to_string(),
            epoch: leader.epoch,
            batch: number,
            refreshes: refreshes.collect(),
        }
    }

    /// Waits for the leader's answer to a batch, and answers the keepalives in it.
    async fn answer(
        &mut self,
        answers: &mut Streaming<RelayResponse>,
        number: u64,
        size: usize,
    ) -> Option<Ended> {
        let response = match timeout(ACK_LIMIT, answers.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return Some(Ended::Broken("the stream closed".to_owned())),
            Ok(Err(status)) => return Some(Ended::from(&status)),
            Err(_) => return Some(Ended::Broken("no answer in time".to_owned())),
        };
        if response.batch != number {
            return Some(Ended::Broken(format!(
                "it answered batch {} instead of {number}",
                response.batch
            )));
        }
        self.pending.drain(..size).for_each(Item::count);
        if let Some(callback) = response.callback {
            self.status.set(callback);
        }
        None
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

impl From<&RpcStatus> for Ended {
    fn from(status: &RpcStatus) -> Self {
        if status.code() == Code::FailedPrecondition {
            Self::NotLeading
        } else if status.code() == Code::Aborted {
            Self::Overtaken
        } else {
            Self::Broken(status.message().to_owned())
        }
    }
}

/// The innermost cause of an error: the only part that says what happened.
fn source(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests;
