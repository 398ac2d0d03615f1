//! Pods as tests report them, and what a test computes by itself to compare with: keys, the PODS document, its MD5.
//!
//! Nothing here shares code with the programs, so that a mistake of theirs is not repeated here.

use kontrol_proto::v1::{PingRequest, Pod};
use md5::{Digest as _, Md5};
use prost_types::value::Kind;
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::IpAddr};

/// A keepalive in the making.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSpec {
    /// Application.
    pub app: String,
    /// The pod's name.
    pub id: String,
    /// Its address.
    pub ip: String,
    /// What it believes its key to be; empty to leave it out.
    pub key: String,
    /// What it does.
    pub role: String,
    /// Its incarnation.
    pub nonce: String,
    /// Its own data.
    pub payload: Value,
    /// Whether it says goodbye.
    pub down: bool,
    /// Number of the keepalive.
    pub beat: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The machine that it runs on.
    pub node: String,
}

impl PodSpec {
    /// The pod with this number: an address, a name and an incarnation of its own.
    pub fn number(number: u32) -> Self {
        let ip = IpAddr::from((u32::from_be_bytes([127, 10, 0, 1]) + number).to_be_bytes());
        Self {
            app: "web".into(),
            id: format!("pod-{number}"),
            ip: ip.to_string(),
            key: String::new(),
            role: "worker".into(),
            nonce: format!("{:016x}", u64::from(number) + 0xa000_0000),
            payload: json!(""),
            down: false,
            beat: 0,
            labels: BTreeMap::from([
                ("app".into(), "web".into()),
                ("role".into(), "worker".into()),
            ]),
            annotations: BTreeMap::new(),
            node: "node-1".into(),
        }
    }

    /// The same pod with another payload.
    pub fn payload(self, payload: Value) -> Self {
        Self { payload, ..self }
    }

    /// The same keepalive with this number.
    pub fn beat(self, beat: u64) -> Self {
        Self { beat, ..self }
    }

    /// The same pod in another incarnation.
    pub fn nonce(self, nonce: &str) -> Self {
        Self {
            nonce: nonce.into(),
            ..self
        }
    }

    /// The pod's goodbye.
    pub fn down(self) -> Self {
        Self { down: true, ..self }
    }

    /// The key that follows from its address.
    pub fn expected_key(&self) -> String {
        key_of(&self.ip)
    }

    /// The keepalive over gRPC.
    pub fn request(&self) -> PingRequest {
        PingRequest {
            app: self.app.clone(),
            id: self.id.clone(),
            ip: self.ip.clone(),
            key: self.key.clone(),
            role: self.role.clone(),
            nonce: self.nonce.clone(),
            payload: Some(to_proto(&self.payload)),
            down: self.down,
            beat: self.beat,
            labels: self.labels.clone().into_iter().collect(),
            annotations: self.annotations.clone().into_iter().collect(),
            node: self.node.clone(),
        }
    }

    /// The keepalive over HTTP.
    pub fn json(&self) -> Value {
        json!({
            "app": self.app, "id": self.id, "ip": self.ip, "key": self.key, "role": self.role, "nonce": self.nonce,
            "payload": self.payload, "down": self.down, "beat": self.beat, "labels": self.labels,
            "annotations": self.annotations, "node": self.node,
        })
    }
}

/// The key of an address: its integer in base 62.
pub fn key_of(ip: &str) -> String {
    let alphabet: Vec<char> = ('0'..='9').chain('a'..='z').chain('A'..='Z').collect();
    let mut value = match ip.parse::<IpAddr>().unwrap().to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let mut digits = vec![alphabet[(value % 62) as usize]];
    while value >= 62 {
        value /= 62;
        digits.push(alphabet[(value % 62) as usize]);
    }
    digits.iter().rev().collect()
}

/// The PODS document of these pods, as the contract describes it.
pub fn pods_document(pods: &[Pod]) -> String {
    let objects: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let labels: BTreeMap<_, _> = pod.labels.iter().collect();
            json!({
                "app": pod.app, "id": pod.id, "ip": pod.ip, "key": pod.key, "labels": labels, "node": pod.node,
                "nonce": pod.nonce, "payload": from_proto(pod.payload.as_ref()), "role": pod.role, "seq": pod.seq,
            })
        })
        .collect();
    canonical(&Value::from(objects))
}

/// JSON without white space and with sorted keys, which is canonical as far as tests go: of numbers they use integers.
pub fn canonical(value: &Value) -> String {
    sorted(value).to_string()
}

/// MD5 in hex.
pub fn md5(text: &str) -> String {
    Md5::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The digest that these pods, in this order, must have.
pub fn digest_of(pods: &[Pod]) -> String {
    md5(&pods_document(pods))
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.iter().collect();
            fields
                .into_iter()
                .map(|(name, value)| (name.clone(), sorted(value)))
                .collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// JSON as protobuf carries it.
pub fn to_proto(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.iter().map(to_proto).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), to_proto(value)))
                .collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// JSON out of protobuf; nothing is null. Whole numbers come out as integers.
pub fn from_proto(value: Option<&prost_types::Value>) -> Value {
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::from(*value),
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
            Value::from(*value as i64)
        }
        Some(Kind::NumberValue(value)) => Value::from(*value),
        Some(Kind::StringValue(value)) => Value::from(value.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(|v| from_proto(Some(v))).collect(),
        Some(Kind::StructValue(object)) => object
            .fields
            .iter()
            .map(|(name, value)| (name.clone(), from_proto(Some(value))))
            .collect(),
    }
}

/// An integer of proto3 JSON, which may come as a number or as text.
pub fn integer(value: &Value) -> i64 {
    value
        .as_i64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no integer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_promised_keys() {
        let promised = [
            ("172.16.123.1", "39mysN"),
            ("10.0.0.1", "blXcB"),
            ("255.255.255.255", "4GFfc3"),
            ("127.0.0.1", "2kce4N"),
            ("::ffff:10.0.0.1", "blXcB"),
        ];
        for (ip, key) in promised {
            assert_eq!(key_of(ip), key);
        }
    }

    #[test]
    fn no_pods_have_the_digest_of_an_empty_array() {
        assert_eq!(digest_of(&[]), "d751713988987e9331980363e24189ce");
    }

    #[test]
    fn json_survives_protobuf() {
        let value = json!({"z": [1, 2.5, true, null], "a": {"é": "\n"}});
        assert_eq!(from_proto(Some(&to_proto(&value))), value);
        assert_eq!(
            sorted(&value).to_string(),
            r#"{"a":{"é":"\n"},"z":[1,2.5,true,null]}"#
        );
    }
}
