//! What must hold of each parser of this crate, whatever comes in: the bodies of the fuzz targets in `tests/fuzz`, which the
//! tests of `kontrol-master` replay as well.

pub use crate::action::policy::fuzz::policy;

use crate::{
    identity::{Given, Identity, Labels, Podinfo, parse_labels},
    masters::{self, Tier},
};
use kontrol_core::{
    fuzz::{parts, said},
    limits::MAX_LABELS,
    model::Report,
};
use kontrol_runtime::command_line::Mistake;
use std::{fmt::Write, net::IpAddr};

/// The files of a downward-API folder (labels, annotations, name) and what `--labels` says, each ended by a NUL: what is read
/// reads back as Go would quote it, and no master refuses who the pod is then.
pub fn podinfo(data: &[u8]) {
    let Some([labels, annotations, name, flag]) = parts(data) else {
        return;
    };
    let podinfo = match Podinfo::parse(labels, annotations, name) {
        Ok(podinfo) => podinfo,
        Err(error) => return said(Mistake::new("podinfo", error)),
    };
    let again = Podinfo::parse(
        &quoted(&podinfo.labels),
        &quoted(&podinfo.annotations),
        podinfo.name.as_deref().unwrap_or_default(),
    );
    assert_eq!(again.as_ref(), Ok(&podinfo));

    let mut given = Given {
        labels: Labels::from([
            ("app".into(), "web".into()),
            ("role".into(), "front".into()),
        ]),
        ip: Some(IpAddr::from([10, 0, 0, 1])),
        ..Given::default()
    };
    match parse_labels("labels", flag) {
        Ok(labels) => {
            let text = serde_json::to_string(&labels).expect("strings become JSON");
            assert_eq!(parse_labels("labels", &text).as_ref(), Ok(&labels));
            given.labels.extend(labels);
        }
        Err(mistakes) => mistakes.iter().for_each(said),
    }
    let (annotations, left_out) = podinfo.annotations_beside(&given.annotations);
    assert!(annotations.len() <= MAX_LABELS);
    assert_eq!(
        annotations.len() + left_out.len(),
        podinfo.annotations.len()
    );
    match given.identity(&podinfo, "host") {
        Ok(identity) => accepted(identity),
        Err(mistakes) => mistakes.iter().for_each(said),
    }
}

/// A master takes whoever a slave took for somebody.
fn accepted(identity: Identity) {
    let report = Report {
        app: identity.app,
        id: identity.id,
        ip: identity.ip.expect("it was given"),
        role: identity.role,
        nonce: "00000000000000aa".into(),
        payload: "".into(),
        down: false,
        beat: 1,
        labels: identity.labels,
        annotations: identity.annotations,
        node: identity.node,
        by: None,
    };
    let key = report.key().to_string();
    assert_eq!(
        report.check(&key, &kontrol_core::limits::Limits::default()),
        Ok(())
    );
}

/// Lines as Kubernetes writes them.
fn quoted(labels: &Labels) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        let _ = write!(text, "{name}=\"");
        for c in value.chars() {
            let _ = match c {
                '"' | '\\' => write!(text, "\\{c}"),
                '\n' => write!(text, "\\n"),
                c if c.is_control() => write!(text, "\\u{:04x}", u32::from(c)),
                c if u32::from(c) > 0xffff => write!(text, "\\U{:08x}", u32::from(c)),
                c => write!(text, "{c}"),
            };
        }
        text.push_str("\"\n");
    }
    text
}

/// `KONTROL_MASTER`: the tiers that are read are those that are shown.
pub fn tiers(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match masters::parse(text) {
        Ok(tiers) => {
            let shown: Vec<String> = tiers.iter().map(Tier::to_string).collect();
            assert_eq!(masters::parse(&shown.join(",")).as_ref(), Ok(&tiers));
            for tier in &tiers {
                assert!(!tier.endpoints().is_empty());
                let mut endpoints = tier.endpoints().iter();
                assert!(endpoints.all(|one| one.port() > 0 && !one.host().is_empty()));
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                said(Mistake::new("master", mistake));
            }
        }
    }
}
