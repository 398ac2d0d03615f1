//! The ensemble at one revision, and how the store's events turn one view into the next. PURE: time is an argument.

mod draft;
pub mod operate;
pub mod relayed;
mod removal;
mod run;
mod state;
#[cfg(test)]
mod tests;

pub use operate::OperateRecord;
pub use relayed::{RelayRecord, Relayed, RelayedSign};
pub use removal::{Removal, RemovalRecord, Tombstone};
pub use run::CallbackRecord;
pub use state::{StateRecord, Unreadable};

use crate::{
    access::tokens::TokenDigest,
    kv::{Entry, Event, Events, Revision, Snapshot},
    liveness::{Heard, Instance},
    model::{
        Digest, Pod, PodKey,
        action::{ActionId, Head},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    str,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::Instant;

pub use crate::model::Reason;

/// Key of the counter of seqs.
pub const SEQ: &str = "seq";
/// Key of the callback's state.
pub const STATE: &str = "state";
/// Key of what operators asked for, and of the safeguard.
pub const OPERATE: &str = "operate";
/// Key of the run of the callback that goes on.
pub const CALLBACK: &str = "callback";
/// Key of the last removals and their reasons.
pub const REMOVALS: &str = "removals";
/// Prefix of the pods.
pub const PODS: &str = "pods/";
/// Prefix of the candidates.
pub const LEADER: &str = "leader/";
/// Prefix of the masters.
pub const MASTERS: &str = "masters/";
/// Prefix of the actions.
pub const ACTIONS: &str = "actions/";
/// Prefix of the batches of masters that can't reach the leader.
pub const RELAY: &str = "relay/";
/// Prefix of the tombstones: who left last from a key where nobody is now.
pub const TOMBSTONES: &str = "removals/";
/// How many past removals a view remembers, for `explain`.
const MAX_REMOVALS: usize = 4096;
/// How many tombstones the store keeps: the leader deletes the oldest of more.
pub const MAX_TOMBSTONES: usize = 8192;

/// The key in the store of an action.
pub fn action_key(id: &ActionId) -> String {
    format!("{ACTIONS}{id}")
}

/// The key in the store of a pod's tombstone.
pub fn tombstone_key(key: PodKey) -> String {
    format!("{TOMBSTONES}{key}")
}

/// The key in the store of a pod.
pub fn pod_key(key: PodKey) -> String {
    format!("{PODS}{key}")
}

/// A value of the store that can't be read, as somebody should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Whether something other than the value itself is wrong from now on.
    pub grave: bool,
    /// What it is, and what is done about it.
    pub what: String,
}

/// A pod of the roster.
#[derive(Debug, Clone)]
pub struct Member {
    /// The record.
    pub pod: Arc<Pod>,
    /// The revision that wrote it.
    pub mod_revision: Revision,
    /// When it was last heard. Shared by all views of one incarnation.
    pub heard: Arc<Heard>,
}

impl Member {
    /// Whether a record of this revision is the latest that this master knows of. One that is newer than the roster shows
    /// may be, but this master can't tell.
    pub fn is_latest(&self, revision: Revision) -> bool {
        self.mod_revision == revision && self.heard.is_latest(revision)
    }
}

/// A master as `masters/<id>` and `leader/<lease>` hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMaster {
    /// Its id: what people call it.
    pub id: String,
    /// Where it is reached: `host:port`.
    pub address: String,
    /// Which start of it this is, 16 hex digits.
    pub instance: String,
    /// Whether TLS is spoken there. In clear text the record does not have it, as older masters write and read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
}

impl PeerMaster {
    /// The record of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut record =
            serde_json::json!({"id": self.id, "address": self.address, "instance": self.instance});
        if self.tls {
            record["tls"] = true.into();
        }
        record.to_string().into_bytes()
    }

    /// A candidate that is no master, such as `etcdctl elect`: nobody reaches it.
    fn stranger(key: &str) -> Self {
        Self {
            id: format!("{key}, which is no master"),
            address: String::new(),
            instance: String::new(),
            tls: false,
        }
    }

    /// Whether it is a candidate that is no master.
    pub fn is_stranger(&self) -> bool {
        self.instance.is_empty()
    }

    /// Whether it is this very process.
    pub fn is(&self, instance: Instance) -> bool {
        self.instance.parse() == Ok(instance)
    }
}

/// Who wants to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The key it holds.
    pub key: String,
    /// The revision that created the key: the epoch, once it leads.
    pub epoch: Revision,
    /// The master.
    pub master: PeerMaster,
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always become JSON")
}

/// An action of the history, without the results of its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAction {
    /// All but the results.
    pub head: Head,
    /// The revision that wrote it.
    pub mod_revision: Revision,
    /// How many bytes its record has.
    pub bytes: usize,
}

