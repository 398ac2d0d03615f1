//! What is written down.

use crate::script::Run;
use kontrol_proto::v1::{ActionResult, LeaveReason, Pod};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Seconds of the machine's monotonic clock, as [`crate::script::now`] tells them.
pub type Time = f64;

/// A whole history.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// How long a pod may be silent.
    pub ttl: Time,
    /// Every change of the ensemble's keys in etcd, in order.
    pub changes: Vec<Change>,
    /// Writes that tell which revision was when.
    pub ticks: Vec<Tick>,
    /// Every keepalive of the pods over HTTP; those of one pod in the order of their sending.
    pub beats: Vec<Beat>,
    /// Every start of a slave.
    pub slaves: Vec<Slave>,
    /// Every run of the callback, in the order of their starts.
    pub runs: Vec<Run>,
    /// Every state that was put and acknowledged.
    pub puts: Vec<Put>,
    /// Every action that was accepted.
    pub actions: Vec<Acted>,
    /// Every line that a command wrote at its start and at its end: action, pod's id, `start` or `end`.
    pub executions: Vec<(String, String, String)>,
    /// Every watch, with all that it was told over any number of connections.
    pub watches: Vec<Watched>,
    /// Every digest that a master told for a revision.
    pub views: Vec<View>,
    /// When each term of a leader began, in order: with its election, and whenever its lease was confirmed again.
    pub terms: Vec<Time>,
    /// Every fault.
    pub faults: Vec<Fault>,
    /// When the writing ended.
    pub end: Time,
}

/// A change of one key in etcd.
#[derive(Debug, Clone)]
pub struct Change {
    /// The revision that made it.
    pub revision: i64,
    /// The key behind the ensemble's prefix.
    pub key: String,
    /// The new value; none when the key was deleted.
    pub value: Option<Value>,
}

/// A write of the test's own between those of the tier.
#[derive(Debug, Clone, Copy)]
pub struct Tick {
    /// Its revision.
    pub revision: i64,
    /// When it was sent: whatever has a greater revision came later.
    pub sent: Time,
    /// When it was acknowledged: whatever has a smaller revision came before.
    pub answered: Time,
    /// The same moment by the clock that logs tell, in seconds since 1970: it steps where the machine was suspended.
    pub wall: Time,
}

/// A keepalive.
#[derive(Debug, Clone)]
pub struct Beat {
    /// The pod.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its incarnation.
    pub nonce: String,
    /// Which incarnation of the pod that is: 0 is the first.
    pub incarnation: usize,
    /// What it said of itself.
    pub payload: Value,
    /// Whether it was a goodbye.
    pub down: bool,
    /// The master that was asked.
    pub master: usize,
    /// When it was sent.
    pub sent: Time,
    /// When the answer was there, or no longer waited for.
    pub done: Time,
    /// The answer.
    pub answer: Answer,
}

/// What became of a keepalive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Accepted, with this seq.
    Accepted(u64),
    /// Refused: the HTTP status and the reason.
    Refused(u16, String),
    /// Nobody knows; it may yet be heard.
    Unclear,
}

impl Beat {
    /// Whether it was accepted.
    pub fn accepted(&self) -> bool {
        matches!(self.answer, Answer::Accepted(_))
    }
}

/// A slave from its start to its end.
#[derive(Debug, Clone, Default)]
pub struct Slave {
    /// The pod.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its incarnation.
    pub nonce: String,
    /// When it started.
    pub started: Time,
    /// When it was killed or told to stop; none while it runs.
    pub ended: Option<Time>,
    /// When it was paused, or cut off from all masters.
    pub disturbed: Vec<(Time, Time)>,
}

/// A state that was put.
#[derive(Debug, Clone)]
pub struct Put {
    /// The member `id` of the state.
    pub id: String,
    /// The revision that was told.
    pub revision: i64,
}

/// An action.
#[derive(Debug, Clone, Default)]
pub struct Acted {
    /// Its id.
    pub id: String,
    /// The ids of its targets by their keys.
    pub targets: BTreeMap<String, String>,
    /// What each target that ends by itself writes to standard output.
    pub text: String,
    /// What its stream told, by key.
    pub told: BTreeMap<String, ActionResult>,
    /// Ends that were told a second time, by key.
    pub twice: Vec<String>,
    /// What came of standard output, by key.
    pub stdout: BTreeMap<String, Vec<u8>>,
    /// The keys whose output was marked as truncated.
    pub truncated: BTreeSet<String>,
    /// Whether the stream came to its summary.
    pub summed: bool,
    /// When it was accepted.
    pub accepted: Time,
    /// The results in the history, once that says that the action is over.
    pub recorded: Option<Vec<ActionResult>>,
}

/// All that one watch was told.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Its name.
    pub name: String,
    /// The messages.
    pub told: Vec<Told>,
}

/// A message of a watch.
#[derive(Debug, Clone)]
pub struct Told {
    /// When it came.
    pub at: Time,
    /// The master that told it.
    pub master: usize,
    /// Its revision.
    pub revision: i64,
    /// What it tells of the roster.
    pub event: Event,
}

/// What a watch tells of the roster.
#[derive(Debug, Clone)]
pub enum Event {
    /// The whole roster.
    Snapshot(Vec<Pod>),
    /// A pod joined or changed.
    Here(Pod),
    /// A pod left.
    Left(Pod, LeaveReason),
    /// The digest that goes with it.
    Digest(String),
    /// Something else.
    Other,
}

/// What a master told of the whole roster.
#[derive(Debug, Clone)]
pub struct View {
    /// The master.
    pub master: usize,
    /// The revision.
    pub revision: i64,
    /// The digest.
    pub digest: String,
}

/// A fault.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// What kind it was.
    pub kind: String,
    /// When it began.
    pub from: Time,
    /// When it was mended.
    pub mended: Time,
    /// When every master was ready again and named the same leader.
    pub ready: Time,
}

impl Fault {
    /// Whether it keeps a master from the store.
    pub fn keeps_from_store(&self) -> bool {
        let kinds = ["Island", "Blind", "Alone", "Quorum", "Member"];
        kinds.iter().any(|kind| self.kind.contains(kind))
    }
}
