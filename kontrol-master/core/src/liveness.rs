//! Liveness: who was silent for too long. PURE: time is an argument.
//!
//! A keepalive costs no work here: it stores one instant in the pod's [`Heard`] slot. The queue holds, for each pod, a
//! moment before which it can't expire; when that moment comes, the slot tells whether the pod really was silent or
//! goes back into the queue. So a pod costs one queue operation for each TTL, however often it reports.
//!
//! Time in which the leader could not hear (its process stood still) is never held against a pod: it is added to the
//! deadline of every pod that was last heard before it ended.
//!
//! ```text
//! heard ── heard ── attached (3) ── channel ends ──────── lost ──▶ gone, unless it was heard or attached (4) meanwhile
//!                                        └─▶ heard ────────────▶ its TTL alone decides
//! ```

use crate::model::PodKey;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How often the owner of [`Deadlines`] must call [`Attention::tick`].
pub const TICK: Duration = Duration::from_millis(200);
/// A tick later than this after the one before means that the process stood still.
const TOLERANCE: Duration = Duration::from_millis(400);
/// A keepalive that was on its way when the channel ended is noted up to this long after it, and is no sign of life.
const IN_FLIGHT: Duration = Duration::from_millis(100);

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

/// When one incarnation of a pod was last heard, through which master, at which beat, and how often it attached. Written
/// by every keepalive without a lock.
#[derive(Debug)]
pub struct Heard {
    origin: Instant,
    /// Microseconds after `origin`, plus one; 0: never.
    at: AtomicU64,
    beat: AtomicU64,
    master: AtomicU64,
    attachment: AtomicU64,
    /// The latest revision of the pod's record that was told of, which the roster need not show yet; 0: none.
    written: AtomicI64,
    /// How many writes of the pod's record this master has begun that are not answered yet.
    writing: AtomicU32,
    /// The revision of the record that is about to be removed for silence; 0: none.
    leaving: AtomicI64,
}

/// A write of a pod's record that is under way, for as long as it is held.
#[derive(Debug)]
pub struct Writing(Arc<Heard>);

