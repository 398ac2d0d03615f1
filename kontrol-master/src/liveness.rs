//! Liveness: who was silent for too long. PURE: time is an argument.
//!
//! A keepalive costs no work here: it stores one instant in the pod's [`Heard`] slot. The queue holds, for each pod, a
//! moment before which it can't expire; when that moment comes, the slot tells whether the pod really was silent or
//! goes back into the queue. So a pod costs one queue operation for each TTL, however often it reports.
//!
//! Time in which the leader could not hear (its process stood still) is never held against a pod: it is added to the
//! deadline of every pod that was last heard before it ended.

use crate::model::PodKey;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// How often the owner of [`Deadlines`] must call [`Attention::tick`].
pub const TICK: Duration = Duration::from_millis(200);
/// A tick later than this after the one before means that the process stood still.
const TOLERANCE: Duration = Duration::from_millis(400);

/// One start of a master: drawn at random, 16 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance(pub u64);

impl std::fmt::Display for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Instance {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// When one incarnation of a pod was last heard, through which master, and at which beat. Written by every keepalive
/// without a lock.
#[derive(Debug)]
pub struct Heard {
    origin: Instant,
    /// Microseconds after `origin`, plus one; 0: never.
    at: AtomicU64,
    beat: AtomicU64,
    master: AtomicU64,
}

impl Heard {
    /// A slot of a pod that was not heard yet. No keepalive of it can be older than `origin`.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            at: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            master: AtomicU64::new(0),
        }
    }

    /// The pod was heard. An older moment or beat never overwrites a newer one.
    pub fn touch(&self, at: Instant, beat: u64, master: Option<Instance>) {
        let at = at.saturating_duration_since(self.origin).as_micros();
        let at = u64::try_from(at).unwrap_or(u64::MAX - 1) + 1;
        let before = self.at.fetch_max(at, Ordering::AcqRel);
        self.beat.fetch_max(beat, Ordering::AcqRel);
        if let Some(Instance(master)) = master
            && at >= before
            && self.master.load(Ordering::Relaxed) != master
        {
            self.master.store(master, Ordering::Relaxed);
        }
    }

    /// When the pod was last heard.
    pub fn at(&self) -> Option<Instant> {
        let at = self.at.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.origin + Duration::from_micros(at))
    }

    /// The highest beat heard; 0: unknown.
    pub fn beat(&self) -> u64 {
        self.beat.load(Ordering::Acquire)
    }

    /// The master that heard it last.
    pub fn master(&self) -> Option<Instance> {
        match self.master.load(Ordering::Relaxed) {
            0 => None,
            id => Some(Instance(id)),
        }
    }
}

/// A span in which the process stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blind {
    start: Instant,
    end: Instant,
}

/// Notices that the process stood still: it is ticked steadily, and a late tick tells how long.
#[derive(Debug)]
pub struct Attention {
    last: Instant,
}

impl Attention {
    /// Starts to pay attention.
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Call it every [`TICK`] and before each look at the deadlines.
    pub fn tick(&mut self, now: Instant) -> Option<Blind> {
        let start = std::mem::replace(&mut self.last, now) + TICK;
        (now.saturating_duration_since(start) > TOLERANCE).then_some(Blind { start, end: now })
    }
}

/// One pod of the roster: a pod that left and joined again has another seq.
pub type Tracked = (PodKey, u64);

/// The deadlines of all pods.
#[derive(Debug)]
pub struct Deadlines {
    ttl: Duration,
    started: Instant,
    queue: BinaryHeap<Reverse<(Instant, Tracked)>>,
    blind: VecDeque<Blind>,
}

impl Deadlines {
    /// Deadlines of a leader that starts now: no pod can expire before a full TTL from here.
    pub fn new(ttl: Duration, now: Instant) -> Self {
        Self {
            ttl,
            started: now,
            queue: BinaryHeap::new(),
            blind: VecDeque::new(),
        }
    }

    /// Follows a pod from now on. Call it once for each pod.
    pub fn track(&mut self, pod: Tracked, now: Instant) {
        self.queue.push(Reverse((now + self.ttl, pod)));
    }

    /// Follows again a pod that [`Self::expired`] gave out and that could not be removed; it is given out again then.
    pub fn retry(&mut self, pod: Tracked, at: Instant) {
        self.queue.push(Reverse((at, pod)));
    }

    /// Adds a span in which nothing could be heard.
    pub fn forgive(&mut self, blind: Blind) {
        self.blind.push_back(blind);
        // A pod can be due at most a TTL and all blind time after it was heard; older spans decide nothing any more.
        let blind_total: Duration = self.blind.iter().map(|blind| blind.end - blind.start).sum();
        let horizon = self.ttl + blind_total;
        while let Some(oldest) = self.blind.front()
            && blind.end.saturating_duration_since(oldest.end) > horizon
        {
            self.blind.pop_front();
        }
    }

