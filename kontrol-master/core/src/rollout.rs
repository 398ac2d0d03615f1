//! One action on its way over its targets. PURE: time and the roster come as arguments, effects leave as values.
//!
//! ```text
//! Waiting ─ its turn ─▶ Ordered ─ started, output ─▶ Running ─ finished ─▶ Ended
//!                        │    ▲                         │
//!        not attached    ▼    │ attached                ▼ channel broke
//!                       Seeking ◀───────────────────────┘
//! ```
//!
//! While it is not certain whether a slave got the order (`doubt`), it is asked before it is ordered again, and a target
//! that can't be asked any more ends as LOST. Without doubt it ends as UNREACHABLE: then it surely did not run. A slave that
//! says nothing is asked again now and then, for it may have lost the order.
//! Invariants: each target ends exactly once, and no order to run goes to another incarnation once one may have got it.

mod message;
mod output;
mod slot;
#[cfg(test)]
mod tests;

pub use message::{
    Adopted, Effect, Event, Incarnations, Limits, Order, Said, Slave, Stream, Target,
};

use crate::model::{
    PodKey,
    action::{Counts, Ended, Outcome, ResultRecord},
};
use slot::{Phase, Slot, Step};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// How long after a pod left the roster its slave's last word may still come in.
const LINGER: Duration = Duration::from_secs(1);
/// When an order is given again to a slave that had too many to take, and to one that was not attached.
const BUSY_RETRY: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(1);
/// How long a slave may be without a channel, or have too many orders, though its pod reports; and once the action is
/// cancelled.
const PATIENCE: Duration = Duration::from_secs(60);
const CANCELLED_PATIENCE: Duration = Duration::from_secs(10);
/// How long a slave that has an order may say nothing before it is asked again. The time doubles up to the longest, which is
/// also that for a command that runs and writes nothing.
const SILENCE: Duration = Duration::from_secs(5);
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Within what time `Limits::batch` may start.
const PACE: Duration = Duration::from_millis(250);
/// More than a slave ever has on its way; one that sends more without credit is not believed.
const MOST_ON_ITS_WAY: u64 = 512 * 1024;

/// An action on its way.
#[derive(Debug)]
pub struct Rollout {
    slots: Vec<Slot>,
    by_key: HashMap<PodKey, usize>,
    /// The first whose turn has not come.
    next: usize,
    /// Whose turn has come, and that have not ended.
    active: BTreeSet<usize>,
    limits: Limits,
    /// How many may still start, before when.
    pace: Option<(usize, Instant)>,
    counts: Counts,
    cancelled: bool,
    /// The master that carried it before is gone: who never got the order gets it no more.
    orphan: bool,
    effects: VecDeque<Effect>,
}

impl Rollout {
    /// An action that nobody got yet.
    pub fn new(targets: Vec<Target>, limits: Limits) -> Self {
        Self::of(targets.into_iter().map(Slot::new).collect(), limits)
    }

    /// An action whose master died: the targets as far as its record has them, and how it went so far. Nobody new gets the
    /// order; what runs is followed, or cancelled unless the action is detached.
    pub fn adopt(
        targets: Vec<Adopted>,
        counts: Counts,
        detached: bool,
        limits: Limits,
        now: Instant,
    ) -> Self {
        let slots = targets.into_iter();
        let slots = slots.map(|target| Slot::adopted(target, now));
        let mut rollout = Self::of(slots.collect(), limits);
        rollout.orphan = true;
        rollout.cancelled = !detached;
        rollout.next = rollout.slots.len();
        let open = rollout.slots.iter().enumerate();
        let open = open.filter(|(_, slot)| slot.ended.is_none());
        let (asked, nobody): (Vec<_>, Vec<_>) = open.partition(|(_, slot)| slot.can_be_asked());
        rollout.active = asked.into_iter().map(|(index, _)| index).collect();
        let nobody: Vec<usize> = nobody.into_iter().map(|(index, _)| index).collect();
        rollout.counts = counts;
        // A record that had no room for all targets lacks some. The counts have those that ended; the others can't be
        // followed, and count as lost.
        let known = counts.ended() as usize + rollout.active.len() + nobody.len();
        let missing = (counts.targets as usize).saturating_sub(known);
        rollout.counts.lost += u32::try_from(missing).unwrap_or(u32::MAX);
        for index in nobody {
            let reason = "there was no such pod when the action was accepted";
            rollout.end(index, Ended::untold(Outcome::Unreachable, reason));
        }
        rollout
    }

