//! One action: waits for its turn, has its work carried out ([`running`](super::running) knows how), and tells its master all
//! about it, on whatever channel asks, until it may be forgotten.
//!
//! ```text
//! waits for a slot ──▶ runs ──▶ its end is kept ──▶ forgotten, or too old
//!       └── cancelled, refused, the slave stops ──┘
//! ```
//!
//! While it runs, a dispatcher that takes nothing holds it up; once it has ended, nothing does: what is left in the pipes is
//! read at once, and the slot goes to the next action.

use super::{
    outbox::Outbox,
    outcome::{NotRun, Stop, cancelled},
    policy::Policy,
    running::{Ended, Output, Running, What},
    told::{Hearer, Told},
};
use kontrol_proto::v1::{AttachRequest, Stream};
use std::{collections::HashMap, future::pending, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How long the end of an action is kept when no master asks for it.
const KEEP: Duration = Duration::from_secs(600);
/// How long the output of an ended action may keep its slot, if nothing of it is taken and there is no other room for it.
const STALLED: Duration = Duration::from_secs(30);

/// Where an action's reports go: the channel of its tier, while there is one.
pub(crate) type Channel = Option<mpsc::Sender<AttachRequest>>;

/// A place among those that run. What can't be ended keeps it.
type Slot = Arc<OwnedSemaphorePermit>;

/// What all actions share.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// One for each command that runs.
    pub(super) slots: Arc<Semaphore>,
    /// KiB of output that commands left which have ended.
    pub(super) left_kib: Arc<Semaphore>,
}

/// One action.
pub(super) struct Action {
    pub(super) outbox: Outbox,
    pub(super) timeout: Duration,
    pub(super) told: Hearer,
    pub(super) channel: watch::Receiver<Channel>,
    pub(super) room: Room,
    /// Cancelled when the slave stops.
    pub(super) stopping: CancellationToken,
    /// Whether nobody will take its end any more.
    forgotten: bool,
    stop: Option<Stop>,
}

/// What is to run.
pub(super) struct Work {
    pub(super) what: What,
    pub(super) policy: Policy,
    /// What the policy judges.
    pub(super) argv: Vec<String>,
    pub(super) variables: HashMap<String, String>,
}

