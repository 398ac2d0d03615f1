//! The term: everything that only the leader does. It is built anew when this master is elected and dropped when it no
//! longer leads; nothing of it outlives the epoch.
//!
//! One task owns the deadlines and the damper. A run of the callback is a second task, at most one at a time, joined
//! before the term ends. Every write carries the term's fence, so that a leader that doesn't know yet that it was
//! deposed changes nothing.

mod expiry;
mod finish;
mod handled;
mod operate;
mod relayed;
mod run;
mod silence;
mod storing;
mod token;

use crate::{
    cluster::{
        election::{Confirmed, Election},
        roster::Roster,
        status::Status,
        store::SharedStore,
    },
    ensemble::callback::{self, Runner},
    metrics::Metrics,
};
pub use handled::{Handled, Memory};
pub use run::next_input;

use futures::FutureExt as _;
use imbl::ordmap::DiffItem;
use kontrol_core::{
    damper::Damper,
    kv::Fence,
    liveness::{Attention, Deadlines, Detached, TICK},
    model::{Digest, Pod},
    safeguard::{Policy, Safeguard},
    schedule::{Decision, Schedule},
    view::View,
};
use run::{Finished, RunTask};
use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};
use storing::{Storing, Success};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// What a keepalive may take from its acceptance on another master until the leader counts it, and a bit more: a pod
/// expires this long after its TTL at the earliest, and a second after it at the latest.
const RELAY_SLACK: Duration = Duration::from_millis(250);
/// How long a new leader waits for its roster to show its own election, before it asks again.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long no run starts when a callback that nobody waits for may still be there: that of the leader before, who still
/// lives, or that of a run that panicked. Longer than it takes to stop a callback, grace included.
const QUARANTINE: Duration = Duration::from_secs(4);

/// What a term works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The store.
    pub store: SharedStore,
    /// The roster.
    pub roster: Roster,
    /// The election.
    pub election: Election,
    /// Where the callback's status is told.
    pub status: Status,
    /// Where it is told what was handled last.
    pub memory: Memory,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The id of this master.
    pub id: Arc<str>,
    /// Settings.
    pub settings: Arc<Settings>,
}

/// The settings of a term.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a pod may be silent.
    pub ttl: Duration,
    /// How long a pod may take to come back whose channel ended; zero: its TTL alone decides.
    pub lost: Duration,
    /// How long the roster must be unchanged before the callback runs.
    pub damper: Duration,
    /// How long endless change can put the callback off.
    pub damper_max: Duration,
    /// When removals for silence freeze.
    pub safeguard: Policy,
    /// Whether a master asks who calls it, so that the callback needs a token.
    pub authenticates: bool,
    /// The callback, if there is one.
    pub callback: Option<Arc<dyn Runner>>,
}

/// How many ends of channels may wait for the term; more are left to the TTL.
const DETACHED: usize = 65_536;

/// Where the ends of channels are told, and where the term reads them.
pub fn detachments() -> (mpsc::Sender<Detached>, mpsc::Receiver<Detached>) {
    mpsc::channel(DETACHED)
}

/// Runs a term whenever this master leads, until the token is cancelled and the last term has ended. Then nothing is left
/// of the callback, not even after a panic: whoever waits for this may resign.
pub async fn supervise(
    context: Context,
    detached: mpsc::Receiver<Detached>,
    token: CancellationToken,
) {
    let terms = token.child_token();
    let work = AssertUnwindSafe(terms_of(context, detached, terms.clone()));
    if let Err(panic) = work.catch_unwind().await {
        tracing::error!("the term panicked; this master stops once its callback has ended");
        terms.cancel();
        sleep(QUARANTINE).await;
        resume_unwind(panic);
    }
}

async fn terms_of(
    context: Context,
    mut detached: mpsc::Receiver<Detached>,
    token: CancellationToken,
) {
    let mut lead = context.election.changes();
    let mut deposed = None;
    let mut unstored: Option<(Fence, Success)> = None;
    loop {
        // A term that found itself deposed may end before the election has noticed: its epoch gets no other one.
        let next = lead.wait_for(|now| now.is_some() && *now != deposed);
        let fence = match token.run_until_cancelled(next).await {
            Some(Ok(fence)) => fence.clone(),
            Some(Err(_)) | None => return,
        };
        let Some(fence) = fence else { continue };
        let over = token.child_token();
        // Nobody else led in between when the lease was confirmed too late, but in the end.
        let left = unstored.take().filter(|(of, _)| *of == fence);
        let term = Term::new(context.clone(), fence.clone(), over.clone());
        let left = left.map(|(_, success)| success);
        let span = tracing::info_span!("term", epoch = fence.epoch());
        let mut term = std::pin::pin!(term.run(&mut detached, left).instrument(span));
        let lost = async {
            let _ = lead.wait_for(|now| now.as_ref() != Some(&fence)).await;
        };
        // Both arms are cancel safe: the term is pinned and goes on where it was.
        tokio::select! {
            _ = &mut term => deposed = Some(fence.clone()),
            () = lost => {
                over.cancel();
                unstored = term.await.map(|success| (fence.clone(), success));
            }
        }
    }
}

