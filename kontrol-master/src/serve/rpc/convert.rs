//! Between protobuf and the domain.

use crate::{cluster::times, ensemble::explain::Account};
use kontrol_core::{
    model::{Exact, Invalid, Pod, Report, invalid::clip},
    view::{Member, PeerMaster, Reason, Removal, View, operate},
};
use kontrol_proto::v1::{self, LeaveReason, MasterView, PingRequest, PutStateRequest};
use kontrol_runtime::clock::wall;
pub(super) use kontrol_slave::payload::{from_proto, to_proto};
use prost_types::Timestamp;
use serde_json::Value;
use std::{net::IpAddr, time::Duration};

/// The report of a keepalive, and the key that the caller believes to have. Limits are checked by the intake.
pub(super) fn report(request: PingRequest) -> Result<(Report, String), Invalid> {
    if request.ip.is_empty() {
        return Err(Invalid::new("ip", "is required"));
    }
    let ip: IpAddr = request.ip.parse().map_err(|_| {
        Invalid::new(
            "ip",
            format!("{:?} is not an IP address", clip(&request.ip)),
        )
    })?;
    let payload = match request.payload {
        Some(payload) => from_proto(payload).map_err(|reason| Invalid::new("payload", reason))?,
        None => Value::String(String::new()),
    };
    let report = Report {
        app: request.app,
        id: request.id,
        ip: ip.to_canonical(),
        role: request.role,
        nonce: request.nonce,
        payload,
        down: request.down,
        beat: request.beat,
        labels: request.labels.into_iter().collect(),
        annotations: request.annotations.into_iter().collect(),
        node: request.node,
        by: None,
    };
    Ok((report, request.key))
}

/// The state that somebody puts, checked.
pub(super) fn state(request: PutStateRequest) -> Result<Exact, Invalid> {
    const FIELD: &str = "state";
    let read = match (request.state, request.json.as_str()) {
        (None, "") => return Err(Invalid::new(FIELD, "is required")),
        (None, json) => Exact::read(json.as_bytes()),
        (Some(value), "") => {
            let value = from_proto(value).map_err(|reason| Invalid::new(FIELD, reason))?;
            Exact::of(&value)
        }
        (Some(_), _) => {
            return Err(Invalid::new(FIELD, "is given twice: give it or json"));
        }
    };
    let state = read.map_err(|fault| match (fault.malformed, fault.path.as_str()) {
        (true, _) => Invalid::new("json", format!("is not JSON: {fault}")),
        (false, "") => Invalid::new(FIELD, fault.reason),
        (false, path) if path.starts_with('[') => {
            Invalid::new(format!("{FIELD}{path}"), fault.reason)
        }
        (false, path) => Invalid::new(format!("{FIELD}.{path}"), fault.reason),
    })?;
    match state.excess() {
        None => Ok(state),
        Some(excess) => Err(Invalid::new(FIELD, excess)),
    }
}

/// A pod without what is volatile.
pub(super) fn pod(pod: &Pod) -> v1::Pod {
    v1::Pod {
        key: pod.key().to_string(),
        id: pod.id().to_owned(),
        app: pod.app().to_owned(),
        ip: pod.ip().to_string(),
        role: pod.role().to_owned(),
        seq: pod.seq(),
        nonce: pod.nonce().to_owned(),
        payload: Some(to_proto(pod.payload())),
        labels: pod.labels().clone().into_iter().collect(),
        annotations: pod.annotations().clone().into_iter().collect(),
        node: pod.node().to_owned(),
        first_seen: Some(at(pod.first_seen_ms())),
        last_heard: None,
        attached_master: String::new(),
    }
}

/// A pod with what this master knows of its liveness.
pub(super) fn member(view: &View, member: &Member) -> v1::Pod {
    let attached = member.heard.master();
    let attached = attached.and_then(|instance| view.master_id(instance));
    v1::Pod {
        last_heard: member.heard.at().map(|at| wall(at).into()),
        attached_master: attached.unwrap_or_default().to_owned(),
        ..pod(&member.pod)
    }
}

/// A master.
pub(super) fn master(master: &PeerMaster) -> v1::Master {
    v1::Master {
        id: master.id.clone(),
        address: master.address.clone(),
    }
}