impl Action {
    pub(super) fn new(
        outbox: Outbox,
        timeout: Duration,
        told: Hearer,
        channel: watch::Receiver<Channel>,
        room: Room,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            outbox,
            timeout,
            told,
            channel,
            room,
            stopping,
            forgotten: false,
            stop: None,
        }
    }

    /// Does the work, or says why not, and stays until that was taken. `waits` is given up when the work starts.
    pub(super) async fn run<W>(mut self, work: Work, waits: W) {
        let admitted = self.admitted(work).await;
        drop(waits);
        let slot = match admitted {
            Ok((what, slot)) => {
                self.carry_out(what, &slot).await;
                Some(slot)
            }
            Err(not_run) => {
                let (id, reason) = (self.outbox.id(), &not_run.reason);
                tracing::warn!(action = id, reason, "action not run");
                self.outbox.end(not_run.result());
                None
            }
        };
        self.keep(slot).await;
    }

    /// Asks the policy, and waits for a slot.
    async fn admitted(&mut self, work: Work) -> Result<(What, Slot), NotRun> {
        self.judged(&work).await?;
        let slots = Arc::clone(&self.room.slots);
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                let slot = self.meanwhile(slots.acquire_owned()).await;
                let slot = slot
                    .and_then(Result::ok)
                    .ok_or_else(|| cancelled(self.stop))?;
                // It may have been edited meanwhile.
                self.judged(&work).await?;
                slot
            }
        };
        Ok((work.what, Arc::new(slot)))
    }

    async fn judged(&mut self, work: &Work) -> Result<(), NotRun> {
        let judged = work.policy.judge(&work.argv, &work.variables);
        let judged = self.meanwhile(judged).await;
        judged
            .ok_or_else(|| cancelled(self.stop))?
            .map_err(NotRun::refused)
    }

    /// Waits for something; none when the action is to end before.
    async fn meanwhile<F: Future>(&mut self, awaited: F) -> Option<F::Output> {
        let mut awaited = pin!(awaited);
        loop {
            // Cancel safe: what is awaited goes on, and the rest loses nothing.
            tokio::select! {
                biased;
                () = self.tend() => if self.stop.is_some() {
                    return None;
                },
                output = &mut awaited => return Some(output),
            }
        }
    }

    /// Takes in one thing that was told, or sends one message, whatever comes first. Cancel safe.
    async fn tend(&mut self) {
        let stopping = self.stopping.clone();
        let channel = self.channel.borrow().clone();
        // All arms are cancel safe: a message is taken from the outbox only once there is room for it.
        tokio::select! {
            biased;
            // Also of what was cancelled before: less time is left now.
            () = stopping.cancelled(), if self.stop != Some(Stop::SlaveStops) => self.stop = Some(Stop::SlaveStops),
            // Before what is told: whoever asks does so on the channel of now.
            changed = self.channel.changed() => match changed {
                Ok(()) => self.outbox.broke(),
                Err(_) => pending().await,
            },
            told = self.told.next(), if !self.forgotten => match told {
                Some(told) => self.take(told),
                // The executor has forgotten it, or is gone, and so is everybody who could ask.
                None => self.forgotten = true,
            },
            sent = send(channel, self.outbox.has_next()) => match sent {
                Some(permit) => {
                    if let Some(event) = self.outbox.next() {
                        permit.send(AttachRequest { event: Some(event) });
                    }
                }
                None => self.outbox.broke(),
            },
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Resume { stdout, stderr } => self.outbox.resume(stdout, stderr),
            Told::Again => self.outbox.again(),
            Told::Credit { stdout, stderr } => self.outbox.credit(stdout, stderr),
            Told::Cancel => self.stop = self.stop.or(Some(Stop::Cancelled)),
            Told::Forget => self.forgotten = true,
        }
    }

    /// Does the work to its end.
    async fn carry_out(&mut self, what: What, slot: &Slot) {
        let began = Instant::now();
        let (mut running, output) = match Running::start(what, began + self.timeout, slot).await {
            Ok(started) => started,
            Err(reason) => return self.outbox.end(NotRun::refused(reason).result()),
        };
        self.outbox.start();
        let (ended, at) = self.attend(&mut running, output).await;
        ended.remark(self.outbox.id());
        let mut result = ended.judge(self.stop, self.timeout);
        result.duration = at.duration_since(began).try_into().ok();
        self.outbox.end(result);
    }

    /// Passes the output on until the work, and with it all that it started, has ended and every byte was read. Tells when it
    /// ended, too.
    async fn attend(&mut self, running: &mut Running, mut output: Output) -> (Ended, Instant) {
        let mut ended: Option<(Ended, Instant)> = None;
        let mut told = None;
        loop {
            if ended.is_none() && told != self.stop {
                told = self.stop;
                if let Some(stop) = told {
                    running.stop(stop);
                }
            }
            if self.forgotten || self.stop == Some(Stop::SlaveStops) {
                // Work whose output nobody takes must not wait for that.
                self.outbox.discard();
            }
            if output.is_closed()
                && let Some(end) = ended
            {
                return end;
            }
            let room = [Stream::Stdout, Stream::Stderr].map(|stream| self.outbox.room(stream));
            let patience = ended.as_ref().map(|(end, at)| *at + end.drain());
            // All arms are cancel safe: what was read has been taken, what waits will be ready again.
            // What may be read comes before the end of the patience, which this process may have slept through.
            tokio::select! {
                biased;
                () = self.tend() => {}
                end = running.wait(), if ended.is_none() => {
                    ended = Some((end, Instant::now()));
                    self.outbox.drain();
                }
                read = output.read(room) => if let Some((stream, data)) = read {
                    self.outbox.write(stream, data);
                },
                // Something that did not end with the work holds a pipe.
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => output.close(),
            }
        }
    }

    /// Keeps the end until it may be forgotten. The slot goes to the next one as soon as there is room for the output that is
    /// left.
    async fn keep(mut self, mut slot: Option<Slot>) {
        let mut room = None;
        let mut unasked_since = Instant::now();
        let mut stalled = (self.outbox.waiting(), Instant::now());
        while !self.forgotten {
            if self.outbox.is_asked() {
                unasked_since = Instant::now();
            }
            let waiting = self.outbox.waiting();
            if waiting != stalled.0 {
                stalled = (waiting, Instant::now());
            }
            let kib = u32::try_from(waiting.div_ceil(1024)).unwrap_or(u32::MAX);
            let left = Arc::clone(&self.room.left_kib).acquire_many_owned(kib);
            if waiting == 0 {
                room = None;
            }
            // With the slave, what was told once is all that can be done.
            let nobody_listens = self.channel.borrow().is_none();
            if self.stopping.is_cancelled() && (self.outbox.is_told() || nobody_listens) {
                break;
            }
            // All arms are cancel safe. Room comes before the end of the patience with who takes nothing.
            tokio::select! {
                biased;
                taken = left, if slot.is_some() => {
                    room = taken.ok();
                    slot = None;
                }
                () = self.tend() => {}
                () = sleep_until(unasked_since + KEEP), if !self.outbox.is_asked() => break,
                () = sleep_until(stalled.1 + STALLED), if slot.is_some() => self.outbox.shed(),
            }
        }
        drop((slot, room));
    }
}

/// Waits for room in the channel for a message, if there is one to send. Nothing when the channel is closed.
async fn send(channel: Channel, has_next: bool) -> Option<mpsc::OwnedPermit<AttachRequest>> {
    match channel {
        Some(sender) if has_next => sender.reserve_owned().await.ok(),
        _ => pending().await,
    }
}
