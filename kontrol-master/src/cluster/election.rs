//! The election: one lease for each master, which carries its presence (`masters/<id>`) and its candidacy
//! (`leader/<lease>`). The oldest candidate leads, in the epoch that its key's create-revision names: the recipe of
//! etcd's own election API. So `etcdctl elect` joins it as well: once it is elected, no master leads until it goes away.
//!
//! A master believes that it leads only while two things hold: its key is the oldest in the roster, and its lease was
//! confirmed so recently, by its own clock (see [`kontrol_runtime::clock`]) from before the question was sent, that no other master
//! can see the lease end yet. So it stops believing before another can start.

mod presence;

use crate::cluster::{
    advertise::Advertised,
    roster::Roster,
    store::{SharedStore, StoreError, commit_or_read},
};
use futures::future::join_all;
use kontrol_core::{
    kv::{Compare, Fence, LeaseId, Outcome, Revision, Txn},
    view::{MASTERS, PeerMaster},
};
use kontrol_runtime::{
    backoff::Backoff,
    clock::{Clock, Moment},
};
use presence::{Presence, candidacy, put};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Most leases that are remembered to be given back.
const MAX_LEFT: usize = 8;

/// How far this master's lease is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The store lives inside this process: nobody else can ever lead.
    Forever,
    /// The lease can't end before `at + ttl`.
    Lease {
        /// When the last question was sent that was answered with yes.
        at: Moment,
        /// The lease's time to live.
        ttl: Duration,
    },
}

impl Confirmed {
    /// The moment at which a leader that has heard nothing further must have stopped: well before the lease can end.
    pub fn end(self) -> Option<Moment> {
        match self {
            Self::Forever => None,
            Self::Lease { at, ttl } => Some(at + ttl.mul_f64(0.9)),
        }
    }

    fn holds(self, now: Moment) -> bool {
        self.end().is_none_or(|end| now < end)
    }
}

/// Handle on the election. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Election {
    lead: watch::Receiver<Option<Fence>>,
    confirmed: watch::Receiver<Confirmed>,
    /// The candidacy of now. It is set before the lease is confirmed, and read behind that.
    seat: watch::Receiver<Option<LeaseId>>,
    trouble: watch::Receiver<Option<&'static str>>,
    longer: watch::Receiver<Option<Duration>>,
    clock: Clock,
}

