//! A view in the making: the one before, with the store's events put in one by one.

use super::{
    ACTIONS, CALLBACK, Candidate, Change, KnownAction, LEADER, MASTERS, MAX_REMOVALS, Member,
    OPERATE, OperateRecord, PODS, PeerMaster, RELAY, REMOVALS, Reason, RelayRecord, Removal,
    RemovalRecord, SEQ, STATE, StateRecord, TOMBSTONES, Tombstone, Trouble, View,
    relayed::{Latest, RelayedEnd},
};
use crate::{
    kv::{Entry, Event, Events, Revision},
    liveness::Heard,
    model::{
        Pod, PodKey,
        action::{Head, State},
        incarnation::is_retired,
        invalid::one_line,
    },
};
use serde::de::DeserializeOwned;
use std::{
    str,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::Instant;

/// A view in the making.
pub(super) struct Draft {
    view: View,
    reasons: Vec<RemovalRecord>,
    changes: Vec<Change>,
    now: Instant,
    /// Since when changes may have been skipped; absent when all are told.
    gap: Option<Instant>,
}

impl Draft {
    pub(super) fn new(before: &View, revision: Revision, now: Instant) -> Self {
        let view = View {
            revision,
            members: before.members.clone(),
            order: before.order.clone(),
            unreadable: before.unreadable.clone(),
            candidates: before.candidates.clone(),
            leader_before: before.leader_before.clone(),
            masters: before.masters.clone(),
            next_seq: before.next_seq,
            seq_revision: before.seq_revision,
            state: before.state.clone(),
            state_revision: before.state_revision,
            unreadable_state: before.unreadable_state.clone(),
            operate: Arc::clone(&before.operate),
            operate_revision: before.operate_revision,
            callback: before.callback.clone(),
            removals: before.removals.clone(),
            removal_order: before.removal_order.clone(),
            tombstones: before.tombstones.clone(),
            tombstone_order: before.tombstone_order.clone(),
            actions: before.actions.clone(),
            relayed: before.relayed.clone(),
            made: Some(now),
            troubles: Vec::new(),
            digest: OnceLock::new(),
        };
        Self {
            view,
            reasons: Vec::new(),
            changes: Vec::new(),
            now,
            gap: None,
        }
    }

    /// Changes since then may be missing.
    pub(super) fn skipped_since(&mut self, gap: Option<Instant>) {
        self.gap = gap;
    }

    pub(super) fn take(&mut self, events: &Events) {
        for event in &events.events {
            // Within a transaction the reasons may come behind the deletes that they explain.
            let Event::Put(entry) = event else { continue };
            if entry.key == REMOVALS {
                self.read_reasons(entry);
            } else if let Some(Ok(key)) = entry.key.strip_prefix(TOMBSTONES).map(str::parse) {
                self.put_tombstone(key, entry);
            }
        }
        for event in &events.events {
            match event {
                Event::Put(entry) => self.put(entry),
                Event::Delete { key, .. } => self.delete(key),
            }
        }
    }

    fn read_reasons(&mut self, entry: &Entry) {
        match serde_json::from_slice::<Vec<RemovalRecord>>(&entry.value) {
            Ok(reasons) => self.reasons.extend(reasons),
            Err(error) => self.trouble(format!("the record of removals can't be read: {error}")),
        }
    }

    /// A watch that was broken meanwhile missed the list of reasons, and still finds them here.
    fn put_tombstone(&mut self, key: PodKey, entry: &Entry) {
        let record = self
            .read::<RemovalRecord>(entry)
            .filter(|record| record.key == key.to_string())
            .map(Arc::new);
        self.reasons.extend(record.as_deref().cloned());
        self.remove_tombstone(key);
        let order = &mut self.view.tombstone_order;
        order.insert((entry.mod_revision, key));
        let tombstone = Tombstone {
            record,
            mod_revision: entry.mod_revision,
        };
        self.view.tombstones.insert(key, tombstone);
    }

    fn remove_tombstone(&mut self, key: PodKey) {
        if let Some(before) = self.view.tombstones.remove(&key) {
            let order = &mut self.view.tombstone_order;
            order.remove(&(before.mod_revision, key));
        }
    }

    fn put(&mut self, entry: &Entry) {
        if let Some(key) = entry.key.strip_prefix(PODS) {
            match key.parse() {
                Ok(key) => self.put_pod(key, entry),
                Err(error) => {
                    self.trouble(format!("the store has a key that {error}: {}", entry.key));
                }
            }
        } else if entry.key.starts_with(LEADER) {
            // Whoever stands in etcd's election leads when its turn comes, master or not: to pass it over would make two
            // leaders.
            let master = self
                .read(entry)
                .unwrap_or_else(|| PeerMaster::stranger(&entry.key));
            let candidate = Candidate {
                key: entry.key.clone(),
                epoch: entry.create_revision,
                master,
            };
            let candidates = Arc::make_mut(&mut self.view.candidates);
            // A snapshot may show the key deleted and made anew.
            candidates.retain(|_, other| other.key != entry.key);
            candidates.insert(entry.create_revision, candidate);
        } else if let Some(id) = entry.key.strip_prefix(MASTERS) {
            let master = self.read(entry);
            let masters = Arc::make_mut(&mut self.view.masters);
            match master {
                Some(master) => masters.insert(id.to_owned(), master),
                // What stood there before is gone, as it is for whoever reads the store anew.
                None => masters.remove(id),
            };
        } else if let Some(id) = entry.key.strip_prefix(ACTIONS) {
            self.put_action(id, entry);
        } else if let Some(id) = entry.key.strip_prefix(RELAY) {
            self.put_relayed(id, entry);
        } else if entry.key == SEQ {
            match str::from_utf8(&entry.value).map(str::parse) {
                Ok(Ok(next)) => self.view.next_seq = self.view.next_seq.max(next),
                _ => self.grave_trouble(
                    "the key seq holds no number; counting on from the highest seq seen".to_owned(),
                ),
            }
            self.view.seq_revision = entry.mod_revision;
        } else if entry.key == STATE {
            self.put_state(entry);
        } else if entry.key == OPERATE {
            self.put_operate(entry);
        } else if entry.key == CALLBACK {
            self.view.callback = self.read(entry);
        }
    }

    fn put_state(&mut self, entry: &Entry) {
        self.view.state_revision = entry.mod_revision;
        self.view.unreadable_state = match StateRecord::read(entry) {
            Ok(record) => {
                self.view.state = Arc::new(record);
                None
            }
            Err(unreadable) => {
                self.grave_trouble(unreadable.to_string());
                self.view.state = Arc::default();
                Some(unreadable)
            }
        };
    }

    fn put_operate(&mut self, entry: &Entry) {
        self.view.operate_revision = entry.mod_revision;
        let record = OperateRecord::read(entry).unwrap_or_else(|error| {
            self.grave_trouble(format!(
                "the record `operate` can't be read ({error}); it counts as empty: nothing is held, and nothing frozen"
            ));
            OperateRecord::default()
        });
        self.set_operate(record);
    }

    fn set_operate(&mut self, record: OperateRecord) {
        let before = std::mem::replace(&mut self.view.operate, Arc::new(record));
        let after = &self.view.operate;
        if before.hold != after.hold {
            self.changes.push(Change::Hold(after.hold.clone()));
        }
        if before.safeguard != after.safeguard {
            let safeguard = after.safeguard.clone();
            self.changes.push(Change::Safeguard(safeguard));
        }
    }

    fn put_pod(&mut self, key: PodKey, entry: &Entry) {
        let pod = match Pod::decode(&entry.value) {
            Ok(pod) if pod.key() == key => Arc::new(pod),
            Ok(pod) => {
                let other = pod.key();
                self.trouble(format!("the record of the pod {key} holds the pod {other}; ignored until that pod reports again"));
                return self.unreadable(key, entry.mod_revision);
            }
            Err(error) => {
                self.trouble(format!(
                    "the record of the pod {key} {error}; ignored until the pod reports again"
                ));
                return self.unreadable(key, entry.mod_revision);
            }
        };
        self.view.unreadable.remove(&key);
        let before = self.view.members.get(&key).cloned();
        let heard = match &before {
            Some(member) if member.pod.seq() == pod.seq() && member.pod.nonce() == pod.nonce() => {
                Arc::clone(&member.heard)
            }
            _ => Arc::new(Heard::new(self.now)),
        };
        // A record is written because of a keepalive, so that its arrival is a sign of life.
        heard.touch(self.now, pod.beat(), None);
        let after = Member {
            pod: Arc::clone(&pod),
            mod_revision: entry.mod_revision,
            heard,
        };
        match before.map(|member| member.pod) {
            Some(before) if before.seq() == pod.seq() => {
                self.changes.push(Change::Changed {
                    before,
                    after: after.clone(),
                });
            }
            Some(before) => {
                // The pod that has the place now tells who had it before, even where this master missed how they left.
                // Of one seq there is an entry for each restart, and the last of them has the reason.
                let of_it = pod.retired().iter().filter(|one| one.seq == before.seq());
                let why = of_it.filter_map(|one| one.reason).next();
                self.left(before, why.unwrap_or(Reason::Unknown));
                self.changes.push(Change::Joined(after.clone()));
            }
            None => self.changes.push(Change::Joined(after.clone())),
        }
        self.view.members.insert(key, after);
        self.view.order.insert(pod.seq(), pod);
    }

    fn put_action(&mut self, id: &str, entry: &Entry) {
        // An action whose record can't be read is none: nothing rests on it.
        let Some(head) = self
            .read::<Head>(entry)
            .filter(|head| head.id.as_str() == id)
        else {
            self.view.actions.remove(id);
            return;
        };
        let known = Arc::new(KnownAction {
            mod_revision: entry.mod_revision,
            bytes: entry.value.len(),
            head,
        });
        let before = self.view.actions.get(id).map(|before| before.head.state);
        if before.is_none() {
            self.changes.push(Change::ActionStarted(Arc::clone(&known)));
        }
        if known.head.state == State::Finished && before != Some(State::Finished) {
            self.changes
                .push(Change::ActionFinished(Arc::clone(&known)));
        }
        self.view.actions.insert(known.head.id.clone(), known);
    }

    /// Notes what a master heard that can't reach the leader.
    fn put_relayed(&mut self, master: &str, entry: &Entry) {
        let Some(record) = self.read::<RelayRecord>(entry) else {
            return;
        };
        let latest = Latest::of(entry, &record, self.now);
        self.view.relayed.hear(master, latest, self.gap);
        for sign in &record.signs {
            let Ok(key) = sign.key.parse::<PodKey>() else {
                continue;
            };
            let age = Duration::from_millis(sign.age_ms);
            let at = self.now.checked_sub(age).unwrap_or(self.now);
            if sign.detached {
                self.view.relayed.end(RelayedEnd {
                    key,
                    revision: sign.revision,
                    attachment: sign.attachment,
                    at,
                });
            } else if let Some(member) = self.view.members.get(&key)
                && sign.revision >= member.mod_revision
            {
                // Held against an older record, the master that heard it decides about it anew.
                member.heard.touch(at, sign.beat, latest.instance);
                member.heard.attach(sign.attachment);
            }
        }
    }

    fn unreadable(&mut self, key: PodKey, revision: Revision) {
        self.remove_pod(key);
        self.view.unreadable.insert(key, revision);
    }

    fn delete(&mut self, key: &str) {
        if let Some(key) = key.strip_prefix(PODS) {
            if let Ok(key) = key.parse() {
                self.view.unreadable.remove(&key);
                self.remove_pod(key);
            }
        } else if let Some(key) = key.strip_prefix(TOMBSTONES) {
            if let Ok(key) = key.parse() {
                self.remove_tombstone(key);
            }
        } else if key.starts_with(LEADER) {
            Arc::make_mut(&mut self.view.candidates).retain(|_, candidate| candidate.key != key);
        } else if let Some(id) = key.strip_prefix(MASTERS) {
            Arc::make_mut(&mut self.view.masters).remove(id);
        } else if let Some(id) = key.strip_prefix(ACTIONS) {
            self.view.actions.remove(id);
        } else if let Some(id) = key.strip_prefix(RELAY) {
            self.view.relayed.forget(id);
        } else if key == SEQ {
            self.view.seq_revision = 0;
        } else if key == STATE {
            self.view.state = Arc::default();
            self.view.state_revision = 0;
            self.view.unreadable_state = None;
        } else if key == OPERATE {
            self.view.operate_revision = 0;
            self.set_operate(OperateRecord::default());
        } else if key == CALLBACK {
            self.view.callback = None;
        }
    }

    fn remove_pod(&mut self, key: PodKey) {
        if let Some(member) = self.view.members.remove(&key) {
            self.left(member.pod, Reason::Unknown);
        }
    }

    fn left(&mut self, pod: Arc<Pod>, fallback: Reason) {
        self.view.order.remove(&pod.seq());
        let key = pod.key();
        let record = self
            .reasons
            .iter()
            .find(|record| record.seq == pod.seq() && record.incarnation == pod.incarnation())
            .cloned();
        let reason = match &record {
            Some(record) => record.reason,
            None => self.reason_of_successor(&pod).unwrap_or(fallback),
        };
        let removal = Arc::new(Removal {
            pod,
            reason,
            record,
        });
        if self
            .view
            .removals
            .insert(key, Arc::clone(&removal))
            .is_some()
        {
            self.view.removal_order.retain(|other| *other != key);
        }
        self.view.removal_order.push_back(key);
        if self.view.removal_order.len() > MAX_REMOVALS
            && let Some(oldest) = self.view.removal_order.pop_front()
        {
            self.view.removals.remove(&oldest);
        }
        self.changes.push(Change::Left(removal));
    }

    /// Why a pod left that had restarted before, where this master missed both.
    fn reason_of_successor(&self, pod: &Pod) -> Option<Reason> {
        let who = pod.incarnation();
        let mut records = self.reasons.iter();
        records.find_map(|record| {
            let retired = record.retired.iter();
            let mut of_it = retired.filter(|one| one.seq == pod.seq()).peekable();
            if !is_retired(&record.retired, &who) || of_it.peek().is_none() {
                return None;
            }
            of_it
                .find_map(|one| one.reason)
                .or_else(|| (record.seq == pod.seq()).then_some(record.reason))
        })
    }

    fn read<T: DeserializeOwned>(&mut self, entry: &Entry) -> Option<T> {
        match serde_json::from_slice(&entry.value) {
            Ok(value) => Some(value),
            Err(error) => {
                let what = format!(
                    "the store has a value that can't be read: {}: {error}",
                    entry.key
                );
                self.trouble(what);
                None
            }
        }
    }

    fn trouble(&mut self, what: String) {
        let (grave, what) = (false, one_line(what));
        self.view.troubles.push(Trouble { grave, what });
    }

    fn grave_trouble(&mut self, what: String) {
        let (grave, what) = (true, one_line(what));
        self.view.troubles.push(Trouble { grave, what });
    }

    pub(super) fn finish(mut self, before: &View) -> (View, Vec<Change>) {
        if self.view.leader() != before.leader() {
            let leader = self.view.leader().cloned();
            if let Some(gone) = before.leader() {
                self.view.leader_before = Some(Arc::new(gone.master.clone()));
            }
            self.changes.push(Change::Leader(leader));
        }
        (self.view, self.changes)
    }
}
