//! A transaction in the making: each report decided against the record as it is known best. PURE but for the display
//! time of joins and goodbyes.

use super::plan::{Departed, Known, Plan, plan};
use crate::{
    error::Error,
    model::{Invalid, Pod, PodKey, Report, json, pod::MAX_PAYLOAD_BYTES},
    roster::{
        Reason, View,
        view::{PODS, RemovalRecord, SEQ, millis, pod_key},
    },
    status::now_ms,
    store::{Compare, MAX_TXN_BYTES, Op, Revision, Snapshot, Txn},
};
use std::{collections::HashMap, sync::Arc};

/// The largest integer that JSON readers agree on (RFC 8259, 6): seqs are numbers in PODS.
const MAX_SEQ: u64 = (1 << 53) - 1;

/// Largest record: as large as a report without control characters can make it, and less than a transaction.
const MAX_RECORD_BYTES: usize = MAX_TXN_BYTES / 4 * 3;

/// What became of a keepalive that needed the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The pod's seq; 0 where there is no such pod.
    pub seq: u64,
    /// The revision from which on the roster shows it.
    pub revision: Revision,
    /// Nothing had to be written for it.
    pub unchanged: bool,
}

/// Records that are newer than the view, because a transaction came back with them.
#[derive(Debug, Default)]
pub(super) struct Records {
    revision: Revision,
    pods: HashMap<PodKey, Current>,
    seq: Option<(u64, Revision)>,
}

#[derive(Debug, Clone)]
enum Current {
    Absent,
    Pod(Arc<Pod>, Revision),
    /// Something that is no pod record, to be overwritten.
    Unreadable(Revision),
}

impl Records {
    pub(super) fn read(keys: &[String], snapshot: &Snapshot) -> Self {
        let mut records = Self {
            revision: snapshot.revision,
            pods: HashMap::new(),
            seq: Some((0, 0)),
        };
        for key in keys {
            if let Some(Ok(key)) = key.strip_prefix(PODS).map(str::parse) {
                records.pods.insert(key, Current::Absent);
            }
        }
        for entry in &snapshot.entries {
            if entry.key == SEQ {
                let next = str::from_utf8(&entry.value)
                    .ok()
                    .and_then(|text| text.parse().ok());
                records.seq = Some((next.unwrap_or(0), entry.mod_revision));
            } else if let Some(Ok(key)) = entry.key.strip_prefix(PODS).map(str::parse) {
                let current = match Pod::decode(&entry.value) {
                    Ok(pod) if pod.key() == key => Current::Pod(Arc::new(pod), entry.mod_revision),
                    _ => Current::Unreadable(entry.mod_revision),
                };
                records.pods.insert(key, current);
            }
        }
        records
    }
}

/// What becomes of a report.
pub(super) enum Decision {
    /// It goes into the transaction; the seq is the pod's once that is committed.
    Write(u64),
    Done(Result<Committed, Error>),
}

/// A transaction in the making.
pub(super) struct Draft<'a> {
    view: &'a View,
    records: &'a Records,
    master: &'a str,
    next_seq: u64,
    seq_revision: Revision,
    first_seq: u64,
    txn: Txn,
    removals: Vec<RemovalRecord>,
    now_ms: u64,
}