/// What happened to the ensemble.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pod joined.
    Joined(Member),
    /// A pod's record changed.
    Changed {
        /// As it was.
        before: Arc<Pod>,
        /// As it is.
        after: Member,
    },
    /// A pod left.
    Left(Arc<Removal>),
    /// Another master leads, or none.
    Leader(Option<Candidate>),
    /// An action was accepted.
    ActionStarted(Arc<KnownAction>),
    /// An action has ended on every target.
    ActionFinished(Arc<KnownAction>),
    /// An operator holds the callback, or the hold is over.
    Hold(Option<operate::Hold>),
    /// Removals for silence are frozen, released, or go on.
    Safeguard(Option<operate::Freeze>),
}

/// The ensemble at one revision.
#[derive(Debug, Default)]
pub struct View {
    revision: Revision,
    members: imbl::HashMap<PodKey, Member>,
    order: imbl::OrdMap<u64, Arc<Pod>>,
    /// Records that can't be read (edited by hand?), by key: the next keepalive of that pod replaces them.
    unreadable: imbl::HashMap<PodKey, Revision>,
    candidates: Arc<BTreeMap<Revision, Candidate>>,
    /// Who led before the leader of now, as far as this master saw it.
    leader_before: Option<Arc<PeerMaster>>,
    masters: Arc<BTreeMap<String, PeerMaster>>,
    next_seq: u64,
    seq_revision: Revision,
    state: Arc<StateRecord>,
    state_revision: Revision,
    unreadable_state: Option<Unreadable>,
    operate: Arc<OperateRecord>,
    operate_revision: Revision,
    callback: Option<CallbackRecord>,
    removals: imbl::HashMap<PodKey, Arc<Removal>>,
    removal_order: imbl::Vector<PodKey>,
    tombstones: imbl::HashMap<PodKey, Tombstone>,
    /// The oldest first.
    tombstone_order: imbl::OrdSet<(Revision, PodKey)>,
    actions: imbl::OrdMap<ActionId, Arc<KnownAction>>,
    relayed: Relayed,
    /// When this view was made; absent before the first one.
    made: Option<Instant>,
    /// What could not be read of the events behind the view before.
    troubles: Vec<Trouble>,
    digest: OnceLock<Digest>,
}

