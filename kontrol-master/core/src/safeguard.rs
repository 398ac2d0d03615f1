//! The safeguard: when too much of an ensemble falls silent at once, it is more likely that the masters can't hear than that
//! all of it died. Then nobody is removed for silence. PURE: time is an argument.
//!
//! ```text
//!           silence would remove more than the share within a TTL
//!   armed ─────────────────────────────────────────────────────────▶ frozen
//!     ▲                                                                │
//!     └── fewer than half of the share are silent · released · limit ──┘
//! ```
//!
//! Who is silent is judged ahead of time: of pods that die together the first is due a while before the last. So a pod
//! counts once half of the time is over after which it leaves, and not only when it is due.
//!
//! Whoever was silent when it was released, or when its limit came, leaves. It counts no more, neither as silent nor among
//! the removals: else the release would freeze anew.

use crate::liveness::Tracked;
use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// When removals freeze, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// The share of the ensemble, in percent, that silence may remove within the window; 0: any.
    pub percent: u8,
    /// From how many pods on.
    pub min: usize,
    /// How long removals stay frozen at the most.
    pub max: Duration,
}

/// Why removals go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thaw {
    /// Most pods came back, or left by themselves.
    Recovered,
    /// An operator said so.
    Released,
    /// It took too long.
    Limit,
}

/// What is to be done about the pods that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They leave.
    Remove,
    /// From now on nobody leaves for silence, but for those that are exempt.
    Freeze(Frozen),
    /// As before: nobody leaves.
    Hold(Frozen),
    /// From now on they leave again.
    Thaw(Thaw, Frozen),
}

/// Removals are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen {
    /// How many pods are silent.
    pub silent: usize,
    /// Of how many.
    pub pods: usize,
    /// Until when at the most.
    until: Instant,
    /// Before that time it can't be told who is silent: this leader has not listened for long enough.
    listened: Instant,
    released: bool,
}

/// The state of the safeguard on the leader.
#[derive(Debug)]
pub struct Safeguard {
    policy: Policy,
    /// In which time removals add up: a TTL.
    window: Duration,
    frozen: Option<Frozen>,
    /// The removals of the window: when, and how many.
    removed: VecDeque<(Instant, usize)>,
    exempt: HashSet<Tracked>,
}

impl Safeguard {
    /// Nothing was removed yet.
    pub fn new(policy: Policy, window: Duration) -> Self {
        Self {
            policy,
            window,
            frozen: None,
            removed: VecDeque::new(),
            exempt: HashSet::new(),
        }
    }

    /// A leader before froze it, for so much longer. Nothing is judged before this one has listened for a window.
    pub fn adopt(&mut self, now: Instant, left: Duration, silent: usize, pods: usize) {
        self.frozen = Some(Frozen {
            silent,
            pods,
            until: now + left.min(self.policy.max),
            listened: now + self.window,
            released: false,
        });
    }

    /// An operator releases it.
    pub fn release(&mut self) {
        if let Some(frozen) = &mut self.frozen {
            frozen.released = true;
        }
    }

    /// What is frozen.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_ref()
    }

    /// Whether a pod may leave whatever else is silent.
    pub fn is_exempt(&self, pod: Tracked) -> bool {
        self.exempt.contains(&pod)
    }

    /// Pods were removed for silence.
    pub fn on_removed(&mut self, now: Instant, pods: &[Tracked]) {
        let counted = pods.iter().filter(|pod| !self.exempt.remove(pod)).count();
        if counted > 0 {
            self.removed.push_back((now, counted));
        }
    }

    /// Judges the silence of an ensemble of so many pods. `silent`: those that are due, and those whose time is half over.
    pub fn judge(&mut self, now: Instant, pods: usize, silent: &HashSet<Tracked>) -> Verdict {
        self.exempt.retain(|pod| silent.contains(pod));
        let count = silent.len() - self.exempt.len();
        while let Some((at, _)) = self.removed.front()
            && *at + self.window <= now
        {
            self.removed.pop_front();
        }
        let Some(mut frozen) = self.frozen else {
            let gone: usize = self.removed.iter().map(|(_, pods)| pods).sum();
            let all = pods - self.exempt.len() + gone;
            let percent = usize::from(self.policy.percent);
            if percent == 0 || all < self.policy.min || (count + gone) * 100 <= percent * all {
                return Verdict::Remove;
            }
            let frozen = Frozen {
                silent: count,
                pods,
                until: now + self.policy.max,
                listened: now,
                released: false,
            };
            self.frozen = Some(frozen);
            return Verdict::Freeze(frozen);
        };
        if now < frozen.listened {
            return Verdict::Hold(frozen);
        }
        (frozen.silent, frozen.pods) = (count, pods);
        self.frozen = Some(frozen);
        let thaw = if frozen.released {
            Thaw::Released
        } else if now >= frozen.until {
            Thaw::Limit
        } else if self.policy.percent == 0
            || count * 200 < usize::from(self.policy.percent) * pods
            || pods == 0
        {
            Thaw::Recovered
        } else {
            return Verdict::Hold(frozen);
        };
        self.frozen = None;
        self.removed.clear();
        if thaw != Thaw::Recovered {
            self.exempt.clone_from(silent);
        }
        Verdict::Thaw(thaw, frozen)
    }
}

#[cfg(test)]
mod tests;
