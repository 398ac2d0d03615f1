//! A pod as it reports (`Report`) and as the store keeps it (`Pod`), with the limits of what a report may hold.
//!
//! `pods/<key>` holds a pod as canonical JSON: the fields of the PODS document, and beside them what the digest leaves
//! out (annotations, first_seen_ms, beat, retired, contests).

use super::{
    Incarnation, Invalid, PodKey, Reason, Retired,
    incarnation::{is_retired, retire},
    whole,
};
use crate::{
    access::Principal,
    json,
    limits::{
        Limits, MAX_ANNOTATION_BYTES, MAX_ANNOTATIONS_BYTES, MAX_LABEL_NAME_BYTES, MAX_NAME_BYTES,
        MAX_NONCE_BYTES, MAX_SAFE_INTEGER, annotations_size,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// What a keepalive says, checked: every field is within its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Application.
    pub app: String,
    /// The pod's name.
    pub id: String,
    /// The pod's address, an IPv4-mapped one as IPv4.
    pub ip: IpAddr,
    /// What the pod does.
    pub role: String,
    /// Incarnation; empty when the reporter draws none.
    pub nonce: String,
    /// The pod's own data; `""` when it has none.
    pub payload: Value,
    /// The pod says goodbye.
    pub down: bool,
    /// Number of the keepalive within the incarnation; 0: unknown.
    pub beat: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The machine it runs on.
    pub node: String,
    /// Who says it, where masters ask: it takes the place of no pod that it does not speak for.
    pub by: Option<Arc<Principal>>,
}

impl Report {
    /// The key that follows from the address.
    pub fn key(&self) -> PodKey {
        PodKey::from(self.ip)
    }

    /// Checks every limit. `key` is what the reporter believes its key to be, or empty.
    pub fn check(&self, key: &str, limits: &Limits) -> Result<(), Invalid> {
        for (field, text) in [("app", &self.app), ("id", &self.id), ("role", &self.role)] {
            if text.is_empty() {
                return Err(Invalid::new(field, "is required"));
            }
            check_text(field, text, MAX_NAME_BYTES)?;
        }
        check_text("node", &self.node, MAX_NAME_BYTES)?;
        check_text("nonce", &self.nonce, MAX_NONCE_BYTES)?;
        if self.ip.is_unspecified() || self.ip.is_multicast() {
            let reason = format!("{} is no pod's own address", self.ip);
            return Err(Invalid::new("ip", reason));
        }
        if !key.is_empty() {
            let claimed = key
                .parse::<PodKey>()
                .map_err(|error| Invalid::new("key", error))?;
            if claimed != self.key() {
                let reason = format!("is {key}, but the key of ip {} is {}", self.ip, self.key());
                return Err(Invalid::new("key", reason));
            }
        }
        check_map("labels", &self.labels, MAX_NAME_BYTES, limits)?;
        check_map(
            "annotations",
            &self.annotations,
            MAX_ANNOTATION_BYTES,
            limits,
        )?;
        let size = annotations_size(&self.annotations);
        if size > MAX_ANNOTATIONS_BYTES {
            let reason =
                format!("are {size} bytes of JSON, and {MAX_ANNOTATIONS_BYTES} are the limit");
            return Err(Invalid::new("annotations", reason));
        }
        match limits.too_deep(json::depth(&self.payload)) {
            None => Ok(()),
            Some(reason) => Err(Invalid::new("payload", reason)),
        }
    }
}

fn check_text(field: &str, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.len() > limit {
        return Err(Invalid::new(field, format!("is longer than {limit} bytes")));
    }
    if text.contains(char::is_control) {
        return Err(Invalid::new(field, "has a control character"));
    }
    Ok(())
}

fn check_map(
    field: &str,
    map: &BTreeMap<String, String>,
    limit: usize,
    limits: &Limits,
) -> Result<(), Invalid> {
    if map.len() > limits.labels {
        let reason = format!("has more than {} entries (--max-labels)", limits.labels);
        return Err(Invalid::new(field, reason));
    }
    for (name, value) in map {
        if name.is_empty() {
            return Err(Invalid::new(field, "has an entry without a name"));
        }
        check_text(field, name, MAX_LABEL_NAME_BYTES)?;
        if value.len() > limit {
            let name = format!("{field}[{name}]");
            return Err(Invalid::new(name, format!("is longer than {limit} bytes")));
        }
    }
    Ok(())
}

/// A live pod as `pods/<key>` holds it. Immutable: a change is another `Pod`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    record: Record,
    key: PodKey,
    canonical: Box<[u8]>,
}

/// The JSON of `pods/<key>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    app: String,
    id: String,
    ip: IpAddr,
    key: String,
    labels: BTreeMap<String, String>,
    node: String,
    nonce: String,
    payload: Value,
    role: String,
    seq: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default, with = "whole")]
    beat: u64,
    #[serde(default, with = "whole")]
    first_seen_ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
    #[serde(default, skip_serializing_if = "is_zero")]
    contests: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A text that is no pod record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not the JSON of a record.
    #[error("is not a pod record: {0}")]
    Json(#[from] serde_json::Error),
    /// The record's key is not the key of its address.
    #[error("has key {key}, but the key of ip {ip} is another")]
    Key {
        /// The key it has.
        key: String,
        /// The address.
        ip: IpAddr,
    },
    /// No reader of the PODS document would agree with another on such a number.
    #[error("has seq {0}, which is larger than any that is given")]
    Seq(u64),
}