impl View {
    /// The revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }
    /// The pod with this key.
    pub fn member(&self, key: PodKey) -> Option<&Member> {
        self.members.get(&key)
    }
    /// The revision of an unreadable record of this key.
    pub fn unreadable(&self, key: PodKey) -> Option<Revision> {
        self.unreadable.get(&key).copied()
    }
    /// The pods in seq order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.order.values()
    }
    /// The pods by seq.
    pub fn order(&self) -> &imbl::OrdMap<u64, Arc<Pod>> {
        &self.order
    }
    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }
    /// Whether there are no pods.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
    /// Who leads: the candidate whose key is oldest.
    pub fn leader(&self) -> Option<&Candidate> {
        self.candidates.values().next()
    }
    /// Who led before, if this master saw it.
    pub fn leader_before(&self) -> Option<&PeerMaster> {
        self.leader_before.as_deref()
    }
    /// Who wants to lead, the oldest first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.values()
    }
    /// The candidate that holds this key.
    pub fn candidate(&self, key: &str) -> Option<&Candidate> {
        self.candidates
            .values()
            .find(|candidate| candidate.key == key)
    }
    /// The live masters.
    pub fn masters(&self) -> impl Iterator<Item = &PeerMaster> {
        self.masters.values()
    }
    /// The live master with this id.
    pub fn master(&self, id: &str) -> Option<&PeerMaster> {
        self.masters.get(id)
    }
    /// The id of the master that this start belongs to, while it lives.
    pub fn master_id(&self, instance: Instance) -> Option<&str> {
        let master = self.masters().find(|master| master.is(instance));
        master.map(|master| master.id.as_str())
    }
    /// The next seq to give, and the revision of the counter (0: there is none yet).
    pub fn seq(&self) -> (u64, Revision) {
        // Should the counter be lost while pods live, their seqs are still never given again.
        let floor = self
            .order
            .get_max()
            .map_or(0, |(seq, _)| seq.saturating_add(1));
        (self.next_seq.max(floor), self.seq_revision)
    }
    /// The callback's state, and the revision that wrote it (0: never).
    pub fn state(&self) -> Result<(&Arc<StateRecord>, Revision), &Unreadable> {
        match &self.unreadable_state {
            Some(unreadable) => Err(unreadable),
            None => Ok((&self.state, self.state_revision)),
        }
    }
    /// The digest of the token that the callback was given, while it runs on the leader.
    pub fn callback_token(&self) -> Option<&TokenDigest> {
        let run = self.callback.as_ref()?;
        let leads = self
            .leader()
            .is_some_and(|leader| leader.epoch == run.epoch);
        leads.then_some(&run.token)
    }
    /// What operators asked for, and the safeguard; and the revision that wrote it (0: never).
    pub fn operate(&self) -> (&Arc<OperateRecord>, Revision) {
        (&self.operate, self.operate_revision)
    }
    /// The last removal of a pod with this key that is remembered.
    pub fn removal(&self, key: PodKey) -> Option<&Arc<Removal>> {
        self.removals.get(&key)
    }
    /// Why a pod left that is not in the roster any more: what is remembered of its removal, else what its tombstone says.
    /// Of those whose place another had since, there may be neither.
    pub fn reason(&self, pod: &Pod) -> Reason {
        let removal = self.removal(pod.key());
        if let Some(removal) = removal.filter(|removal| removal.pod.seq() == pod.seq()) {
            return removal.reason;
        }
        let record = self.tombstone(pod.key()).and_then(|t| t.record.as_ref());
        let record = record.filter(|record| record.seq == pod.seq());
        record.map_or(Reason::Unknown, |record| record.reason)
    }
    /// The tombstone at this key.
    pub fn tombstone(&self, key: PodKey) -> Option<&Tombstone> {
        self.tombstones.get(&key)
    }
    /// The oldest tombstones of more than so many, each with its revision.
    pub fn excess_tombstones(&self, keep: usize) -> impl Iterator<Item = &(Revision, PodKey)> {
        let excess = self.tombstone_order.len().saturating_sub(keep);
        self.tombstone_order.iter().take(excess)
    }
    /// The action of the history with this id.
    pub fn action(&self, id: &ActionId) -> Option<&Arc<KnownAction>> {
        self.actions.get(id)
    }
    /// The actions of the history, the oldest first.
    pub fn actions(&self) -> &imbl::OrdMap<ActionId, Arc<KnownAction>> {
        &self.actions
    }
    /// What masters that can't reach the leader told through the store.
    pub fn relayed(&self) -> &Relayed {
        &self.relayed
    }
    /// What could not be read of the events that led to this view from the one before.
    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }
    /// The digest of the pods. Computed once for each view, when first asked for.
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| Digest::of(self.pods()))
    }

    /// The view after these events, and what changed. `now` is when they arrived.
    pub fn apply(&self, events: &Events, now: Instant) -> (Self, Vec<Change>) {
        let mut next = draft::Draft::new(self, events.revision, now);
        next.take(events);
        next.finish(self)
    }

    /// The same for the changes of a snapshot: of a key that was written more than once, only the last write is told.
    fn catch_up(&self, events: &Events, now: Instant) -> (Self, Vec<Change>) {
        let mut next = draft::Draft::new(self, events.revision, now);
        next.skipped_since(self.made);
        next.take(events);
        next.finish(self)
    }

    /// The view that a snapshot of another history shows: nothing that was noted of its pods is kept, and each is heard now.
    /// But a seq that was given in this history is not given again in that one.
    pub fn restart(&self, snapshot: &Snapshot, now: Instant) -> (Self, Vec<Change>) {
        let nothing = Self {
            next_seq: self.seq().0,
            ..Self::default()
        };
        nothing.replace(snapshot, now)
    }

    /// The view that a snapshot shows, and what changed since this one.
    pub fn replace(&self, snapshot: &Snapshot, now: Instant) -> (Self, Vec<Change>) {
        let mut events = Events {
            revision: snapshot.revision,
            events: Vec::new(),
        };
        let present: std::collections::HashSet<&str> = snapshot
            .entries
            .iter()
            .map(|entry| entry.key.as_str())
            .collect();
        for key in self.keys() {
            if !present.contains(key.as_str()) {
                events.events.push(Event::Delete {
                    key,
                    revision: snapshot.revision,
                });
            }
        }
        let news = |entry: &&Entry| {
            if let Some(id) = entry.key.strip_prefix(RELAY) {
                // A batch tells ages from when it was written: taken in a second time, it would make its pods younger.
                let latest = self.relayed.masters().get(id);
                latest.is_none_or(|latest| latest.mod_revision != entry.mod_revision)
            } else if let Some(Ok(key)) = entry.key.strip_prefix(PODS).map(str::parse) {
                self.member(key)
                    .is_none_or(|member| member.mod_revision != entry.mod_revision)
            } else if let Some(Ok(key)) = entry.key.strip_prefix(TOMBSTONES).map(str::parse) {
                self.tombstone(key)
                    .is_none_or(|known| known.mod_revision != entry.mod_revision)
            } else {
                true
            }
        };
        let puts = snapshot.entries.iter().filter(news);
        events.events.extend(puts.cloned().map(Event::Put));
        self.catch_up(&events, now)
    }

    /// Every key of the store that this view was made of.
    fn keys(&self) -> Vec<String> {
        let pods = self.members.keys().chain(self.unreadable.keys());
        let mut keys: Vec<_> = pods.map(|key| pod_key(*key)).collect();
        keys.extend(self.candidates.values().map(|one| one.key.clone()));
        keys.extend(self.masters.keys().map(|id| format!("{MASTERS}{id}")));
        keys.extend(self.actions.keys().map(action_key));
        keys.extend(
            self.relayed
                .masters()
                .keys()
                .map(|id| format!("{RELAY}{id}")),
        );
        keys.extend(self.tombstones.keys().map(|key| tombstone_key(*key)));
        keys.extend([SEQ, STATE, OPERATE, CALLBACK].map(String::from));
        keys
    }
}

/// How long that was, as whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