    fn of(slots: Vec<Slot>, limits: Limits) -> Self {
        let by_key = slots.iter().enumerate();
        Self {
            by_key: by_key
                .filter_map(|(index, slot)| Some((slot.pod()?, index)))
                .collect(),
            next: 0,
            active: BTreeSet::new(),
            counts: Counts {
                targets: u32::try_from(slots.len()).unwrap_or(u32::MAX),
                ..Counts::default()
            },
            slots,
            limits,
            pace: None,
            cancelled: false,
            orphan: false,
            effects: VecDeque::new(),
        }
    }

    /// The pods among the targets.
    pub fn pods(&self) -> impl Iterator<Item = PodKey> {
        self.by_key.keys().copied()
    }

    /// A target, by its index.
    pub fn target(&self, index: usize) -> &Target {
        &self.slots[index].target
    }

    /// How a target ended.
    pub fn ended(&self, index: usize) -> Option<&Ended> {
        self.slots[index].ended.as_ref()
    }

    /// Whether it is the incarnation that the action was accepted for, which the first record names.
    pub fn is_as_accepted(&self, index: usize) -> bool {
        let slot = &self.slots[index];
        let slave = slot.slave.as_ref();
        slave.is_some_and(|slave| *slave.nonce == *slot.target.nonce)
    }

