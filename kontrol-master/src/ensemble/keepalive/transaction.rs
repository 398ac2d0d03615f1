//! A transaction in the making: each report decided against its place as it is known best. PURE but for the display
//! time of joins and goodbyes.
//!
//! Each decision rests on a record, or on there being none. The transaction compares exactly that, even where it writes
//! nothing, because this master's view may be behind. Only what the store told after the report came needs no
//! comparison. To the store, a transaction that writes nothing is a read.

mod refusal;

use crate::cluster::error::Error;
use kontrol_core::{
    contest::{self, Contests, Refusal},
    json,
    kv::{Compare, Entry, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision, Snapshot, Txn},
    limits::{Limits, MAX_PAYLOAD_BYTES, MAX_SAFE_INTEGER},
    model::{Incarnation, Invalid, Pod, PodKey, Reason, Report, Retired},
    plan::{Departed, Known, Plan, plan},
    view::{PODS, RemovalRecord, SEQ, TOMBSTONES, View, pod_key, tombstone_key},
};
use kontrol_runtime::clock::now_ms;
use refusal::refused;
use std::{collections::HashMap, sync::Arc};
use tokio::time::Instant;

/// Seqs are numbers in PODS.
const MAX_SEQ: u64 = MAX_SAFE_INTEGER;

/// Largest record: as large as a report without control characters can make it, and less than a transaction.
const MAX_RECORD_BYTES: usize = MAX_TXN_BYTES / 4 * 3;

/// How many places one transaction takes: each has its record and its tombstone to write, to compare and to read. Beside
/// them it has the counter and the reasons of removals.
pub(super) const MAX_PLACES: usize = (MAX_TXN_OPS - 2) / 2;

/// What became of a keepalive that needed the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The pod's seq; 0 where there is no such pod.
    pub seq: u64,
    /// The revision from which on the roster shows it; of what was not written, that of the pod's record, or 0.
    pub revision: Revision,
    /// Nothing had to be written for it.
    pub unchanged: bool,
}

/// What is at one key.
#[derive(Debug, Clone)]
struct Place {
    current: Current,
    tombstone: Option<Arc<RemovalRecord>>,
    /// Of the tombstone; 0: there is none.
    tombstone_revision: Revision,
}

#[derive(Debug, Clone)]
enum Current {
    Absent,
    Pod(Arc<Pod>, Revision),
    /// Something that is no pod record, to be overwritten.
    Unreadable(Revision),
}

impl Place {
    const EMPTY: Self = Self {
        current: Current::Absent,
        tombstone: None,
        tombstone_revision: 0,
    };

    fn seen(view: &View, key: PodKey) -> Self {
        let tombstone = view.tombstone(key);
        Self {
            current: match (view.member(key), view.unreadable(key)) {
                (Some(member), _) => Current::Pod(Arc::clone(&member.pod), member.mod_revision),
                (None, Some(revision)) => Current::Unreadable(revision),
                (None, None) => Current::Absent,
            },
            tombstone: tombstone.and_then(|one| one.record.clone()),
            tombstone_revision: tombstone.map_or(0, |one| one.mod_revision),
        }
    }

    fn pod(&self) -> Option<&Pod> {
        match &self.current {
            Current::Pod(pod, _) => Some(pod),
            Current::Absent | Current::Unreadable(_) => None,
        }
    }

    /// Who left last, where nobody is.
    fn departed(&self) -> Option<&RemovalRecord> {
        self.tombstone.as_deref().filter(|_| self.pod().is_none())
    }

    /// The revision of what decides.
    fn revision(&self) -> Revision {
        match self.current {
            Current::Pod(_, revision) => revision,
            Current::Absent | Current::Unreadable(_) => self.tombstone_revision,
        }
    }

    /// Who had the place before: a pod that joins now inherits that list.
    fn predecessors(&self) -> Vec<Retired> {
        self.departed()
            .map_or_else(Vec::new, RemovalRecord::predecessors)
    }
}

