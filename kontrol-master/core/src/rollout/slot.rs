//! One target of an action.

use super::{
    Adopted, BUSY_RETRY, Incarnations, LINGER, LONGEST_SILENCE, Limits, Order, RETRY, SILENCE,
    Slave, Stream, Target,
    output::{Output, is_due},
};
use crate::model::{
    PodKey,
    action::{Ended, Outcome, ResultRecord},
};
use std::time::Duration;
use tokio::time::Instant;

/// Where a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its turn has not come.
    Waiting,
    /// Its slave is not attached, or has too many orders to take.
    Seeking {
        /// It may have got the order.
        doubt: bool,
        /// It has too many orders to take.
        busy: bool,
        /// When to try again, should nobody tell that it is back.
        retry_at: Instant,
    },
    /// An order is on its way: to run, or where in doubt to tell what became of it.
    Ordered {
        /// It may have got the order before.
        doubt: bool,
    },
    /// The slave said that it has it.
    Running,
    /// It is over.
    Ended,
}

impl Phase {
    pub(super) fn seeking(doubt: bool, busy: bool, now: Instant) -> Self {
        let pause = if busy { BUSY_RETRY } else { RETRY };
        Self::Seeking {
            doubt,
            busy,
            retry_at: now + pause,
        }
    }
}

/// One target of an action.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) target: Target,
    pub(super) phase: Phase,
    /// The incarnation that gets the order, once its turn has come.
    pub(super) slave: Option<Slave>,
    /// When its turn came, or when its channel last came or went.
    pub(super) since: Option<Instant>,
    /// When its pod was first seen to be gone from the roster.
    gone: Option<Instant>,
    /// How many orders to run were sent that are not known to have missed the slave.
    pub(super) orders: u32,
    pub(super) started: bool,
    /// The slave was told never to obey an order to run that comes yet.
    pub(super) barred: bool,
    /// Since when it says nothing, and for how long it may.
    quiet: Option<Instant>,
    silence: Duration,
    pub(super) ended: Option<Ended>,
    stdout: Output,
    stderr: Output,
}

/// What is to be done about a target that is waited for.
pub(super) enum Step {
    Wait,
    /// Give the order again.
    Retry,
    End(Ended),
}

