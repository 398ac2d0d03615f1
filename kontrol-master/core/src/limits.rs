//! How large what a keepalive says may be: the same for slaves and masters, so that a slave can tell at its start what a
//! master would refuse.

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

/// The size of annotations as the limit counts it: in bytes of canonical JSON.
pub fn annotations_size(annotations: &BTreeMap<String, String>) -> usize {
    let fields = annotations.iter();
    let fields = fields.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
    json::canonical(&Value::Object(fields.collect())).len()
}