impl Election {
    /// Why this master must not be relied on, as far as its own settings are to blame.
    pub fn trouble(&self) -> watch::Receiver<Option<&'static str>> {
        self.trouble.clone()
    }

    /// The right to write as the leader, while this master leads.
    pub fn leads(&self) -> Option<Fence> {
        let holds = self.in_touch();
        holds.then(|| self.lead.borrow().clone()).flatten()
    }

    /// Whether the store confirmed this master's lease lately: if not, others may have elected a leader unseen.
    pub fn in_touch(&self) -> bool {
        self.confirmed.borrow().holds(self.clock.now())
    }

    /// The candidacy of this master (`leader/<lease>`), while its lease surely has not ended: all that time, nobody saw the
    /// key gone from the store.
    pub fn seat(&self) -> Option<LeaseId> {
        self.in_touch().then(|| *self.seat.borrow()).flatten()
    }

    /// Waits until the present confirmation of the lease runs out. Never ends if there is none, or none that can run
    /// out. Cancel safe.
    pub async fn lapses(&self) {
        let end = self.confirmed.borrow().end();
        match end.filter(|end| self.clock.now() < *end) {
            Some(end) => self.clock.sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    /// Wakes when this master starts or stops to lead.
    pub fn changes(&self) -> watch::Receiver<Option<Fence>> {
        self.lead.clone()
    }

    /// The lease that the store granted, where it is longer than what was asked for.
    pub fn longer_lease(&self) -> Option<Duration> {
        *self.longer.borrow()
    }

    /// How far the lease is confirmed, as that goes on.
    pub fn confirmed(&self) -> watch::Receiver<Confirmed> {
        self.confirmed.clone()
    }
}

/// The task behind [`Election`].
#[derive(Debug)]
pub struct Campaign {
    store: SharedStore,
    roster: Roster,
    presence: Presence,
    ttl: Duration,
    lead: watch::Sender<Option<Fence>>,
    confirmed: watch::Sender<Confirmed>,
    seat: watch::Sender<Option<LeaseId>>,
    /// The lease that the store granted, where it is longer than what was asked for.
    longer: watch::Sender<Option<Duration>>,
    /// The last leader that was no master.
    stranger: watch::Sender<String>,
    clock: Clock,
}

struct Session {
    lease: LeaseId,
    ttl: Duration,
    key: String,
    epoch: Revision,
}

impl Campaign {
    /// An election with a lease of this length, and the task that takes part in it, as a master at a fixed address.
    pub fn new(
        store: SharedStore,
        roster: Roster,
        me: PeerMaster,
        ttl: Duration,
    ) -> (Election, Self) {
        Self::by(Clock::default(), store, roster, me, ttl)
    }

    /// The same by another clock.
    pub(crate) fn by(
        clock: Clock,
        store: SharedStore,
        roster: Roster,
        me: PeerMaster,
        ttl: Duration,
    ) -> (Election, Self) {
        let address = Some(me.address.clone());
        let advertised = watch::channel(Advertised { address, ip: None }).1;
        Self::advertising(clock, store, roster, me, advertised, ttl)
    }

    /// The same, as a master whose address is told by `advertised`.
    pub(crate) fn advertising(
        clock: Clock,
        store: SharedStore,
        roster: Roster,
        me: PeerMaster,
        advertised: watch::Receiver<Advertised>,
        ttl: Duration,
    ) -> (Election, Self) {
        let (presence, trouble) = Presence::new(me, advertised);
        let (lead, lead_receiver) = watch::channel(None);
        let (confirmed, confirmed_receiver) = watch::channel(Confirmed::Forever);
        let (seat, seat_receiver) = watch::channel(None);
        let (longer, longer_receiver) = watch::channel(None);
        let task = Self {
            store,
            roster,
            presence,
            ttl,
            lead,
            confirmed,
            seat,
            longer,
            stranger: watch::Sender::new(String::new()),
            clock: clock.clone(),
        };
        let handle = Election {
            lead: lead_receiver,
            confirmed: confirmed_receiver,
            seat: seat_receiver,
            trouble,
            longer: longer_receiver,
            clock,
        };
        (handle, task)
    }

    /// Takes part until the token is cancelled, then resigns.
    pub async fn run(mut self, token: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut leases = Vec::new();
        while !token.is_cancelled() {
            token.run_until_cancelled(self.presence.located()).await;
            match token.run_until_cancelled(self.open(&mut leases)).await {
                // A candidacy on its way to the store leads nobody: its lease is given back below.
                None => break,
                Some(Ok(session)) => {
                    backoff.reset();
                    leases.retain(|lease| *lease != session.lease);
                    self.give_back(&mut leases).await;
                    self.hold(&session, &token).await;
                    self.seat.send_replace(None);
                    self.step_down(if token.is_cancelled() {
                        "this master stops and resigns"
                    } else {
                        "the lease or the candidacy is gone"
                    });
                    // Not before the next one holds this master's presence: a leader whose key alone was deleted may have a
                    // callback that takes its time to end, and the next leader waits for it only while it sees this master.
                    leases.push(session.lease);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "could not become a candidate yet");
                    token.run_until_cancelled(sleep(backoff.failed())).await;
                }
            }
        }
        // Whoever waits for the leader key to go need not wait for the lease to end.
        self.give_back(&mut leases).await;
    }

    /// Ends these leases, and keeps those that the store did not end, to try again.
    async fn give_back(&self, leases: &mut Vec<LeaseId>) {
        let revokes = leases.iter().map(|lease| self.store.revoke(*lease));
        let mut ends = join_all(revokes).await.into_iter();
        leases.retain(|_| match ends.next() {
            Some(Err(error)) => {
                tracing::debug!(%error, "could not give a lease back yet; it ends by itself");
                true
            }
            Some(Ok(())) | None => false,
        });
        // All end by themselves: what a long outage left behind is gone by now.
        leases.drain(..leases.len().saturating_sub(MAX_LEFT));
    }

    /// Grants a lease and becomes a candidate. `leases` holds the lease from when it is granted.
    async fn open(&self, leases: &mut Vec<LeaseId>) -> Result<Session, StoreError> {
        let sent = self.clock.now();
        let (lease, ttl) = self.store.grant(self.ttl).await?;
        leases.push(lease);
        match self.stand(lease).await {
            Ok((key, epoch)) => {
                self.seat.send_replace(Some(lease));
                self.confirm(sent, ttl);
                self.say_longer(ttl);
                Ok(Session {
                    lease,
                    ttl,
                    key,
                    epoch,
                })
            }
            Err(error) => {
                // A candidacy that is stored late after all would lead for as long as the lease lives, and do nothing. The
                // lease before stays: it holds this master's presence.
                match self.store.revoke(lease).await {
                    Ok(()) => leases.retain(|other| *other != lease),
                    Err(error) => tracing::debug!(%error, "could not give a lease back yet"),
                }
                Err(error)
            }
        }
    }

    /// Says so when the store makes the lease longer, and a fail-over with it.
    fn say_longer(&self, ttl: Duration) {
        let longer = (ttl > self.ttl).then_some(ttl);
        self.longer.send_if_modified(|known| {
            let news = *known != longer;
            if news && let Some(ttl) = longer {
                tracing::warn!(
                    granted = ?ttl, asked = ?self.ttl,
                    "the store grants no shorter lease: a fail-over takes that long, not what --fover says"
                );
            }
            *known = longer;
            news
        });
    }

    /// Becomes a candidate; tells the key and the epoch.
    async fn stand(&self, lease: LeaseId) -> Result<(String, Revision), StoreError> {
        let key = candidacy(lease);
        let (record, mut compares) = self.presence.claim(&self.store).await?;
        compares.push(Compare::Absent(key.clone()));
        let txn = Txn {
            compares,
            ops: vec![
                put(key.clone(), &record, lease),
                put(format!("{MASTERS}{}", record.id), &record, lease),
            ],
            otherwise: vec![key.clone()],
        };
        let epoch = match commit_or_read(&self.store, txn).await? {
            Outcome::Committed(revision) => revision,
            Outcome::Conflict(snapshot) => match snapshot.entries.first() {
                Some(entry) => entry.create_revision,
                None => {
                    return Err(StoreError::Unavailable(
                        "the candidacy was not stored".to_owned(),
                    ));
                }
            },
        };
        Ok((key, epoch))
    }

    /// Keeps the lease alive, and leads whenever it is our turn, until the lease or the candidacy is gone.
    async fn hold(&mut self, session: &Session, token: &CancellationToken) {
        let period = session.ttl / 5;
        let mut changes = self.roster.changes();
        let mut beat = self.clock.now() + period;
        loop {
            if !self.evaluate(session) {
                return;
            }
            self.keep_presence(session).await;
            let end = self.confirmed.borrow().end();
            let expiry = async {
                match end {
                    Some(end) if end > self.clock.now() => self.clock.sleep_until(end).await,
                    _ => std::future::pending().await,
                }
            };
            // All arms are cancel safe: a keep-alive is awaited in the arm's body, not in the arm.
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                // Before the next question: after a suspension the lease may be over long since.
                () = expiry => {}
                () = self.clock.sleep_until(beat) => {
                    let sent = self.clock.now();
                    match timeout(session.ttl / 3, self.store.keep_alive(session.lease)).await {
                        Ok(Ok(ttl)) => self.confirm(sent, ttl),
                        Ok(Err(StoreError::LeaseGone(_))) => {
                            tracing::warn!("the lease ended before it was confirmed; starting over as a candidate");
                            return;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "could not confirm the lease"),
                        Err(_) => tracing::debug!("the store did not confirm the lease in time"),
                    }
                    beat = (sent + period).max(self.clock.now() + period / 4);
                }
                () = self.presence.moved() => {}
                more = changes.next() => if !more { return },
            }
        }
    }

    /// Corrects what the store says of this master: somebody may have deleted or overwritten it, or the address
    /// changed.
    async fn keep_presence(&mut self, session: &Session) {
        let view = self.roster.view();
        let candidacy = (session.key.as_str(), session.epoch);
        self.presence
            .judge(&view, session.epoch, session.ttl, Instant::now());
        let Some(txn) = self.presence.mend(&view, candidacy, session.lease) else {
            return;
        };
        let outcome = timeout(session.ttl / 3, self.store.commit(txn)).await;
        tracing::info!(
            ?outcome,
            "the store did not say of this master what is so; told it again"
        );
        if let Ok(Ok(Outcome::Committed(revision))) = outcome {
            self.presence.told(revision);
        }
    }

    fn confirm(&self, at: Moment, ttl: Duration) {
        self.confirmed.send_replace(if self.store.leases_expire() {
            Confirmed::Lease { at, ttl }
        } else {
            Confirmed::Forever
        });
    }

    /// Starts or stops to lead. False when the candidacy was taken away.
    fn evaluate(&self, session: &Session) -> bool {
        let view = self.roster.peek();
        if view.revision() < session.epoch {
            return true;
        }
        if view.candidate(&session.key).is_none() {
            tracing::warn!(
                "the candidacy is gone from the store (its lease ended, or somebody deleted it); starting over"
            );
            return false;
        }
        let ours = view
            .leader()
            .is_some_and(|leader| leader.key == session.key);
        if let Some(leader) = view.leader()
            && leader.master.is_stranger()
        {
            self.say_stranger(&leader.key);
        }
        if ours && self.confirmed.borrow().holds(self.clock.now()) {
            self.lead.send_if_modified(|lead| {
                if lead.is_none() {
                    tracing::info!(epoch = session.epoch, "leading");
                    *lead = Some(Fence::new(&session.key, session.epoch));
                    return true;
                }
                false
            });
        } else {
            self.step_down("the lease was not confirmed in time");
        }
        true
    }

    /// Says it once for each candidate.
    fn say_stranger(&self, key: &str) {
        self.stranger.send_if_modified(|said| {
            let news = said != key;
            if news {
                tracing::warn!(
                    key,
                    "a candidate that is no master leads: no pod expires and no callback runs until it goes away"
                );
                key.clone_into(said);
            }
            news
        });
    }

    fn step_down(&self, why: &str) {
        self.lead.send_if_modified(|lead| {
            if lead.take().is_some() {
                tracing::info!(why, "no longer leading");
                return true;
            }
            false
        });
    }
}
