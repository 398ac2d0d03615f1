//! Pods and JSON for tests, here and in the crates above.

use crate::{
    limits::Limits,
    model::{Pod, Report},
    safeguard::Policy,
    settings::Settings,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Settings with the default times.
pub fn settings() -> Settings {
    let seconds = Duration::from_secs;
    Settings {
        namespace: "n".into(),
        app: "a".into(),
        ttl: seconds(25),
        damper: seconds(10),
        damper_max: seconds(60),
        fover: seconds(5),
        lost: seconds(3),
        history: seconds(3600),
        safeguard: Policy::default(),
        limits: Limits::default(),
    }
}

/// A report of a pod at `127.0.0.<host>`.
pub fn report(host: u8) -> Report {
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
        by: None,
    }
}

/// Any pod that has joined.
pub fn any_pod() -> impl Strategy<Value = Pod> {
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

/// Any JSON that can come in a payload.
pub fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| Value::from(n))),
        (-1_000_000_i64..1_000_000).prop_map(|n| Value::from(n as f64)),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".*", inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}