impl Writing {
    /// The write begins: until it is answered nobody knows which record the store has.
    pub fn begin(heard: &Arc<Heard>) -> Self {
        heard.writing.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(heard))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Heard {
    /// A slot of a pod that was not heard yet. No keepalive of it can be older than `origin`.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            at: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            master: AtomicU64::new(0),
            attachment: AtomicU64::new(0),
            written: AtomicI64::new(0),
            writing: AtomicU32::new(0),
            leaving: AtomicI64::new(0),
        }
    }

    /// Since when this master knows the incarnation.
    pub fn since(&self) -> Instant {
        self.origin
    }

    /// The pod's record was written, or deleted, by this revision: whoever knows an older one is behind.
    pub fn wrote(&self, revision: i64) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    /// Whether nothing was told of that is newer than this revision of the pod's record, and nothing is being written.
    pub fn is_latest(&self, revision: i64) -> bool {
        self.written.load(Ordering::Acquire) <= revision
            && self.writing.load(Ordering::Acquire) == 0
            && !self.is_leaving(revision)
    }

    /// The record of this revision is about to be removed: mark it, then look whether the pod was heard. A keepalive is noted
    /// first, and looks for the mark then: so either it is seen, or it sees that the record must be written anew to stay.
    pub fn leaves(&self, revision: i64) {
        self.leaving.store(revision, Ordering::SeqCst);
    }

    /// The record of this revision stays after all, for sure.
    pub fn stays(&self, revision: i64) {
        let _ = self
            .leaving
            .compare_exchange(revision, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether the record of this revision may be removed at any moment.
    pub fn is_leaving(&self, revision: i64) -> bool {
        revision != 0 && self.leaving.load(Ordering::SeqCst) == revision
    }

    /// The pod's channel was opened. Attachments are numbered, so that an older one never overwrites a newer one.
    pub fn attach(&self, attachment: u64) {
        self.attachment.fetch_max(attachment, Ordering::AcqRel);
    }

    /// The number of its latest attachment; 0: none.
    pub fn attachment(&self) -> u64 {
        self.attachment.load(Ordering::Acquire)
    }

    /// The pod was heard. An older moment or beat never overwrites a newer one.
    pub fn touch(&self, at: Instant, beat: u64, master: Option<Instance>) {
        let at = at.saturating_duration_since(self.origin).as_micros();
        let at = u64::try_from(at).unwrap_or(u64::MAX - 1) + 1;
        let before = self.at.fetch_max(at, Ordering::SeqCst);
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
        let at = self.at.load(Ordering::SeqCst).checked_sub(1)?;
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

/// A span in which keepalives could not be heard: the process stood still, or missed what the store passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blind {
    start: Instant,
    end: Instant,
}

impl Blind {
    /// The span between these moments.
    pub fn between(start: Instant, end: Instant) -> Self {
        Self { start, end }
    }
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

/// The end of a pod's channel.
#[derive(Debug, Clone)]
pub struct Detached {
    /// The pod.
    pub pod: Tracked,
    /// Its incarnation.
    pub heard: Arc<Heard>,
    /// The number of the attachment that ended.
    pub attachment: u64,
    /// When it ended.
    pub at: Instant,
}

impl Detached {
    /// Whether nothing was heard of the incarnation since.
    fn stands(&self, heard: &Arc<Heard>) -> bool {
        Arc::ptr_eq(heard, &self.heard)
            && heard.attachment() == self.attachment
            && heard.at().is_none_or(|at| at <= self.at + IN_FLIGHT)
    }
}

/// The deadlines of all pods.
#[derive(Debug)]
pub struct Deadlines {
    ttl: Duration,
    started: Instant,
    queue: BinaryHeap<Reverse<(Instant, Tracked)>>,
    /// How long a pod may take to come back whose channel ended.
    lost_after: Duration,
    /// In the order in which they came, which is nearly that of their moments.
    detached: VecDeque<Detached>,
    blind: VecDeque<Blind>,
}

impl Deadlines {
    /// Deadlines of a leader that starts now: no pod can expire before a full TTL from here. A pod whose channel ended is
    /// lost after `lost_after`; never when that is zero.
    pub fn new(ttl: Duration, lost_after: Duration, now: Instant) -> Self {
        Self {
            ttl,
            started: now,
            queue: BinaryHeap::new(),
            lost_after,
            detached: VecDeque::new(),
            blind: VecDeque::new(),
        }
    }

    /// A pod's channel ended without a goodbye. One that ended before this leader led proves nothing: the pod may have
    /// attached elsewhere, and this leader not have heard of that yet.
    pub fn detach(&mut self, detached: Detached) {
        if !self.lost_after.is_zero() && detached.at >= self.started {
            self.detached.push_back(detached);
        }
    }

    /// Takes out at most `limit` pods that did not come back. `heard` tells the incarnation of a pod that is in the roster.
    pub fn lost(
        &mut self,
        now: Instant,
        limit: usize,
        mut heard: impl FnMut(Tracked) -> Option<Arc<Heard>>,
    ) -> Vec<Detached> {
        let mut lost = Vec::new();
        let mut waiting = VecDeque::with_capacity(self.detached.len());
        while let Some(detached) = self.detached.pop_front() {
            if !heard(detached.pod).is_some_and(|heard| detached.stands(&heard)) {
                continue;
            }
            if self.lost_at(&detached) <= now && lost.len() < limit {
                lost.push(detached);
            } else {
                waiting.push_back(detached);
            }
        }
        self.detached = waiting;
        lost
    }

    /// When the next pod may be lost.
    pub fn next_lost(&self) -> Option<Instant> {
        self.detached.iter().map(|one| self.lost_at(one)).min()
    }

    fn lost_at(&self, detached: &Detached) -> Instant {
        detached.at + self.lost_after + self.forgiven(detached.at)
    }

    /// How long nothing could be heard since then.
    fn forgiven(&self, since: Instant) -> Duration {
        let spans = self.blind.iter();
        spans
            .map(|blind| blind.end.saturating_duration_since(blind.start.max(since)))
            .sum()
    }

    /// Follows a pod from now on. Call it once for each pod.
    pub fn track(&mut self, pod: Tracked, now: Instant) {
        self.queue.push(Reverse((now + self.ttl, pod)));
    }

    /// Follows again a pod that [`Self::expired`] gave out and that could not be removed; it is given out again then.
    pub fn retry(&mut self, pod: Tracked, at: Instant) {
        self.queue.push(Reverse((at, pod)));
    }

    /// Everybody has a full TTL from here, as under a leader that starts now.
    pub fn restart(&mut self, now: Instant) {
        self.started = now;
        self.detached.clear();
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
        heard + self.ttl + self.forgiven(heard)
    }

    /// Whether half of the time is over after which a pod expires that was last heard then.
    pub fn is_silent(&self, heard: Option<Instant>, now: Instant) -> bool {
        self.deadline(heard) <= now + self.ttl / 2
    }

    /// The pods whose channel ended so long ago that half of the time is over in which they may come back. `heard` tells the
    /// incarnation of a pod that is in the roster.
    pub fn detached(
        &self,
        now: Instant,
        heard: impl Fn(Tracked) -> Option<Arc<Heard>>,
    ) -> impl Iterator<Item = Tracked> {
        let half = self.lost_after / 2;
        let detached = self.detached.iter();
        let silent = detached.filter(move |one| {
            self.lost_at(one) <= now + half
                && heard(one.pod).is_some_and(|heard| one.stands(&heard))
        });
        silent.map(|one| one.pod)
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
        mut heard: impl FnMut(Tracked) -> Result<Option<Instant>, Gone>,
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
mod tests;