    /// The moment at which a pod expires that was last heard then.
    pub fn deadline(&self, heard: Option<Instant>) -> Instant {
        let heard = heard.map_or(self.started, |heard| heard.max(self.started));
        let forgiven: Duration = self
            .blind
            .iter()
            .map(|blind| blind.end.saturating_duration_since(blind.start.max(heard)))
            .sum();
        heard + self.ttl + forgiven
    }

    /// When to look again.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out at most `limit` pods that expired. `heard` tells when a pod was last heard, or `Err` when it is no
    /// longer in the roster.
    pub fn expired(
        &mut self,
        now: Instant,
        limit: usize,
        heard: impl Fn(Tracked) -> Result<Option<Instant>, Gone>,
    ) -> Vec<Tracked> {
        let mut expired = Vec::new();
        while let Some(Reverse((at, pod))) = self.queue.peek().copied()
            && at <= now
            && expired.len() < limit
        {
            self.queue.pop();
            match heard(pod).map(|heard| self.deadline(heard)) {
                Ok(deadline) if deadline <= now => expired.push(pod),
                Ok(deadline) => self.queue.push(Reverse((deadline, pod))),
                Err(Gone) => {}
            }
        }
        expired
    }
}

/// The pod is no longer in the roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TTL: Duration = Duration::from_secs(10);
    const POD: Tracked = (PodKey::ONE, 0);

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_silent_pod_expires_after_its_ttl_and_a_heard_one_does_not() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(TTL, start);
        deadlines.track(POD, start);
        assert!(
            deadlines
                .expired(at(start, 9.9), 9, |_| Ok(None))
                .is_empty()
        );
        assert!(
            deadlines
                .expired(at(start, 10.0), 9, |_| Ok(Some(at(start, 3.0))))
                .is_empty()
        );
        assert_eq!(deadlines.next(), Some(at(start, 13.0)));
        assert_eq!(
            deadlines.expired(at(start, 13.0), 9, |_| Ok(Some(at(start, 3.0)))),
            [POD]
        );
    }

    #[test]
    fn a_pause_is_added_to_who_was_heard_before_it_and_not_to_others() {
        let start = Instant::now();
        let mut attention = Attention::new(start);
        let mut deadlines = Deadlines::new(TTL, start);
        deadlines.track(POD, start);
        assert_eq!(attention.tick(at(start, 0.3)), None);
        let blind = attention.tick(at(start, 8.5)).expect("a pause");
        deadlines.forgive(blind);
        assert_eq!(
            deadlines.deadline(Some(at(start, 0.2))),
            at(start, 0.2 + 10.0 + 8.0)
        );
        assert_eq!(deadlines.deadline(Some(at(start, 8.6))), at(start, 18.6));
    }

    #[test]
    fn an_older_moment_or_beat_overwrites_nothing() {
        let start = Instant::now();
        let heard = Heard::new(start);
        assert_eq!((heard.at(), heard.master()), (None, None));
        heard.touch(at(start, 5.0), 7, Some(Instance(1)));
        heard.touch(at(start, 4.0), 6, Some(Instance(2)));
        assert_eq!((heard.at(), heard.beat()), (Some(at(start, 5.0)), 7));
        assert_eq!(heard.master(), Some(Instance(1)));
    }

    proptest! {
        /// Against a naive model: whatever is heard when, a pod is given out exactly when its silence reached the TTL.
        #[test]
        fn expiry_is_exact(steps in prop::collection::vec((0_u64..4_000, 0_u8..8, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut deadlines = Deadlines::new(TTL, start);
            let mut model: BTreeMap<Tracked, Instant> = BTreeMap::new();
            for (gap, host, hear) in steps {
                now += Duration::from_millis(gap);
                let silent: Vec<_> = model.iter().filter(|(_, heard)| **heard + TTL <= now).map(|(pod, _)| *pod).collect();
                let mut expired = deadlines.expired(now, usize::MAX, |pod| model.get(&pod).map(|heard| Some(*heard)).ok_or(Gone));
                expired.sort_unstable();
                prop_assert_eq!(&expired, &silent);
                model.retain(|pod, _| !silent.contains(pod));
                let pod = (PodKey::from_u128(u128::from(host)), 0);
                if let Some(heard) = model.get_mut(&pod) {
                    if hear { *heard = now; }
                } else {
                    model.insert(pod, now);
                    deadlines.track(pod, now);
                }
            }
        }
    }
}
