//! How large what others say may be. The constants are the most of all: slaves and masters share them, so that a slave can
//! tell at its start what every master would refuse. A master may be told to take less ([`Limits`]).

use crate::json;
use serde_json::Value;
use std::collections::BTreeMap;

/// The largest integer up to which every reader of JSON agrees (RFC 8259, 6).
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;
/// Up to here, 2^53, every whole number is one double; behind it doubles skip some.
pub const EXACT: f64 = 9_007_199_254_740_992.0;
/// Longest app, id, role, node, and value of a label, in bytes: a DNS name fits.
pub const MAX_NAME_BYTES: usize = 253;
/// Longest name of a label or annotation, in bytes: as Kubernetes has it, a DNS name, a slash, and 63.
pub const MAX_LABEL_NAME_BYTES: usize = 253 + 1 + 63;
/// Most labels, and most annotations.
pub const MAX_LABELS: usize = 64;
/// Longest value of an annotation, in bytes.
pub const MAX_ANNOTATION_BYTES: usize = 4096;
/// Largest annotations of a pod, in bytes of canonical JSON. All that Kubernetes allows fits, unless it is full of control
/// characters, of which JSON takes six bytes each.
pub const MAX_ANNOTATIONS_BYTES: usize = 544 * 1024;
/// Longest nonce, in bytes.
pub const MAX_NONCE_BYTES: usize = 64;
/// Largest payload, in bytes of canonical JSON.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// Largest request, in bytes: a state or an input of 1 MiB has room however its JSON is written.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// Most actions that one master carries at a time.
pub const MAX_DISPATCHES: usize = 4096;
/// Most pods of an ensemble, unless its masters are told otherwise.
const PODS: usize = 200_000;

/// How much a master takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request; of keepalives it takes less in any case.
    pub request_bytes: usize,
    /// Levels of a payload, a state, and an action's input.
    pub json_depth: usize,
    /// Bytes of a payload as canonical JSON.
    pub payload_bytes: usize,
    /// Labels of a pod, and as many annotations.
    pub labels: usize,
    /// Pods of the ensemble.
    pub pods: usize,
    /// Actions that this master carries at a time.
    pub dispatches: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: MAX_REQUEST_BYTES,
            json_depth: json::MAX_DEPTH,
            payload_bytes: MAX_PAYLOAD_BYTES,
            labels: MAX_LABELS,
            pods: PODS,
            dispatches: MAX_DISPATCHES,
        }
    }
}

impl Limits {
    /// Why that is too deep, if it is: so many levels as [`json::depth`] or [`json::depth_of_text`] count them.
    pub fn too_deep(&self, levels: usize) -> Option<String> {
        let limit = self.json_depth;
        (levels > limit).then(|| format!("nests deeper than {limit} levels (--max-json-depth)"))
    }
}

/// The size of annotations as the limit counts it: in bytes of canonical JSON.
pub fn annotations_size(annotations: &BTreeMap<String, String>) -> usize {
    let fields = annotations.iter();
    let fields = fields.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
    json::canonical(&Value::Object(fields.collect())).len()
}
