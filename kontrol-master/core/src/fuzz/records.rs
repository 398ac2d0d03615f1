//! The records of the store: what somebody edited there, or another version wrote. PURE.

use crate::{
    json::canonical,
    model::{
        Digest, Exact, Pod, Report,
        action::{Head, MAX_RECORD_BYTES, Record},
        digest::pods_document,
    },
    view::{OperateRecord, PeerMaster, RelayRecord, RemovalRecord, StateRecord},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt::Debug, sync::Arc};

/// The members of a pod in the PODS document.
const MEMBERS: [&str; 10] = [
    "app", "id", "ip", "key", "labels", "node", "nonce", "payload", "role", "seq",
];

/// The record of a pod: it is written as it was read, and so is its place in the PODS document.
pub fn pods_record(data: &[u8]) {
    let pod = match Pod::decode(data) {
        Ok(pod) => Arc::new(pod),
        Err(_) => return,
    };
    let bytes = pod.encode();
    let again = Pod::decode(&bytes).expect("what is written can be read");
    assert_eq!(again.encode(), bytes);
    assert_eq!(again.canonical(), pod.canonical());
    assert_eq!(pod.key().to_string().parse(), Ok(pod.key()));

    let pods = [Arc::clone(&pod)];
    let document = pods_document(pods.iter());
    let value: Value = serde_json::from_slice(&document).expect("the document is JSON");
    assert_eq!(canonical(&value), document, "the document is canonical");
    let members = value[0].as_object().expect("a pod is an object");
    assert!(members.keys().eq(MEMBERS), "{members:?}");
    assert_eq!(members["seq"], pod.seq());
    let digest = Digest::of(pods.iter());
    assert_eq!(digest.to_string().parse(), Ok(digest));

    let report = Report {
        app: pod.app().into(),
        id: pod.id().into(),
        ip: pod.ip(),
        role: pod.role().into(),
        nonce: pod.nonce().into(),
        payload: pod.payload().clone(),
        down: false,
        beat: pod.beat(),
        labels: pod.labels().clone(),
        annotations: pod.annotations().clone(),
        node: pod.node().into(),
        by: None,
    };
    assert!(
        pod.says(&report),
        "a pod that says the same changes nothing"
    );
    let updated = pod.update(report);
    assert_eq!(updated.canonical(), pod.canonical());
    let left = RemovalRecord {
        by: String::new(),
        ..removal(&pod)
    };
    stable::<RemovalRecord>(&to_json(&left));
}

fn removal(pod: &Pod) -> RemovalRecord {
    RemovalRecord {
        key: pod.key().to_string(),
        seq: pod.seq(),
        reason: crate::model::Reason::Evicted,
        incarnation: pod.incarnation(),
        beat: pod.beat(),
        silence_ms: 0,
        time_ms: pod.first_seen_ms(),
        master: "m".into(),
        by: "someone".into(),
        retired: pod.retired().to_vec(),
    }
}

/// Any other record, which one is told by the first byte: it is written as it was read.
pub fn store_record(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => stable::<RemovalRecord>(data),
        1 => stable::<Vec<RemovalRecord>>(data),
        2 => stable::<OperateRecord>(data),
        3 => stable::<StateRecord>(data),
        4 => stable::<RelayRecord>(data),
        5 => stable::<PeerMaster>(data),
        6 => stable::<Exact>(data),
        _ => {
            stable::<Head>(data);
            stable::<Record>(data);
            let Ok(record) = serde_json::from_slice::<Record>(data) else {
                return;
            };
            for result in &record.results {
                let mut again = result.clone();
                if let Some(ended) = result.ended() {
                    again.end(&ended);
                }
                assert_eq!(again, *result);
            }
            assert!(record.head.summary.failures() <= record.head.summary.ended());
            let bytes = record.encode();
            assert!(bytes.len() <= MAX_RECORD_BYTES.max(data.len()));
        }
    }
}

fn stable<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<T>(data) else {
        return;
    };
    let bytes = to_json(&record);
    let again: T = serde_json::from_slice(&bytes).expect("what is written can be read");
    assert_eq!(again, record);
    assert_eq!(to_json(&again), bytes);
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record becomes JSON")
}