/// Places as the store told them, because a transaction came back with them.
#[derive(Debug, Default)]
pub(super) struct Records {
    revision: Revision,
    places: HashMap<PodKey, Place>,
    seq: Option<(u64, Revision)>,
}

impl Records {
    pub(super) fn read(keys: &[String], snapshot: &Snapshot) -> Self {
        let mut records = Self {
            revision: snapshot.revision,
            places: HashMap::new(),
            seq: Some((0, 0)),
        };
        for key in keys {
            if let Some(Ok(key)) = key.strip_prefix(PODS).map(str::parse) {
                records.places.insert(key, Place::EMPTY);
            }
        }
        for entry in &snapshot.entries {
            records.take(entry);
        }
        records
    }

    fn take(&mut self, entry: &Entry) {
        if entry.key == SEQ {
            let next = str::from_utf8(&entry.value)
                .ok()
                .and_then(|text| text.parse().ok());
            self.seq = Some((next.unwrap_or(0), entry.mod_revision));
        } else if let Some(Ok(key)) = entry.key.strip_prefix(PODS).map(str::parse) {
            let place = self.places.entry(key).or_insert(Place::EMPTY);
            place.current = match Pod::decode(&entry.value) {
                Ok(pod) if pod.key() == key => Current::Pod(Arc::new(pod), entry.mod_revision),
                _ => Current::Unreadable(entry.mod_revision),
            };
        } else if let Some(Ok(key)) = entry.key.strip_prefix(TOMBSTONES).map(str::parse) {
            let place = self.places.entry(key).or_insert(Place::EMPTY);
            place.tombstone = serde_json::from_slice(&entry.value).ok().map(Arc::new);
            place.tombstone_revision = entry.mod_revision;
        }
    }
}

/// What a report is answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is written.
    Written {
        /// The pod's seq.
        seq: u64,
        /// Who has taken the place over from another by that.
        seated: Option<(PodKey, Incarnation)>,
    },
    /// There was nothing to write.
    Unchanged(Committed),
    /// Another has its place.
    Refused(Refusal, Error),
    Failed(Error),
}

/// What becomes of a report.
#[derive(Debug)]
pub(super) enum Decision {
    /// It is answered so once the transaction is committed.
    Pending(Answer),
    /// It is answered so.
    Done(Answer),
}

/// A transaction in the making.
pub(super) struct Transaction<'a> {
    view: &'a View,
    records: &'a Records,
    contests: &'a Contests,
    master: &'a str,
    limits: &'a Limits,
    /// How many pods may join, and how many do.
    room: usize,
    joined: usize,
    now: Instant,
    next_seq: u64,
    seq_revision: Revision,
    first_seq: u64,
    txn: Txn,
    removals: Vec<RemovalRecord>,
    now_ms: u64,
}

impl<'a> Transaction<'a> {
    /// `unseen`: how many have joined whom the view does not show yet.
    pub(super) fn new(
        view: &'a View,
        records: &'a Records,
        contests: &'a Contests,
        master: &'a str,
        limits: &'a Limits,
        unseen: usize,
    ) -> Self {
        // Whichever is newer knows the counter; the view also knows the highest seq in use.
        let (mut next_seq, mut seq_revision) = view.seq();
        if let Some((next, revision)) = records.seq
            && records.revision >= view.revision()
        {
            next_seq = next_seq.max(next);
            seq_revision = revision;
        }
        Self {
            view,
            records,
            contests,
            master,
            limits,
            room: limits.pods.saturating_sub(view.len() + unseen),
            joined: 0,
            now: Instant::now(),
            next_seq,
            seq_revision,
            first_seq: next_seq,
            txn: Txn::default(),
            removals: Vec::new(),
            now_ms: now_ms(),
        }
    }

    /// What is at a key, and whether that was told by the store, or is newer than what it told.
    fn place(&self, key: PodKey) -> (Place, bool) {
        match self.records.places.get(&key) {
            Some(place) if self.records.revision >= self.view.revision() => (place.clone(), true),
            told => (Place::seen(self.view, key), told.is_some()),
        }
    }

