//! Every command against scripted masters: what a person sees, what a program reads, and what goes wrong.

mod actions;
mod answers;
mod exec;
mod failures;
mod operate;
mod script;
mod tls;
mod watch;

use kontrol_proto::v1::{CallbackStatus, GetEnsembleResponse, Master as MasterInfo, Pod, Settings};
use prost_types::{Duration as ProtoDuration, Timestamp, Value, value::Kind};
use std::time::{Duration, SystemTime};

const DIGEST: &str = "0123456789abcdef0123456789abcdef";

fn string(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

fn object(name: &str, number: f64) -> Value {
    let number = Value {
        kind: Some(Kind::NumberValue(number)),
    };
    Value {
        kind: Some(Kind::StructValue(prost_types::Struct {
            fields: [(name.to_owned(), number)].into(),
        })),
    }
}

fn master(id: &str) -> MasterInfo {
    MasterInfo {
        id: id.to_owned(),
        address: format!("{id}.example:8000"),
    }
}

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

fn ago(seconds: u64) -> Option<Timestamp> {
    Some((SystemTime::now() - Duration::from_secs(seconds)).into())
}

/// A little more than that many seconds from now, so that whole seconds are told as they are given.
fn from_now(seconds: u64) -> Option<Timestamp> {
    let later = Duration::from_secs(seconds) + Duration::from_millis(900);
    Some((SystemTime::now() + later).into())
}

fn pod(seq: u64, key: &str, id: &str) -> Pod {
    Pod {
        key: key.to_owned(),
        id: id.to_owned(),
        app: "demo".to_owned(),
        ip: format!("10.0.0.{seq}"),
        role: "web".to_owned(),
        seq,
        nonce: "00ff".to_owned(),
        payload: Some(object("load", 1.0)),
        first_seen: ago(7265),
        last_heard: ago(3),
        attached_master: "m1".to_owned(),
        ..Pod::default()
    }
}

fn ensemble() -> GetEnsembleResponse {
    GetEnsembleResponse {
        namespace: "default".to_owned(),
        app: "demo".to_owned(),
        digest: DIGEST.to_owned(),
        pod_count: 2,
        epoch: 42,
        leader: Some(master("m2")),
        masters: vec![master("m1"), master("m2")],
        callback: Some(CallbackStatus {
            configured: true,
            ..CallbackStatus::default()
        }),
        handled_digest: DIGEST.to_owned(),
        revision: 9_007_199_254_740_993,
        settings: Some(Settings {
            ttl: seconds(25),
            interval: seconds(8),
            damper: Some(ProtoDuration {
                seconds: 2,
                nanos: 500_000_000,
            }),
            damper_max: seconds(60),
            fover: seconds(5),
            lost: seconds(3),
            history: seconds(3600),
            lease: None,
            safeguard: 50,
            safeguard_min: 10,
            safeguard_max: seconds(250),
        }),
        master: "m1".to_owned(),
        hold: None,
        safeguard: None,
    }
}
