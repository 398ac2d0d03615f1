//! A pod as it reports (`Report`) and as the store keeps it (`Pod`), with the limits of what a report may hold.
//!
//! `pods/<key>` holds a pod as canonical JSON: the fields of the PODS document, and beside them what the digest leaves
//! out (annotations, first_seen_ms, beat, previous_nonce).

use super::{Invalid, PodKey, json};
use kontrol_slave::identity::annotations_size;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr};

// The same for slaves and masters, so that a slave can tell at its start what a master would refuse.
pub use kontrol_slave::{
    identity::{
        MAX_ANNOTATION_BYTES, MAX_ANNOTATIONS_BYTES, MAX_LABEL_NAME_BYTES, MAX_LABELS,
        MAX_NAME_BYTES,
    },
    payload::MAX_BYTES as MAX_PAYLOAD_BYTES,
};

/// Longest nonce, in bytes.
pub const MAX_NONCE_BYTES: usize = 64;

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
}

impl Report {
    /// The key that follows from the address.
    pub fn key(&self) -> PodKey {
        PodKey::from(self.ip)
    }

    /// Checks every limit. `key` is what the reporter believes its key to be, or empty.
    pub fn check(&self, key: &str) -> Result<(), Invalid> {
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
        check_map("labels", &self.labels, MAX_NAME_BYTES)?;
        check_map("annotations", &self.annotations, MAX_ANNOTATION_BYTES)?;
        let size = annotations_size(&self.annotations);
        if size > MAX_ANNOTATIONS_BYTES {
            let reason =
                format!("are {size} bytes of JSON, and {MAX_ANNOTATIONS_BYTES} are the limit");
            return Err(Invalid::new("annotations", reason));
        }
        if json::depth(&self.payload) > json::MAX_DEPTH {
            let reason = format!("nests deeper than {} levels", json::MAX_DEPTH);
            return Err(Invalid::new("payload", reason));
        }
        Ok(())
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

fn check_map(field: &str, map: &BTreeMap<String, String>, limit: usize) -> Result<(), Invalid> {
    if map.len() > MAX_LABELS {
        return Err(Invalid::new(
            field,
            format!("has more than {MAX_LABELS} entries"),
        ));
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
    #[serde(default)]
    beat: u64,
    #[serde(default)]
    first_seen_ms: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    previous_nonce: String,
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
}

impl Pod {
    /// A pod that joins with this report.
    pub fn join(report: Report, seq: u64, now_ms: u64) -> Self {
        Self::new(report, seq, now_ms, String::new())
    }

    /// This pod after another report of it: seq and first_seen stay.
    pub fn update(&self, report: Report) -> Self {
        let previous = if report.nonce == self.record.nonce {
            self.record.previous_nonce.clone()
        } else {
            self.record.nonce.clone()
        };
        Self::new(report, self.record.seq, self.record.first_seen_ms, previous)
    }

    /// This pod, which takes over the address of another: that other one doesn't come back while this one is here.
    pub fn replacing(self, before: &Self) -> Self {
        let previous_nonce = if before.nonce() == self.nonce() {
            String::new()
        } else {
            before.nonce().to_owned()
        };
        let record = Record {
            previous_nonce,
            ..self.record
        };
        Self { record, ..self }
    }

    fn new(report: Report, seq: u64, first_seen_ms: u64, previous_nonce: String) -> Self {
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
            first_seen_ms,
            previous_nonce,
        })
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
        // A struct of strings, numbers and JSON has no way to fail to become JSON.
        json::canonical(&serde_json::to_value(&self.record).unwrap_or_default())
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
    /// The incarnation before this one; empty when there was none.
    pub fn previous_nonce(&self) -> &str {
        &self.record.previous_nonce
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
pub(crate) mod tests {
    use super::super::json::tests::any_json;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A report of a pod at `127.0.0.<host>`.
    pub(crate) fn report(host: u8) -> Report {
        Report {
            app: "web".into(),
            id: format!("web-{host}"),
            ip: IpAddr::from([127, 0, 0, host]),
            role: "front".into(),
            nonce: "00000000000000aa".into(),
            payload: json!(""),
            down: false,
            beat: 1,
            labels: BTreeMap::from([("app".into(), "web".into())]),
            annotations: BTreeMap::new(),
            node: String::new(),
        }
    }

    pub(crate) fn any_pod() -> impl Strategy<Value = Pod> {
        (any::<[u8; 4]>(), any_json(), any::<u32>(), ".{1,8}").prop_map(|(ip, payload, seq, id)| {
            let report = Report {
                ip: IpAddr::from(ip),
                payload,
                id,
                ..report(1)
            };
            Pod::join(report, u64::from(seq), 5)
        })
    }

    #[test]
    fn the_document_has_ten_sorted_fields_and_nothing_else() {
        let report = Report {
            annotations: BTreeMap::from([("note".into(), "not in the digest".into())]),
            payload: json!({"b": 1.0, "a": [true]}),
            ..report(1)
        };
        assert_eq!(
            str::from_utf8(Pod::join(report, 7, 1).canonical()).unwrap(),
            r#"{"app":"web","id":"web-1","ip":"127.0.0.1","key":"2kce4N","labels":{"app":"web"},"node":"","nonce":"00000000000000aa","payload":{"a":[true],"b":1},"role":"front","seq":7}"#
        );
    }

    #[test]
    fn an_update_keeps_seq_and_remembers_the_last_incarnation() {
        let pod = Pod::join(report(1), 7, 1);
        let again = pod.update(Report {
            nonce: "bb".into(),
            ..report(1)
        });
        assert_eq!((again.seq(), again.first_seen_ms()), (7, 1));
        assert_eq!(
            (again.nonce(), again.previous_nonce()),
            ("bb", "00000000000000aa")
        );
    }

    #[test]
    fn each_limit_names_its_field() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        let cases: [(&str, Report); 9] = [
            (
                "app",
                Report {
                    app: String::new(),
                    ..report(1)
                },
            ),
            (
                "id",
                Report {
                    id: long.clone(),
                    ..report(1)
                },
            ),
            (
                "role",
                Report {
                    role: "a\nb".into(),
                    ..report(1)
                },
            ),
            (
                "node",
                Report {
                    node: long.clone(),
                    ..report(1)
                },
            ),
            (
                "nonce",
                Report {
                    nonce: long.clone(),
                    ..report(1)
                },
            ),
            (
                "ip",
                Report {
                    ip: IpAddr::from([0, 0, 0, 0]),
                    ..report(1)
                },
            ),
            (
                "labels[a]",
                Report {
                    labels: BTreeMap::from([("a".into(), long)]),
                    ..report(1)
                },
            ),
            (
                "labels",
                Report {
                    labels: (0..65).map(|n| (n.to_string(), String::new())).collect(),
                    ..report(1)
                },
            ),
            (
                "payload",
                Report {
                    payload: deep,
                    ..report(1)
                },
            ),
        ];
        for (field, report) in cases {
            assert_eq!(report.check("").unwrap_err().field, field);
        }
        // Control characters take six bytes each.
        let annotations =
            (0..MAX_LABELS).map(|n| (n.to_string(), "\u{1}".repeat(MAX_ANNOTATION_BYTES)));
        let report_of_many = Report {
            annotations: annotations.collect(),
            ..report(1)
        };
        assert_eq!(report_of_many.check("").unwrap_err().field, "annotations");
        assert_eq!(report(1).check("blXcB").unwrap_err().field, "key");
        assert_eq!(report(1).check("2kce4N"), Ok(()));
    }

    /// The names of labels and annotations as Kubernetes has them: 253 bytes, a slash, 63 bytes; as many as promised.
    #[test]
    fn what_kubernetes_allows_is_taken() {
        let name = |n: usize| format!("{n:03}{}/{}", "p".repeat(250), "n".repeat(63));
        let labels: BTreeMap<String, String> =
            (0..MAX_LABELS).map(|n| (name(n), "v".repeat(63))).collect();
        let mut report = Report {
            annotations: labels
                .keys()
                .map(|name| (name.clone(), "v".repeat(4096)))
                .collect(),
            labels,
            ..report(1)
        };
        assert_eq!(report.check(""), Ok(()));
        report.labels.insert(name(MAX_LABELS), String::new());
        assert_eq!(report.check("").unwrap_err().field, "labels");
        report.labels = BTreeMap::from([(name(0) + "n", String::new())]);
        assert_eq!(
            report.check("").unwrap_err().to_string(),
            "labels is longer than 317 bytes"
        );
    }

    proptest! {
        /// One set of limits: what a slave takes for its identity, a master takes for a report.
        #[test]
        fn what_a_slave_may_say_a_master_takes(
            names in prop::collection::btree_set("[a-z\\x01]{0,4}x{0,320}", 0..70),
            value in "[\\x01a]{0,8}",
            times in 0..700_usize,
        ) {
            let map: BTreeMap<String, String> = names.into_iter().map(|name| (name, value.repeat(times))).collect();
            let fixed = [("app", "web"), ("role", "front")].map(|(name, value)| (name.to_owned(), value.to_owned()));
            let given = kontrol_slave::identity::Given {
                labels: map.iter().take(5).map(|(name, value)| (name.clone(), value.clone())).chain(fixed).collect(),
                annotations: map,
                ..Default::default()
            };
            if let Ok(identity) = given.identity(&Default::default(), "host") {
                let report = Report { labels: identity.labels, annotations: identity.annotations, ..report(1) };
                prop_assert_eq!(report.check(""), Ok(()));
            }
        }

        #[test]
        fn a_record_reads_back(pod in any_pod()) {
            let back = Pod::decode(&pod.encode()).unwrap();
            prop_assert_eq!(back.canonical(), pod.canonical());
            prop_assert_eq!(back.encode(), pod.encode());
        }
    }
}