    /// Decides about a report; `anew`: what it says is to be written even if it is nothing new.
    pub(super) fn add(&mut self, report: &Report, anew: bool) -> Decision {
        let key = report.key();
        let who = Incarnation::of(report);
        let (place, told) = self.place(key);
        let contests = place.pod().map_or(0, Pod::contests);
        let fought_over = self.contests.is_fought_over(key, &who, self.now);
        let member = self.view.member(key);
        let known = Known {
            pod: place.pod(),
            beat: member
                .filter(|member| member.pod.nonce() == report.nonce)
                .map_or(0, |member| member.heard.beat()),
            leaving: anew || member.is_some_and(|member| member.heard.is_leaving(place.revision())),
            departed: place.departed().map(departed),
            alive: self.contests.is_alive(key, &who, self.now),
            kept: fought_over && self.reign(key, &place) < contest::reign(contests),
        };
        let plan = plan(report, known);
        let seq = place.pod().map_or(0, Pod::seq);
        let record = match plan {
            Plan::Refresh | Plan::Stale | Plan::Nothing => {
                let committed = Committed {
                    seq,
                    revision: place.pod().map_or(0, |_| place.revision()),
                    unchanged: true,
                };
                return self.settle(key, &place, told, Answer::Unchanged(committed));
            }
            Plan::Superseded | Plan::Kept => {
                let against = place.revision();
                let told = told || self.contests.is_known(key, &who, against, self.now);
                let error = refused(report, &place, plan);
                let owner = place.pod().map(Pod::incarnation);
                let refusal = Refusal {
                    key,
                    who,
                    against,
                    owner,
                };
                return self.settle(key, &place, told, Answer::Refused(refusal, error));
            }
            Plan::Join if self.joined >= self.room => {
                let error = Error::Exhausted(format!(
                    "the ensemble has its {} pods (--max-pods); evict some or raise it",
                    self.limits.pods
                ));
                return Decision::Done(Answer::Failed(error));
            }
            Plan::Join | Plan::Replace => {
                if self.next_seq >= MAX_SEQ {
                    let error = Error::Internal("the ensemble ran out of seqs".to_owned());
                    return Decision::Done(Answer::Failed(error));
                }
                let joined = Pod::join(report.clone(), self.next_seq, self.now_ms);
                Some(match place.pod() {
                    Some(before) => joined
                        .replacing(before)
                        .contested(contest::count(contests, fought_over)),
                    None => joined.after(place.predecessors()),
                })
            }
            Plan::Update => place.pod().map(|pod| {
                let contests = if pod.nonce() == report.nonce {
                    contests
                } else {
                    contest::count(contests, fought_over)
                };
                pod.update(report.clone()).contested(contests)
            }),
            Plan::Remove | Plan::Bury => None,
        };
        let Some(record) = record else {
            self.remove(report, &place);
            self.compare(key, &place);
            return Decision::Pending(Answer::Written { seq, seated: None });
        };
        // What was taken once stays, whatever this master was told to take since.
        let payload_bytes = match place.pod() {
            Some(pod) if pod.says(report) => MAX_PAYLOAD_BYTES,
            Some(_) | None => self.limits.payload_bytes,
        };
        if let Err(invalid) = check_size(&record, payload_bytes) {
            return Decision::Done(Answer::Failed(invalid.into()));
        }
        self.next_seq = self.next_seq.max(record.seq().saturating_add(1));
        self.joined += usize::from(plan == Plan::Join);
        self.compare(key, &place);
        self.txn.ops.push(Op::put(pod_key(key), record.encode()));
        if place.tombstone_revision != 0 {
            self.txn.ops.push(Op::Delete(tombstone_key(key)));
        }
        let taken_over = place
            .pod()
            .is_some_and(|before| before.incarnation() != record.incarnation());
        Decision::Pending(Answer::Written {
            seq: record.seq(),
            seated: taken_over.then_some((key, who)),
        })
    }

