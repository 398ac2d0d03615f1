//! Small histories for the tests of the rules: revision N is at N seconds, give or take half a second.

use super::record::{Answer, Beat, Change, History, Tick};
use serde_json::{Value, json};

/// A pod's record: its name, incarnation, seq, and what it says.
pub(super) fn pod(id: &str, nonce: u64, seq: u64, says: u64) -> Option<Value> {
    Some(json!({
        "app": "web", "id": id, "ip": "10.0.0.1", "key": "k", "labels": {}, "node": "", "nonce": nonce.to_string(),
        "payload": says, "role": "r", "seq": seq,
    }))
}

/// A history of these records of pods: the revision, the key, the record or its end.
pub(super) fn history(changes: &[(i64, &str, Option<Value>)]) -> History {
    let change = |(revision, key, value): &(i64, &str, Option<Value>)| Change {
        revision: revision * 10,
        key: format!("pods/{key}"),
        value: value.clone(),
    };
    // Ten revisions a second, and a tick in the middle between any two seconds.
    let tick = |second: i64| Tick {
        revision: second * 10 + 5,
        sent: second as f64 + 0.5,
        answered: second as f64 + 0.5,
        wall: second as f64 + 0.5,
    };
    History {
        ttl: 5.0,
        changes: changes.iter().map(change).collect(),
        ticks: (-1..100).map(tick).collect(),
        end: 100.0,
        ..History::default()
    }
}

/// A keepalive that was answered so at once.
pub(super) fn beat(id: &str, key: &str, incarnation: usize, at: f64, answer: Answer) -> Beat {
    Beat {
        id: id.into(),
        key: key.into(),
        nonce: (incarnation + 1).to_string(),
        incarnation,
        payload: json!(0),
        down: false,
        master: 0,
        sent: at,
        done: at,
        answer,
    }
}

/// A keepalive that was accepted with this seq.
pub(super) fn accepted(id: &str, key: &str, incarnation: usize, at: f64, seq: u64) -> Beat {
    beat(id, key, incarnation, at, Answer::Accepted(seq))
}