struct Term {
    context: Context,
    fence: Fence,
    over: CancellationToken,
    deadlines: Deadlines,
    attention: Attention,
    schedule: Schedule,
    /// The roster that the deadlines and the schedule know.
    seen: Arc<View>,
    /// How much of what was told through the store this term has read.
    relayed: relayed::Read,
    /// What the callback handled last.
    handled: Handled,
    running: Option<Running>,
    orders: operate::Orders,
    safeguard: Safeguard,
    /// Since when the safeguard holds removals back, and until when at the most, in milliseconds since 1970; of the last time
    /// while it does not.
    frozen_ms: (u64, u64),
    /// When silence was judged last, and whether whoever was due could leave.
    judged: Option<(Instant, bool)>,
    /// When the schedule is to be asked again.
    decide_at: Option<Instant>,
    told: finish::Told,
    /// Why nothing goes on, as the run that goes on or did not start tells it; empty when all is well.
    trouble: watch::Sender<String>,
}

/// A run that goes on.
struct Running {
    task: JoinHandle<Finished>,
    digest: Digest,
    /// Since when the change waited that it is for.
    pending_since: Option<Instant>,
}

/// The term is over: another leads.
struct Deposed;

impl Term {
    fn new(context: Context, fence: Fence, over: CancellationToken) -> Self {
        let now = Instant::now();
        let settings = &context.settings;
        Self {
            deadlines: Deadlines::new(settings.ttl + RELAY_SLACK, settings.lost, now),
            attention: Attention::new(now),
            schedule: Schedule::new(Damper::new(settings.damper, settings.damper_max)),
            seen: Arc::default(),
            relayed: relayed::Read::default(),
            handled: Handled::default(),
            running: None,
            orders: operate::Orders::default(),
            safeguard: Safeguard::new(settings.safeguard, settings.ttl),
            frozen_ms: (0, 0),
            judged: None,
            decide_at: None,
            told: finish::Told::default(),
            trouble: watch::Sender::new(String::new()),
            context,
            fence,
            over,
        }
    }

    /// Runs until the term is over. `left` is what a run left that this epoch could not store yet; tells what is left so.
    async fn run(
        mut self,
        detached: &mut mpsc::Receiver<Detached>,
        left: Option<Success>,
    ) -> Option<Success> {
        let epoch = self.fence.epoch();
        while !self.context.roster.caught_up(epoch, CATCH_UP).await {
            if self.over.is_cancelled() {
                return left;
            }
        }
        self.context.metrics.leading.set(1);
        let view = self.context.roster.view();
        self.remember(Handled::recorded(&view));
        if let Some(before) = view.leader_before()
            && view
                .leader()
                .is_some_and(|leader| leader.master.instance != before.instance)
            && view
                .masters()
                .any(|master| master.instance == before.instance)
        {
            // Its key was deleted, not its lease: nothing but its own watch tells it to stop its callback.
            tracing::warn!(before = before.id, wait = ?QUARANTINE, "the leader before still lives; holding the callback back");
            self.schedule.bar(Instant::now() + QUARANTINE);
        }
        let configured = self.context.settings.callback.is_some();
        self.context.status.update(|status| {
            status.forget_plans();
            status.configured = configured;
            status.failures = 0;
            status.error.clear();
        });
        if let Some(success) = left {
            let digest = success.view.digest();
            tracing::info!(%digest, "storing what the callback left before the lease was confirmed again");
            self.running = Some(Running {
                digest,
                pending_since: None,
                task: tokio::spawn(self.storing().store(success).in_current_span()),
            });
        }
        self.adopt_freeze(&view, Instant::now());
        self.attention = Attention::new(Instant::now());
        if let Err(Deposed) = self.work(detached).await {
            tracing::info!("another master leads; this term changes nothing any more");
        }
        let unstored = self.stop_running().await;
        self.context.memory.set(None);
        self.context.metrics.leading.set(0);
        unstored
    }

    fn storing(&self) -> Storing {
        Storing {
            context: self.context.clone(),
            fence: self.fence.clone(),
            over: self.over.clone(),
            trouble: self.trouble.clone(),
        }
    }