    /// The targets, in their order.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.slots.iter().map(|slot| &slot.target)
    }

    /// Every target as the history keeps it.
    pub fn records(&self) -> Vec<ResultRecord> {
        self.slots.iter().map(Slot::record).collect()
    }

    /// How it went so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether every target has ended.
    pub fn is_over(&self) -> bool {
        self.next == self.slots.len() && self.active.is_empty()
    }

    /// Takes out what is to be done next.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Lets targets start whose turn it is. Call it after everything else that happened.
    pub fn advance(&mut self, now: Instant, roster: &impl Incarnations) {
        let refused = self.ends_waiting();
        let mut ordered = Vec::new();
        let (mut room, until) = match self.pace {
            Some((room, until)) if now < until => (room, until),
            Some(_) | None => (self.limits.batch, now + PACE),
        };
        while self.next < self.slots.len()
            && (refused.is_some() || (self.active.len() < self.limits.concurrency && room > 0))
        {
            let index = self.next;
            self.next += 1;
            if let Some(reason) = &refused {
                self.end(index, Ended::untold(Outcome::Cancelled, reason));
                continue;
            }
            let key = match self.slots[index].target.pod.clone() {
                Ok(key) => key,
                Err(why) => {
                    self.end(index, Ended::untold(Outcome::Unreachable, why));
                    continue;
                }
            };
            let Some(nonce) = roster.nonce(key) else {
                self.end(index, unreachable_gone());
                continue;
            };
            self.active.insert(index);
            ordered.push(self.slots[index].turn(key, nonce, now));
            room -= 1;
        }
        self.pace = Some((room, until));
        self.order(Order::Run, ordered);
    }

    /// Why targets that wait will not start.
    fn ends_waiting(&self) -> Option<String> {
        if self.cancelled {
            Some("the action was cancelled before its turn".to_owned())
        } else {
            let failures = self.counts.failures();
            self.counts
                .stopped
                .then(|| format!("the rollout stopped after {failures} failures"))
        }
    }

    /// A slave says something of the action.
    pub fn said(&mut self, slave: &Slave, said: Said) {
        let Some(index) = self.find(slave) else {
            return;
        };
        let slot = &mut self.slots[index];
        slot.heard();
        if slot.ended.is_some() {
            // It was given up. What it still runs must not go on; its end, when it comes, need not be kept.
            match said {
                Said::Finished(_) => self.order(Order::Forget, vec![slave.clone()]),
                Said::Started => self.order(Order::Cancel, vec![slave.clone()]),
                Said::Output { .. } | Said::Unknown => {}
            }
            return;
        }
        match said {
            Said::Started => self.started(index),
            Said::Output {
                stream,
                offset,
                data,
                truncated,
            } => {
                self.started(index);
                let output = self.slots[index].output(stream);
                if output.on_its_way() > MOST_ON_ITS_WAY {
                    output.gap = true;
                    return;
                }
                if let Some((data, truncated)) = output.receive(offset, data, truncated) {
                    output.keep(&data, self.limits.tail);
                    self.tell(Event::Output {
                        target: index,
                        stream,
                        data,
                        truncated,
                    });
                }
            }
            Said::Finished(mut ended) => {
                let slot = &self.slots[index];
                ended.truncated |= slot.lacks_some_of(ended.stdout_bytes, ended.stderr_bytes);
                self.order(Order::Forget, vec![slave.clone()]);
                self.end(index, ended);
            }
            // The master before this one may still be alive and give the order later. So the slave is first told not to
            // obey it.
            Said::Unknown if self.orphan && !slot.barred => {
                slot.barred = true;
                self.order(Order::Cancel, vec![slave.clone()]);
            }
            Said::Unknown if self.cancelled || self.orphan => {
                let reason = if self.orphan {
                    "the master that carried the action went away before this target's turn"
                } else {
                    "the action was cancelled before it started here"
                };
                self.end(index, Ended::untold(Outcome::Cancelled, reason));
            }
            Said::Unknown => {
                slot.phase = Phase::Ordered { doubt: false };
                slot.orders += 1;
                self.order(Order::Run, vec![slave.clone()]);
            }
        }
    }

    fn started(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Running;
        if !std::mem::replace(&mut slot.started, true) {
            self.tell(Event::Started(index));
        }
    }

    /// An order did not reach its slave, which is not there, or has too many to take.
    pub fn missed(&mut self, slave: &Slave, busy: bool, now: Instant) {
        let Some(index) = self.find(slave) else {
            return;
        };
        let slot = &mut self.slots[index];
        // It may be about an earlier order to run than the last one, which may have got there.
        slot.orders = slot.orders.saturating_sub(1);
        let doubt = match slot.phase {
            Phase::Ordered { doubt } | Phase::Seeking { doubt, .. } => doubt || slot.orders > 0,
            Phase::Running => true,
            Phase::Waiting | Phase::Ended => return,
        };
        slot.phase = Phase::seeking(doubt, busy, now);
    }

    /// Something was said that nobody heard: whoever got an order is asked.
    pub fn missed_some(&mut self, now: Instant) {
        for index in self.active.clone() {
            self.ask(index, now);
        }
    }

    /// A slave's channel is open, for the first time or again, here or at another master.
    pub fn attached(&mut self, slave: &Slave, now: Instant) {
        if let Some(index) = self.find(slave)
            && self.active.contains(&index)
        {
            self.ask(index, now);
        }
    }

    /// Gives a slave that is attached the order that is due.
    fn ask(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let Some(slave) = slot.slave.clone() else {
            return;
        };
        let doubt = match slot.phase {
            Phase::Ordered { .. } | Phase::Running => true,
            Phase::Seeking { doubt, .. } => doubt,
            Phase::Waiting | Phase::Ended => return,
        };
        slot.since = Some(now);
        self.give(index, doubt, slave);
    }

    /// Tries an order again that its slave did not take; how long that goes on counts from the first time.
    fn again(&mut self, index: usize) {
        let slot = &self.slots[index];
        let doubt = matches!(slot.phase, Phase::Seeking { doubt: true, .. });
        if let Some(slave) = slot.slave.clone() {
            self.give(index, doubt, slave);
        }
    }

    fn give(&mut self, index: usize, doubt: bool, slave: Slave) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Ordered { doubt };
        slot.barred = false;
        slot.orders += u32::from(!doubt);
        let order = if doubt { slot.resume() } else { Order::Run };
        self.order(order, vec![slave.clone()]);
        if self.cancelled {
            self.order(Order::Cancel, vec![slave]);
        }
    }

    /// A slave's channel broke.
    pub fn detached(&mut self, slave: &Slave, now: Instant) {
        let Some(index) = self.find(slave) else {
            return;
        };
        let slot = &mut self.slots[index];
        if matches!(slot.phase, Phase::Ordered { .. } | Phase::Running) {
            slot.since = Some(now);
            slot.phase = Phase::seeking(true, false, now);
        }
    }

    /// Ends the action as soon as may be: nobody starts, and who runs is told to end.
    pub fn cancel(&mut self, now: Instant) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        let mut told = Vec::new();
        for index in self.active.clone() {
            let slot = &mut self.slots[index];
            match slot.phase {
                Phase::Seeking { doubt: false, .. } => {
                    let reason = "the action was cancelled before it started here";
                    self.end(index, Ended::untold(Outcome::Cancelled, reason));
                }
                Phase::Seeking { doubt: true, .. } => slot.since = Some(now),
                Phase::Ordered { .. } | Phase::Running => told.extend(slot.slave.clone()),
                Phase::Waiting | Phase::Ended => {}
            }
        }
        self.order(Order::Cancel, told);
    }

    /// Looks after those that are waited for: who left, who does not attach, who is to be asked again.
    pub fn tick(&mut self, now: Instant, roster: &impl Incarnations) {
        let patience = if self.cancelled {
            CANCELLED_PATIENCE
        } else {
            PATIENCE
        };
        for index in self.active.clone() {
            match self.slots[index].judge(now, roster, &self.limits, patience) {
                Step::Wait => self.listen(index, now),
                Step::Retry => self.again(index),
                Step::End(ended) => self.end(index, ended),
            }
        }
    }

    /// The same for a master that can't be sure that it still carries the action: it tries again what was not taken, and
    /// gives nobody up.
    pub fn tick_unsure(&mut self, now: Instant) {
        for index in self.active.clone() {
            if self.slots[index].is_to_be_tried(now) {
                self.again(index);
            } else {
                self.listen(index, now);
            }
        }
    }

    /// Asks a slave again that says nothing.
    fn listen(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        if slot.is_too_quiet(now, self.cancelled)
            && let Some(slave) = slot.slave.clone()
        {
            self.give(index, true, slave);
        }
    }

    /// Output was taken by whoever it is for, or thrown away.
    pub fn taken(&mut self, index: usize, stream: Stream, bytes: usize) {
        let window = self.limits.window;
        let slot = &mut self.slots[index];
        slot.output(stream).take(bytes);
        if matches!(slot.phase, Phase::Running | Phase::Ordered { .. })
            && slot.owes_credit(window)
            && let Some(slave) = slot.slave.clone()
        {
            let order = slot.credit();
            self.order(order, vec![slave]);
        }
    }

    fn end(&mut self, index: usize, ended: Ended) {
        self.counts.add(&ended);
        let most = self.limits.max_failures;
        if most > 0 && self.counts.failures() >= most && self.next < self.slots.len() {
            self.counts.stopped = true;
        }
        let slot = &mut self.slots[index];
        slot.phase = Phase::Ended;
        slot.ended = Some(ended);
        self.active.remove(&index);
        self.tell(Event::Finished(index));
    }

    /// The target that is this incarnation of a pod.
    fn find(&self, slave: &Slave) -> Option<usize> {
        let index = *self.by_key.get(&slave.key)?;
        (self.slots[index].slave.as_ref() == Some(slave)).then_some(index)
    }

    fn tell(&mut self, event: Event) {
        self.effects.push_back(Effect::Tell(event));
    }

    fn order(&mut self, order: Order, slaves: Vec<Slave>) {
        if !slaves.is_empty() {
            self.effects.push_back(Effect::Order(order, slaves));
        }
    }
}

fn unreachable_gone() -> Ended {
    Ended::untold(
        Outcome::Unreachable,
        "the pod left the roster before its turn",
    )
}