/// Why a pod left.
pub(super) fn reason(reason: Reason) -> LeaveReason {
    match reason {
        Reason::Down => LeaveReason::Down,
        Reason::Expired => LeaveReason::Expired,
        Reason::Lost => LeaveReason::Lost,
        Reason::Replaced => LeaveReason::Replaced,
        Reason::Evicted => LeaveReason::Evicted,
        Reason::Unknown => LeaveReason::Unspecified,
    }
}

/// A removal.
pub(super) fn removal(removal: &Removal) -> v1::Removal {
    let record = removal.record.as_ref();
    let time = record.map(|record| at(record.time_ms));
    v1::Removal {
        pod: Some(pod(&removal.pod)),
        reason: reason(removal.reason).into(),
        time,
        silence: record.and_then(|record| duration(Duration::from_millis(record.silence_ms))),
        master: record
            .map(|record| record.master.clone())
            .unwrap_or_default(),
        by: record.map(|record| record.by.clone()).unwrap_or_default(),
    }
}

/// A hold of the callback.
pub(super) fn hold(hold: &operate::Hold) -> v1::Hold {
    v1::Hold {
        reason: hold.reason.clone(),
        by: hold.by.clone(),
        since: Some(at(hold.since_ms)),
        until: Some(at(hold.until_ms)),
    }
}

/// What the safeguard holds back.
pub(super) fn safeguard(freeze: &operate::Freeze) -> v1::Safeguard {
    let count = |pods| u32::try_from(pods).unwrap_or(u32::MAX);
    v1::Safeguard {
        since: Some(at(freeze.since_ms)),
        until: Some(at(freeze.until_ms)),
        silent: count(freeze.silent),
        pods: count(freeze.pods),
        released_by: freeze
            .released
            .as_ref()
            .map(|released| released.by.clone())
            .unwrap_or_default(),
    }
}

/// Milliseconds since 1970.
fn at(ms: u64) -> Timestamp {
    times::at(ms).into()
}

/// What one master knows of a pod.
pub(super) fn account(account: Account) -> MasterView {
    MasterView {
        master: Some(master(&account.master)),
        leads: account.leads,
        heard_ago: account.heard_ago.and_then(duration),
        expires_in: account.expires_in.and_then(duration),
        error: account.error,
    }
}

/// A duration; none beyond what protobuf can hold.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    times::span(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_as_a_value_or_as_text_within_its_limits() {
        let json = |json: &str| {
            state(PutStateRequest {
                json: json.to_owned(),
                ..PutStateRequest::default()
            })
        };
        let value = |value: &Value| {
            state(PutStateRequest {
                state: Some(to_proto(value)),
                ..PutStateRequest::default()
            })
        };
        let text = r#"{"id":1234567890123456789}"#;
        assert_eq!(json(text).unwrap().as_str(), text);
        let put = value(&serde_json::json!({"b": 1, "a": null})).unwrap();
        assert_eq!(put.as_str(), r#"{"a":null,"b":1}"#);
        assert_eq!(value(&Value::Null).unwrap().as_str(), "null");
        let (large, deep) = ("x".repeat(1024 * 1024), "[".repeat(31) + &"]".repeat(31));
        let both = PutStateRequest {
            state: Some(to_proto(&Value::Null)),
            json: "null".into(),
        };
        for (refused, field, said) in [
            (state(PutStateRequest::default()), "state", "is required"),
            (state(both), "state", "is given twice"),
            (json("{"), "json", "EOF"),
            (
                json(r#"{"a":{"b":1,"b":1}}"#),
                "state.a.b",
                "is given twice",
            ),
            (json(&deep), "state[0]", "nests too deeply"),
            (
                json(&format!("{large:?}")),
                "state",
                "1048576 are the limit",
            ),
            (
                value(&large.as_str().into()),
                "state",
                "1048576 are the limit",
            ),
        ] {
            let invalid = refused.unwrap_err();
            assert!(invalid.field.starts_with(field), "{invalid}");
            assert!(invalid.reason.contains(said), "{invalid}");
        }
    }

    #[test]
    fn an_unset_payload_is_the_empty_string_and_a_wrong_ip_is_named() {
        let request = PingRequest {
            ip: "::ffff:10.0.0.1".into(),
            ..PingRequest::default()
        };
        let (report, _) = report(request).unwrap();
        assert_eq!(
            (report.payload, report.ip.to_string()),
            (Value::String(String::new()), "10.0.0.1".into())
        );
        let request = PingRequest {
            ip: "10.0.0".into(),
            ..PingRequest::default()
        };
        assert_eq!(super::report(request).unwrap_err().field, "ip");
    }
}