impl Pod {
    /// A pod that joins with this report.
    pub fn join(report: Report, seq: u64, now_ms: u64) -> Self {
        let key = report.key();
        Self::from_record(Record {
            key: key.to_string(),
            app: report.app,
            id: report.id,
            ip: report.ip,
            labels: report.labels,
            node: report.node,
            nonce: report.nonce,
            payload: report.payload,
            role: report.role,
            seq,
            annotations: report.annotations,
            beat: report.beat,
            first_seen_ms: now_ms,
            retired: Vec::new(),
            contests: 0,
        })
    }

    /// This pod after another report of it: seq and first_seen stay. A new incarnation retires the one before.
    pub fn update(&self, report: Report) -> Self {
        let retired = if report.nonce == self.record.nonce {
            self.record.retired.clone()
        } else {
            self.retire(None)
        };
        Self::join(report, self.record.seq, self.record.first_seen_ms)
            .after(retired)
            .contested(self.record.contests)
    }

    /// This pod, which takes over the address of another: that other one doesn't come back while this one is here.
    pub fn replacing(self, before: &Self) -> Self {
        let contests = before.contests();
        self.after(before.retire(Some(Reason::Replaced)))
            .contested(contests)
    }

    /// This pod in a place that these incarnations had before.
    pub fn after(mut self, retired: Vec<Retired>) -> Self {
        self.record.retired = retired;
        self
    }

    /// This pod in a place that was fought over this often.
    pub fn contested(mut self, contests: u32) -> Self {
        self.record.contests = contests;
        self
    }

    /// The incarnations that had the place, this one included: it left for this reason, or went on as another one.
    pub fn retire(&self, reason: Option<Reason>) -> Vec<Retired> {
        let one = Retired {
            incarnation: self.incarnation(),
            seq: self.record.seq,
            reason,
        };
        retire(&self.record.retired, one)
    }

    fn from_record(record: Record) -> Self {
        let canonical = json::canonical(&serde_json::json!({
            "app": record.app, "id": record.id, "ip": record.ip, "key": record.key, "labels": record.labels,
            "node": record.node, "nonce": record.nonce, "payload": record.payload, "role": record.role, "seq": record.seq,
        }));
        Self {
            key: PodKey::from(record.ip),
            record,
            canonical: canonical.into(),
        }
    }

    /// Reads the record of `pods/<key>`.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Record = serde_json::from_slice(bytes)?;
        if record.seq > MAX_SAFE_INTEGER {
            return Err(RecordError::Seq(record.seq));
        }
        let pod = Self::from_record(record);
        if pod.key.to_string() != pod.record.key {
            return Err(RecordError::Key {
                key: pod.record.key,
                ip: pod.record.ip,
            });
        }
        Ok(pod)
    }

    /// The record of `pods/<key>`: canonical JSON.
    pub fn encode(&self) -> Vec<u8> {
        let value = serde_json::to_value(&self.record);
        json::canonical(&value.expect("strings, numbers and JSON always become JSON"))
    }

    /// Whether a report says what this record says already, so that nothing needs to be written.
    pub fn says(&self, report: &Report) -> bool {
        let record = &self.record;
        record.nonce == report.nonce
            && record.app == report.app
            && record.id == report.id
            && record.ip == report.ip
            && record.role == report.role
            && record.node == report.node
            && record.labels == report.labels
            && record.annotations == report.annotations
            && json::same(&record.payload, &report.payload)
    }

    /// The pod's object in the PODS document.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// Key.
    pub fn key(&self) -> PodKey {
        self.key
    }
    /// The pod's name.
    pub fn id(&self) -> &str {
        &self.record.id
    }
    /// Application.
    pub fn app(&self) -> &str {
        &self.record.app
    }
    /// Address.
    pub fn ip(&self) -> IpAddr {
        self.record.ip
    }
    /// What the pod does.
    pub fn role(&self) -> &str {
        &self.record.role
    }
    /// Place in the roster.
    pub fn seq(&self) -> u64 {
        self.record.seq
    }
    /// Incarnation.
    pub fn nonce(&self) -> &str {
        &self.record.nonce
    }
    /// Which start of which pod it is.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation::new(&self.record.id, &self.record.nonce)
    }
    /// The incarnations that had the place before, the oldest first.
    pub fn retired(&self) -> &[Retired] {
        &self.record.retired
    }
    /// Whether this incarnation had the place before.
    pub fn has_retired(&self, who: &Incarnation) -> bool {
        is_retired(&self.record.retired, who)
    }
    /// How often the place was taken over while several fought over it.
    pub fn contests(&self) -> u32 {
        self.record.contests
    }
    /// The pod's own data.
    pub fn payload(&self) -> &Value {
        &self.record.payload
    }
    /// Labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.record.labels
    }
    /// Annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.record.annotations
    }
    /// The machine it runs on.
    pub fn node(&self) -> &str {
        &self.record.node
    }
    /// The beat of the keepalive that made this record; 0: unknown.
    pub fn beat(&self) -> u64 {
        self.record.beat
    }
    /// When the first keepalive was accepted, in milliseconds since 1970.
    pub fn first_seen_ms(&self) -> u64 {
        self.record.first_seen_ms
    }
}

#[cfg(test)]
mod tests;