impl<'a> Draft<'a> {
    pub(super) fn new(view: &'a View, records: &'a Records, master: &'a str) -> Self {
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
            master,
            next_seq,
            seq_revision,
            first_seq: next_seq,
            txn: Txn::default(),
            removals: Vec::new(),
            now_ms: now_ms(),
        }
    }

    fn current(&self, key: PodKey) -> Current {
        let seen = match (self.view.member(key), self.view.unreadable(key)) {
            (Some(member), _) => Current::Pod(Arc::clone(&member.pod), member.mod_revision),
            (None, Some(revision)) => Current::Unreadable(revision),
            (None, None) => Current::Absent,
        };
        match self.records.pods.get(&key) {
            Some(record) if self.records.revision >= self.view.revision() => record.clone(),
            _ => seen,
        }
    }

    pub(super) fn add(&mut self, report: &Report) -> Decision {
        let key = report.key();
        let current = self.current(key);
        let pod = match &current {
            Current::Pod(pod, _) => Some(pod.as_ref()),
            Current::Absent | Current::Unreadable(_) => None,
        };
        let member = self.view.member(key);
        let known = Known {
            pod,
            beat: member
                .filter(|member| member.pod.nonce() == report.nonce)
                .map_or(0, |member| member.heard.beat()),
            departed: departed(self.view, key),
        };
        let seq = pod.map_or(0, Pod::seq);
        let done = Committed {
            seq,
            revision: self.records.revision,
            unchanged: true,
        };
        let record = match plan(report, known) {
            Plan::Refresh | Plan::Stale | Plan::Nothing => return Decision::Done(Ok(done)),
            Plan::Superseded => return Decision::Done(Err(superseded(report, pod))),
            Plan::Join | Plan::Replace => {
                let seq = self.next_seq;
                if seq >= MAX_SEQ {
                    return Decision::Done(Err(Error::Internal(
                        "the ensemble ran out of seqs".to_owned(),
                    )));
                }
                let joined = Pod::join(report.clone(), seq, self.now_ms);
                Some(match pod {
                    Some(before) => joined.replacing(before),
                    None => joined,
                })
            }
            Plan::Update => pod.map(|pod| pod.update(report.clone())),
            Plan::Remove => None,
        };
        let Some(record) = record else {
            self.remove(report, key, seq);
            self.compare(key, &current);
            return Decision::Write(seq);
        };
        if let Err(invalid) = check_size(&record) {
            return Decision::Done(Err(invalid.into()));
        }
        self.next_seq = self.next_seq.max(record.seq().saturating_add(1));
        self.compare(key, &current);
        self.txn.ops.push(Op::put(pod_key(key), record.encode()));
        Decision::Write(record.seq())
    }

    fn remove(&mut self, report: &Report, key: PodKey, seq: u64) {
        self.txn.ops.push(Op::Delete(pod_key(key)));
        let heard = self.view.member(key).and_then(|member| member.heard.at());
        self.removals.push(RemovalRecord {
            key: key.to_string(),
            seq,
            reason: Reason::Down,
            beat: report.beat,
            silence_ms: heard.map_or(0, |heard| millis(heard.elapsed())),
            time_ms: self.now_ms,
            master: self.master.to_string(),
        });
    }

    fn compare(&mut self, key: PodKey, current: &Current) {
        let name = pod_key(key);
        self.txn.otherwise.push(name.clone());
        self.txn.compares.push(match current {
            Current::Absent => Compare::Absent(name),
            Current::Pod(_, revision) | Current::Unreadable(revision) => {
                Compare::ModRevision(name, *revision)
            }
        });
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = self.txn.otherwise.clone();
        keys.push(SEQ.to_owned());
        keys
    }

    pub(super) fn into_txn(self) -> Txn {
        let mut txn = self.txn;
        if self.next_seq > self.first_seq {
            txn.compares.push(match self.seq_revision {
                0 => Compare::Absent(SEQ.to_owned()),
                revision => Compare::ModRevision(SEQ.to_owned(), revision),
            });
            txn.ops.push(Op::put(SEQ, self.next_seq.to_string()));
        }
        txn.otherwise.push(SEQ.to_owned());
        if !self.removals.is_empty() {
            txn.ops.push(RemovalRecord::write(&self.removals));
        }
        txn
    }
}

fn check_size(pod: &Pod) -> Result<(), Invalid> {
    let size = json::canonical(pod.payload()).len();
    if size > MAX_PAYLOAD_BYTES {
        let reason = format!("has {size} bytes of JSON, and {MAX_PAYLOAD_BYTES} are the limit");
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

/// What a report is told whose place another took.
pub(super) fn superseded(report: &Report, pod: Option<&Pod>) -> Error {
    let by = match pod {
        Some(pod) if pod.id() != report.id => format!(
            "the pod {:?} reports from the same address {}",
            pod.id(),
            pod.ip()
        ),
        _ => "a newer start of the same pod reports".to_owned(),
    };
    Error::Superseded(format!(
        "nonce {}: {by}; give each pod an address of its own, or stop one of the two",
        report.nonce
    ))
}

/// Who last said goodbye from this key, as far as the view remembers.
pub(super) fn departed(view: &View, key: PodKey) -> Option<Departed<'_>> {
    let removal = view.removal(key)?;
    let record = removal.record.as_ref()?;
    (removal.reason == Reason::Down).then(|| Departed {
        nonce: removal.pod.nonce(),
        beat: record.beat,
    })
}