    /// An answer for which nothing is written: it stands if what it rests on does.
    fn settle(&mut self, key: PodKey, place: &Place, told: bool, answer: Answer) -> Decision {
        if told {
            return Decision::Done(answer);
        }
        self.compare(key, place);
        Decision::Pending(answer)
    }

    /// How long the pod that has the place has had it, as far as this master saw.
    fn reign(&self, key: PodKey, place: &Place) -> std::time::Duration {
        let member = self.view.member(key);
        let owner = member.filter(|member| {
            place.pod().is_some_and(|pod| {
                pod.seq() == member.pod.seq() && pod.nonce() == member.pod.nonce()
            })
        });
        owner.map_or_else(Default::default, |owner| {
            self.now.saturating_duration_since(owner.heard.since())
        })
    }

    fn remove(&mut self, report: &Report, place: &Place) {
        let key = report.key();
        let record = match place.pod() {
            Some(pod) => {
                self.txn.ops.push(Op::Delete(pod_key(key)));
                let heard = self.view.member(key).and_then(|member| member.heard.at());
                let silence = heard.map(|heard| self.now.saturating_duration_since(heard));
                let silence = silence.unwrap_or_default();
                RemovalRecord::of(pod, Reason::Down, silence, self.now_ms, self.master)
            }
            None => RemovalRecord {
                retired: place.predecessors(),
                ..RemovalRecord::of(
                    &Pod::join(report.clone(), 0, self.now_ms),
                    Reason::Down,
                    std::time::Duration::ZERO,
                    self.now_ms,
                    self.master,
                )
            },
        };
        self.removals.push(RemovalRecord {
            beat: report.beat,
            ..record
        });
    }

    fn compare(&mut self, key: PodKey, place: &Place) {
        let mut at = |name: String, revision: Revision| {
            self.txn.otherwise.push(name.clone());
            self.txn.compares.push(Compare::unchanged(name, revision));
        };
        at(
            pod_key(key),
            match place.current {
                Current::Absent => 0,
                Current::Pod(_, revision) | Current::Unreadable(revision) => revision,
            },
        );
        at(tombstone_key(key), place.tombstone_revision);
    }

    /// How many pods join by it.
    pub(super) fn joined(&self) -> usize {
        self.joined
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = self.txn.otherwise.clone();
        keys.push(SEQ.to_owned());
        keys
    }

    pub(super) fn into_txn(self) -> Txn {
        let mut txn = self.txn;
        if self.next_seq > self.first_seq {
            txn.compares
                .push(Compare::unchanged(SEQ, self.seq_revision));
            txn.ops.push(Op::put(SEQ, self.next_seq.to_string()));
        }
        txn.otherwise.push(SEQ.to_owned());
        if !self.removals.is_empty() {
            txn.ops.extend(RemovalRecord::writes(&self.removals));
        }
        txn
    }
}

fn check_size(pod: &Pod, payload_bytes: usize) -> Result<(), Invalid> {
    let size = json::canonical(pod.payload()).len();
    if size > payload_bytes {
        let reason =
            format!("has {size} bytes of JSON, and {payload_bytes} are the limit (--max-payload)");
        return Err(Invalid::new("payload", reason));
    }
    let size = pod.encode().len();
    if size > MAX_RECORD_BYTES {
        // Whatever else is in a record has limits that fit many times.
        let reason =
            format!("make a record of {size} bytes of JSON, and {MAX_RECORD_BYTES} are the limit");
        return Err(Invalid::new("annotations", reason));
    }
    Ok(())
}

/// Who left last, as the plan sees it.
pub(super) fn departed(record: &RemovalRecord) -> Departed<'_> {
    Departed {
        incarnation: &record.incarnation,
        down: record.reason == Reason::Down,
        beat: record.beat,
        retired: &record.retired,
    }
}