    async fn work(&mut self, detached: &mut mpsc::Receiver<Detached>) -> Result<(), Deposed> {
        let mut changes = self.context.roster.changes();
        loop {
            let now = Instant::now();
            self.attend(now);
            self.observe(now);
            self.heed(now);
            self.see_to_pods(now).await?;
            self.start_due();
            self.settle_orders(Instant::now()).await?;
            self.tell();
            let wake = self.wake(Instant::now());
            let finished = async {
                match &mut self.running {
                    Some(running) => (&mut running.task).await,
                    None => std::future::pending().await,
                }
            };
            // All arms are cancel safe: a JoinHandle is polled by reference, and the rest loses nothing.
            tokio::select! {
                () = self.over.cancelled() => return Ok(()),
                finished = finished => self.on_finished(finished)?,
                more = changes.next() => if !more { return Ok(()) },
                Some(one) = detached.recv() => {
                    self.deadlines.detach(one);
                    while let Ok(one) = detached.try_recv() {
                        self.deadlines.detach(one);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Removes whoever is due, and takes in what was told through the store.
    async fn see_to_pods(&mut self, now: Instant) -> Result<(), Deposed> {
        self.look_at_silence(now);
        self.expire(now).await?;
        self.sweep_relayed(now).await
    }

    /// This was handled last.
    fn remember(&mut self, handled: Handled) {
        self.context.memory.set(Some(handled.clone()));
        self.handled = handled;
    }

    /// Notices whether the process stood still. To wait for the store is not to stand still: keepalives count meanwhile.
    fn attend(&mut self, now: Instant) {
        if let Some(blind) = self.attention.tick(now) {
            tracing::warn!(
                ?blind,
                "this process stood still; no pod is held to account for that time"
            );
            self.deadlines.forgive(blind);
        }
    }

    fn wake(&self, now: Instant) -> Instant {
        let mut wake = now + TICK;
        // While they are frozen, those who are due stay due.
        let frozen = self.safeguard.frozen().is_some();
        let (expiry, loss) = (self.deadlines.next(), self.deadlines.next_lost());
        let due = [expiry, loss].map(|at| at.filter(|_| !frozen));
        for at in [due[0], due[1], self.decide_at].into_iter().flatten() {
            wake = wake.min(at);
        }
        wake
    }

    /// Takes in what changed in the roster.
    fn observe(&mut self, now: Instant) {
        let view = self.context.roster.view();
        if view.revision() == self.seen.revision() {
            return;
        }
        self.hear_relayed(&view);
        let mut in_digest = false;
        for item in self.seen.order().diff(view.order()) {
            match item {
                DiffItem::Add(seq, pod) => {
                    self.deadlines.track((pod.key(), *seq), now);
                    in_digest = true;
                }
                DiffItem::Update { old, new } => in_digest |= differs(old.1, new.1),
                DiffItem::Remove(..) => in_digest = true,
            }
        }
        let first = self.seen.revision() == 0;
        if self.seen.state().is_err() && self.handled.known().is_none() {
            // Whoever repaired the record may have put back what was handled.
            self.remember(Handled::recorded(&view));
        }
        self.seen = view;
        if first {
            in_digest = self.seen.digest() != self.handled.digest();
        }
        if in_digest {
            self.schedule.on_change(now);
        }
    }

    /// Starts the callback if it is time for that.
    fn start_due(&mut self) {
        self.decide_at = None;
        let Some(runner) = self.context.settings.callback.clone() else {
            self.schedule.clear();
            return;
        };
        if self.running.is_some() || self.seen.state().is_err() {
            return;
        }
        let now = Instant::now();
        // Pods may have been removed since: the schedule has to know what the run would be handed. And a hold may have come.
        self.observe(now);
        self.heed(now);
        let digest = self.seen.digest();
        match self.schedule.decide(now, digest, self.handled.digest()) {
            Decision::Start => {}
            Decision::Wait(until) => {
                self.decide_at = Some(until);
                return;
            }
            Decision::Drop => return,
        }
        let pending_since = self.schedule.pending_since();
        self.schedule.on_start();
        let task = RunTask {
            storing: self.storing(),
            runner,
            view: Arc::clone(&self.seen),
            digest,
            handled: self.handled.clone(),
        };
        self.running = Some(Running {
            task: tokio::spawn(task.run().in_current_span()),
            digest,
            pending_since,
        });
    }
}

/// Whether the digest tells two records of a pod apart.
fn differs(before: &Arc<Pod>, after: &Arc<Pod>) -> bool {
    before.canonical() != after.canonical()
}

/// How long the callback may go on, given how far the lease is confirmed.
fn validity(confirmed: Confirmed) -> callback::Validity {
    match confirmed {
        Confirmed::Forever => callback::Validity::Forever,
        Confirmed::Lease { at, ttl } => callback::Validity::confirmed(at, ttl),
    }
}

/// Passes the lease's confirmations on to a run of the callback.
async fn pass_on(
    mut confirmed: watch::Receiver<Confirmed>,
    sender: watch::Sender<callback::Validity>,
) {
    while confirmed.changed().await.is_ok() {
        let now = *confirmed.borrow_and_update();
        sender.send_replace(validity(now));
    }
}

#[cfg(test)]
mod tests;
