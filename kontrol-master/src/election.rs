//! The election: one lease for each master, which carries its presence (`masters/<id>`) and its candidacy
//! (`leader/<lease>`). The oldest candidate leads, in the epoch that its key's create-revision names: the recipe of
//! etcd's own election API, so that `etcdctl elect` sees and joins it.
//!
//! A master believes that it leads only while two things hold: its key is the oldest in the roster, and its lease was
//! confirmed so recently, by its own clock (see [`crate::clock`]) from before the question was sent, that no other master
//! can see the lease end yet. So it stops believing before another can start.

mod presence;

use crate::{
    advertise::Advertised,
    backoff::Backoff,
    clock::{Clock, Moment},
    roster::{PeerMaster, Roster, view::MASTERS},
    store::{Compare, Fence, LeaseId, Outcome, Revision, SharedStore, StoreError, Txn},
};
use presence::{Presence, candidacy, put};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

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

    /// Waits until the confirmation of the lease is over that holds now. Never ends where none holds or can end. Cancel safe.
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
        Self::with(clock, store, roster, me, advertised, ttl)
    }

    /// The same, as a master whose address is told by `advertised`.
    pub fn advertising(
        store: SharedStore,
        roster: Roster,
        me: PeerMaster,
        advertised: watch::Receiver<Advertised>,
        ttl: Duration,
    ) -> (Election, Self) {
        Self::with(Clock::default(), store, roster, me, advertised, ttl)
    }

    fn with(
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
        let task = Self {
            store,
            roster,
            presence,
            ttl,
            lead,
            confirmed,
            seat,
            clock: clock.clone(),
        };
        let handle = Election {
            lead: lead_receiver,
            confirmed: confirmed_receiver,
            seat: seat_receiver,
            trouble,
            clock,
        };
        (handle, task)
    }

    /// Takes part until the token is cancelled, then resigns.
    pub async fn run(mut self, token: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut old: Option<LeaseId> = None;
        while !token.is_cancelled() {
            token.run_until_cancelled(self.presence.located()).await;
            match token.run_until_cancelled(self.open()).await {
                None => break,
                Some(Ok(session)) => {
                    backoff.reset();
                    self.give_back(old.take()).await;
                    self.hold(&session, &token).await;
                    self.seat.send_replace(None);
                    self.step_down(if token.is_cancelled() {
                        "this master stops and resigns"
                    } else {
                        "the lease or the candidacy is gone"
                    });
                    // Not before the next one holds this master's presence: a leader whose key alone was deleted may have a
                    // callback that takes its time to end, and the next leader waits for it only while it sees this master.
                    old = Some(session.lease);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "could not become a candidate yet");
                    token.run_until_cancelled(sleep(backoff.failed())).await;
                }
            }
        }
        // Whoever waits for the leader key to go need not wait for the lease to end.
        self.give_back(old).await;
    }

    async fn give_back(&self, lease: Option<LeaseId>) {
        if let Some(lease) = lease
            && let Err(error) = self.store.revoke(lease).await
        {
            tracing::debug!(%error, "could not give the lease back; it ends by itself");
        }
    }

    /// Grants a lease and becomes a candidate.
    async fn open(&self) -> Result<Session, StoreError> {
        let sent = self.clock.now();
        let (lease, ttl) = self.store.grant(self.ttl).await?;
        match self.stand(lease).await {
            Ok((key, epoch)) => {
                self.seat.send_replace(Some(lease));
                self.confirm(sent, ttl);
                Ok(Session {
                    lease,
                    ttl,
                    key,
                    epoch,
                })
            }
            Err(error) => {
                // A candidacy that is stored late after all would lead for as long as the lease lives, and do nothing.
                self.give_back(Some(lease)).await;
                Err(error)
            }
        }
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
        let outcome = match self.store.commit(txn).await {
            Err(StoreError::Indeterminate(_)) => {
                let snapshot = self.store.read(std::slice::from_ref(&key)).await?;
                Outcome::Conflict(snapshot)
            }
            outcome => outcome?,
        };
        let epoch = match outcome {
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

    /// Makes the store say of this master what is so: somebody may have deleted or overwritten it, or its address changed.
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