impl Slot {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            phase: Phase::Waiting,
            slave: None,
            since: None,
            gone: None,
            orders: 0,
            started: false,
            barred: false,
            quiet: None,
            silence: SILENCE,
            ended: None,
            stdout: Output::default(),
            stderr: Output::default(),
        }
    }

    /// A target of an action that another master carried.
    pub(super) fn adopted(adopted: Adopted, now: Instant) -> Self {
        let Adopted {
            target,
            ended,
            tails: [stdout, stderr],
        } = adopted;
        let slave = target.pod.as_ref().ok().map(|key| Slave {
            key: *key,
            nonce: target.nonce.as_str().into(),
        });
        let mut slot = Self::new(target);
        slot.phase = match ended {
            Some(_) => Phase::Ended,
            None => Phase::seeking(true, false, now),
        };
        slot.slave = slave;
        slot.since = Some(now);
        slot.ended = ended;
        slot.stdout = Output::adopted(stdout);
        slot.stderr = Output::adopted(stderr);
        slot
    }

    /// Whether it is known which incarnation of which pod got the order.
    pub(super) fn can_be_asked(&self) -> bool {
        self.slave
            .as_ref()
            .is_some_and(|slave| !slave.nonce.is_empty())
    }

    /// Its turn has come.
    pub(super) fn turn(&mut self, key: PodKey, nonce: &str, now: Instant) -> Slave {
        let slave = Slave {
            key,
            nonce: nonce.into(),
        };
        self.slave = Some(slave.clone());
        self.since = Some(now);
        self.orders = 1;
        self.phase = Phase::Ordered { doubt: false };
        slave
    }

    /// Its slave said something.
    pub(super) fn heard(&mut self) {
        self.quiet = None;
        self.silence = SILENCE;
    }

    /// Whether its slave, which has an order, has said nothing for so long that it may have lost it. Then the next time
    /// begins.
    pub(super) fn is_too_quiet(&mut self, now: Instant, cancelled: bool) -> bool {
        let limit = match self.phase {
            Phase::Ordered { .. } => self.silence,
            Phase::Running if cancelled => self.silence,
            Phase::Running => LONGEST_SILENCE,
            Phase::Waiting | Phase::Seeking { .. } | Phase::Ended => {
                self.quiet = None;
                return false;
            }
        };
        let since = *self.quiet.get_or_insert(now);
        if now - since < limit {
            return false;
        }
        self.quiet = Some(now);
        self.silence = (self.silence * 2).min(LONGEST_SILENCE);
        true
    }

    /// Whether an order that was not taken is to be tried again.
    pub(super) fn is_to_be_tried(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Seeking { retry_at, .. } if retry_at <= now)
    }

    pub(super) fn pod(&self) -> Option<PodKey> {
        self.target.pod.as_ref().ok().copied()
    }

    pub(super) fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Whether not all came of what its streams had when it ended.
    pub(super) fn lacks_some_of(&self, stdout: u64, stderr: u64) -> bool {
        self.stdout.lacks_some_of(stdout) || self.stderr.lacks_some_of(stderr)
    }

    pub(super) fn owes_credit(&self, window: u64) -> bool {
        is_due([&self.stdout, &self.stderr], window)
    }

    pub(super) fn credit(&mut self) -> Order {
        Order::Credit {
            stdout: self.stdout.tell_taken(),
            stderr: self.stderr.tell_taken(),
        }
    }

    pub(super) fn resume(&mut self) -> Order {
        Order::Resume {
            stdout: self.stdout.tell_taken(),
            stderr: self.stderr.tell_taken(),
        }
    }

    /// What is to be done about it, while it has its turn.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        roster: &impl Incarnations,
        limits: &Limits,
        patience: Duration,
    ) -> Step {
        let (Some(slave), Some(since)) = (&self.slave, self.since) else {
            return Step::Wait;
        };
        let doubt = match self.phase {
            Phase::Waiting | Phase::Ended => return Step::Wait,
            Phase::Running => true,
            // The order is not back yet, so it may be with the slave.
            Phase::Ordered { .. } => true,
            Phase::Seeking { doubt, .. } => doubt,
        };
        let nonce = roster.nonce(slave.key);
        if nonce == Some(&*slave.nonce) {
            self.gone = None;
        } else if doubt {
            let gone = *self.gone.get_or_insert(now);
            if now - gone < LINGER {
                return Step::Wait;
            }
            return Step::End(Ended::untold(
                Outcome::Lost,
                match nonce {
                    Some(_) => "the pod restarted, and what ran there ended with its slave",
                    None => "the pod left the roster while it had the order",
                },
            ));
        } else if let Some(nonce) = nonce {
            // It restarted, and the incarnation before it did not get the order: this one is as good.
            let key = slave.key;
            self.turn(key, nonce, since);
            self.orders = 0;
            return Step::Retry;
        } else {
            return Step::End(Ended::untold(
                Outcome::Unreachable,
                "the pod left the roster before it got the order",
            ));
        }
        let Phase::Seeking {
            doubt,
            busy,
            retry_at,
        } = self.phase
        else {
            return Step::Wait;
        };
        let (limit, why) = match (doubt, busy) {
            (_, true) => (patience, "the slave has more orders than it takes"),
            (true, false) => (
                patience,
                "the pod reports, but its slave did not attach again to tell what became of it",
            ),
            (false, false) => (
                limits.attach,
                "the pod is not attached to any master: only a slave (kontrol-slave, or a master that is a pod) takes actions",
            ),
        };
        if now - since >= limit {
            let outcome = if doubt {
                Outcome::Lost
            } else {
                Outcome::Unreachable
            };
            Step::End(Ended::untold(outcome, why))
        } else if retry_at <= now {
            Step::Retry
        } else {
            Step::Wait
        }
    }

    /// The target, as the history keeps it.
    pub(super) fn record(&self) -> ResultRecord {
        let mut record = ResultRecord {
            key: self.target.key.clone(),
            id: self.target.id.clone(),
            ..ResultRecord::default()
        };
        match &self.ended {
            Some(ended) => record.end(ended),
            None => {
                let nonce = self.slave.as_ref().map(|slave| &*slave.nonce);
                record.nonce = nonce.unwrap_or(&self.target.nonce).to_owned();
            }
        }
        record.stdout_tail = self.stdout.tail();
        record.stderr_tail = self.stderr.tail();
        record
    }
}
