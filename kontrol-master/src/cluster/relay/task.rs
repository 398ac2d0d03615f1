//! The task of the relay: finds out who leads, and keeps the stream to the leader.

use super::{Counted, Item, Limits, Link, stream::Ended};
use crate::cluster::{
    election::Election,
    peers::Dialer,
    roster::Roster,
    status::{CallbackStatus, Status},
};
use kontrol_core::{
    kv::{Fence, Revision},
    liveness::Instance,
};
use kontrol_runtime::backoff::Backoff;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// How often the task looks at who leads, should a wake-up be lost.
const LOOK: Duration = Duration::from_millis(200);
/// For how long a leader that says that another leads is asked again, before it counts as out of reach: as a rule this
/// master's roster shows the other in a moment.
const OVERTAKEN_LIMIT: Duration = Duration::from_secs(1);

/// The task behind the stream of [`Relay`](super::Relay).
#[derive(Debug)]
pub struct RelayTask {
    pub(super) me: Instance,
    pub(super) roster: Roster,
    pub(super) election: Election,
    pub(super) status: Status,
    pub(super) ttl: Duration,
    pub(super) limits: Limits,
    pub(super) queue: mpsc::Receiver<Item>,
    pub(super) link: watch::Sender<Link>,
    /// The stamp of the leader's last answer on this stream, and when it came.
    pub(super) echo: Option<(u64, Instant)>,
    /// Taken from the queue and not yet acknowledged.
    pub(super) pending: Vec<Item>,
    /// Which leader, by its epoch, is out of reach and how, as it was told; absent since it acknowledged all.
    pub(super) told_down: Option<(Revision, Link)>,
    pub(super) dialer: Dialer,
}

impl RelayTask {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        token.run_until_cancelled(self.relay()).await;
    }

    async fn relay(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let mut overtaken: Option<Instant> = None;
        let mut lead = self.election.changes();
        loop {
            lead.borrow_and_update();
            let leader = self.roster.peek().leader().cloned();
            let pause = match leader {
                _ if self.election.leads().is_some() => {
                    overtaken = None;
                    self.alone(Link::Leading);
                    LOOK
                }
                Some(leader) if !leader.master.is(self.me) => {
                    let span = tracing::info_span!("link", peer = leader.master.address);
                    let stream = self.stream(&leader, &mut backoff, &mut lead);
                    let ended = stream.instrument(span.clone()).await;
                    let is_overtaken = matches!(ended, Ended::Overtaken);
                    overtaken = is_overtaken.then(|| overtaken.unwrap_or_else(Instant::now));
                    if matches!(ended, Ended::Moved) {
                        Duration::ZERO
                    } else if overtaken.is_some_and(|since| since.elapsed() <= OVERTAKEN_LIMIT) {
                        LOOK / 4
                    } else {
                        span.in_scope(|| self.down(leader.epoch, &ended));
                        backoff.failed()
                    }
                }
                // Nobody leads; or we will in a moment, or did until just now.
                Some(_) | None => {
                    overtaken = None;
                    self.alone(Link::NoLeader);
                    LOOK
                }
            };
            self.pause(pause, &mut lead).await;
        }
    }

    /// Waits, but no longer than until this master starts or stops to lead, or the roster changes.
    async fn pause(&self, pause: Duration, lead: &mut watch::Receiver<Option<Fence>>) {
        let mut changes = self.roster.changes();
        let epoch = || self.roster.peek().leader().map(|leader| leader.epoch);
        let before = epoch();
        let moved = async {
            while epoch() == before {
                if !changes.next().await {
                    std::future::pending::<()>().await;
                }
            }
        };
        // All arms are cancel safe: what wakes them is looked at again.
        tokio::select! {
            () = sleep(pause) => {}
            () = turned(lead) => {}
            () = moved => {}
        }
    }

    /// There is no other master to tell. If this one leads, what waits counts here; else whoever waits tries another
    /// way.
    fn alone(&mut self, link: Link) {
        self.told_down = None;
        if link == Link::NoLeader {
            self.forget_run();
        }
        self.set(link);
        let leads = link == Link::Leading;
        self.drain();
        for item in self.pending.drain(..) {
            if leads {
                item.settle(Counted::Yes);
            }
        }
    }

    /// The leader is out of reach: keepalives take the detour.
    fn down(&mut self, epoch: Revision, ended: &Ended) {
        let stranger = match ended {
            Ended::Stranger(who) => Some(who),
            Ended::Moved | Ended::NotLeading | Ended::Overtaken | Ended::Broken(_) => None,
        };
        let link = stranger.map_or(Link::Down, |_| Link::Stranger);
        self.set(link);
        // Once for each leader, however often it is tried again.
        if self.told_down.replace((epoch, link)) != Some((epoch, link)) {
            match stranger {
                Some(who) => tracing::warn!(
                    "the leader's address leads to {who}: give each master an address that the others can dial \
                     (--advertise); keepalives go through the store meanwhile"
                ),
                None => tracing::warn!(
                    cause = %ended,
                    "can't reach the leader; keepalives go through the store until it is back or another leads"
                ),
            }
        }
        self.drain();
        // Who waits goes on by the detour; ends of channels wait for the next stream, as long as they mean something.
        let ttl = self.ttl;
        self.pending
            .retain(|item| item.detached && item.sign.at.elapsed() < ttl);
    }

    /// True when that is news.
    pub(super) fn set(&self, link: Link) -> bool {
        self.link
            .send_if_modified(|now| std::mem::replace(now, link) != link)
    }

    fn drain(&mut self) {
        while let Ok(item) = self.queue.try_recv() {
            self.pending.push(item);
        }
    }

    /// The leader is gone, and with it what its callback was doing.
    fn forget_run(&self) {
        self.status.update(CallbackStatus::forget_plans);
    }
}

/// Waits until this master starts or stops to lead. After the election has ended nothing changes any more.
pub(super) async fn turned(lead: &mut watch::Receiver<Option<Fence>>) {
    if lead.changed().await.is_err() {
        std::future::pending().await
    }
}
