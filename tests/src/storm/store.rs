//! The revisions of etcd as the rules read them: the lives of the pods' records, the roster at each revision, and when a
//! revision can have been.

use super::record::{History, Time};
use crate::pod::{canonical, md5};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A pod's record from one write to the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Version {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) nonce: String,
    pub(super) seq: u64,
    pub(super) payload: Value,
    /// The revision that wrote it.
    pub(super) from: i64,
    /// The revision that ended it.
    pub(super) until: Option<i64>,
    /// Whether a deletion ended it, and not another write.
    pub(super) deleted: bool,
}

/// Every version of every pod's record, in the order of the revisions.
pub(super) fn versions(history: &History) -> Vec<Version> {
    let mut all: Vec<Version> = Vec::new();
    let mut current: BTreeMap<&str, usize> = BTreeMap::new();
    for change in &history.changes {
        let Some(key) = change.key.strip_prefix("pods/") else {
            continue;
        };
        if let Some(last) = current.remove(key) {
            all[last].until = Some(change.revision);
            all[last].deleted = change.value.is_none();
        }
        let Some(value) = &change.value else { continue };
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        current.insert(key, all.len());
        all.push(Version {
            key: key.to_owned(),
            id: text("id"),
            nonce: text("nonce"),
            seq: value["seq"].as_u64().unwrap_or(u64::MAX),
            payload: value["payload"].clone(),
            from: change.revision,
            until: None,
            deleted: false,
        });
    }
    all
}

/// When a revision can have been: not before, not after. The ticks are in order, each sent when the last was answered.
pub(super) fn bounds(history: &History, revision: i64) -> (Time, Time) {
    let ticks = &history.ticks;
    let before = ticks.partition_point(|tick| tick.revision < revision);
    let after = ticks.partition_point(|tick| tick.revision <= revision);
    let sent = before.checked_sub(1).map(|index| ticks[index].sent);
    let answered = ticks.get(after).map(|tick| tick.answered);
    (
        sent.unwrap_or(Time::NEG_INFINITY),
        answered.unwrap_or(Time::INFINITY),
    )
}

impl Version {
    /// The time before which it surely was not there.
    pub(super) fn earliest(&self, history: &History) -> Time {
        bounds(history, self.from).0
    }

    /// The time after which it surely was there no longer; none while it is.
    pub(super) fn latest(&self, history: &History) -> Option<Time> {
        self.until.map(|revision| bounds(history, revision).1)
    }

    /// Whether it can have been there at some moment between two.
    pub(super) fn possible(&self, history: &History, from: Time, to: Time) -> bool {
        self.earliest(history) <= to && self.latest(history).is_none_or(|end| end >= from)
    }
}

/// The digest at each revision that changed the roster, and before the first.
pub(super) struct Digests(BTreeMap<i64, String>);

impl Digests {
    pub(super) fn of(history: &History) -> Self {
        let mut roster: BTreeMap<&str, &Value> = BTreeMap::new();
        let mut digests = BTreeMap::from([(0, md5("[]"))]);
        let mut changes = history.changes.iter().peekable();
        while let Some(change) = changes.next() {
            let Some(key) = change.key.strip_prefix("pods/") else {
                continue;
            };
            match &change.value {
                Some(value) => roster.insert(key, value),
                None => roster.remove(key),
            };
            let more = |next: &&&super::record::Change| {
                next.revision == change.revision && next.key.starts_with("pods/")
            };
            if changes.peek().as_ref().filter(|next| more(next)).is_none() {
                digests.insert(change.revision, digest(roster.values().copied()));
            }
        }
        Self(digests)
    }

    pub(super) fn at(&self, revision: i64) -> &str {
        let found = self.0.range(..=revision).next_back();
        found.map_or("", |(_, digest)| digest)
    }
}

/// The digest of pods that are given as the store or the documents hold them.
pub(super) fn digest<'a>(pods: impl Iterator<Item = &'a Value>) -> String {
    let mut pods: Vec<&Value> = pods.collect();
    pods.sort_by_key(|pod| pod["seq"].as_u64());
    const FIELDS: [&str; 10] = [
        "app", "id", "ip", "key", "labels", "node", "nonce", "payload", "role", "seq",
    ];
    let objects = pods.iter().map(|pod| {
        let fields = FIELDS
            .iter()
            .map(|name| ((*name).to_owned(), pod[*name].clone()));
        json!(fields.collect::<BTreeMap<String, Value>>())
    });
    md5(&canonical(&Value::Array(objects.collect())))
}

/// The first moment from this one on at which no fault was there, nor what it left.
pub(super) fn quiet(history: &History, mut at: Time) -> Time {
    for fault in &history.faults {
        if fault.from <= at && at < fault.ready {
            at = fault.ready;
        }
    }
    at
}
