//! Who the pod is: what flags and environment say, over what the downward-API folder says. PURE.
//!
//! Invariant: an [`Identity`] is within the limits that masters set, so that a master never refuses it for a mistake
//! that could be told at the start. All mistakes are told at once, each with the flag that puts it right.

use kontrol_core::{
    limits::{
        MAX_ANNOTATION_BYTES, MAX_ANNOTATIONS_BYTES, MAX_LABEL_NAME_BYTES, MAX_LABELS,
        MAX_NAME_BYTES, annotations_size,
    },
    strict,
};
use kontrol_runtime::{
    command_line::Mistake,
    host::{Reach, reach},
};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr};

pub mod podinfo;

pub use podinfo::Podinfo;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// What a pod says of itself in each keepalive, beside its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The application: the label `app`.
    pub app: String,
    /// The pod's name.
    pub id: String,
    /// The pod's address; none: the one that leads to the master in use.
    pub ip: Option<IpAddr>,
    /// What the pod does: the label `role`.
    pub role: String,
    /// The pod's labels, `app` and `role` among them.
    pub labels: Labels,
    /// The pod's annotations.
    pub annotations: Labels,
    /// The machine that the pod runs on; may be empty.
    pub node: String,
}

/// What flags and environment say of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// `--id`.
    pub id: Option<String>,
    /// `--ip`.
    pub ip: Option<IpAddr>,
    /// `--labels`: they win over the folder's, one by one.
    pub labels: Labels,
    /// `--annotations`: they win over the folder's, one by one.
    pub annotations: Labels,
    /// `--node`.
    pub node: String,
}

impl Given {
    /// The identity that follows. `host` is the name of last resort.
    pub fn identity(&self, podinfo: &Podinfo, host: &str) -> Result<Identity, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut labels = podinfo.labels.clone();
        labels.extend(self.labels.clone());
        let (annotations, _) = podinfo.annotations_beside(&self.annotations);
        for name in ["app", "role"] {
            match labels.get(name) {
                None => {
                    let reason = format!(
                        "the label `{name}` is missing: give it here, as in '{{\"app\":\"web\",\"role\":\"front\"}}', or in the folder of --podinfo"
                    );
                    mistakes.push(Mistake::new("labels", reason));
                }
                Some(value) if value.is_empty() => {
                    mistakes.push(Mistake::new(
                        "labels",
                        format!("the label `{name}` is empty"),
                    ));
                }
                Some(value) => {
                    mistakes.extend(check_text("labels", &format!("the label `{name}`"), value));
                }
            }
        }
        mistakes.extend(check_map("labels", "label", &labels, MAX_NAME_BYTES));
        mistakes.extend(check_map(
            "annotations",
            "annotation",
            &annotations,
            MAX_ANNOTATION_BYTES,
        ));
        let id = self.id.as_deref().or(podinfo.name.as_deref());
        let id = id.unwrap_or(host);
        if id.is_empty() {
            mistakes.push(Mistake::new("id", "the host has no name: give an id"));
        }
        mistakes.extend(check_text("id", "the id", id));
        mistakes.extend(check_text("node", "the node", &self.node));
        let ip = self.ip.map(|ip| ip.to_canonical());
        if let Some(ip) = ip.filter(|ip| reach(*ip) == Reach::Nobody) {
            mistakes.push(Mistake::new("ip", format!("{ip} is no pod's own address")));
        }
        let size = annotations_size(&annotations);
        if size > MAX_ANNOTATIONS_BYTES {
            let reason = format!(
                "the annotations are {size} bytes of JSON, and {MAX_ANNOTATIONS_BYTES} are the limit"
            );
            mistakes.push(Mistake::new("annotations", reason));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let label = |name| labels.get(name).cloned().unwrap_or_default();
        Ok(Identity {
            app: label("app"),
            id: id.to_owned(),
            ip,
            role: label("role"),
            node: self.node.clone(),
            labels,
            annotations,
        })
    }
}

/// Reads labels or annotations from a JSON object of strings.
pub fn parse_labels(flag: &'static str, text: &str) -> Result<Labels, Vec<Mistake>> {
    let value = strict::value(text.as_bytes()).map_err(|fault| {
        let reason = if fault.malformed {
            format!("not valid JSON: {fault}")
        } else {
            fault.to_string()
        };
        vec![Mistake::new(flag, reason)]
    })?;
    let Value::Object(fields) = value else {
        let reason = "must be a JSON object of strings, as in '{\"app\":\"web\"}'";
        return Err(vec![Mistake::new(flag, reason)]);
    };
    let mut labels = Labels::new();
    let mut mistakes = Vec::new();
    for (name, value) in fields {
        if let Value::String(value) = value {
            labels.insert(name, value);
        } else {
            let reason = format!("the value of `{name}` must be a string in quotes");
            mistakes.push(Mistake::new(flag, reason));
        }
    }
    if mistakes.is_empty() {
        Ok(labels)
    } else {
        Err(mistakes)
    }
}

fn check_text(flag: &'static str, what: &str, text: &str) -> Option<Mistake> {
    check_length(flag, what, text, MAX_NAME_BYTES)
}

fn check_length(flag: &'static str, what: &str, text: &str, limit: usize) -> Option<Mistake> {
    if text.len() > limit {
        let reason = format!("{what} is longer than {limit} bytes");
        return Some(Mistake::new(flag, reason));
    }
    text.contains(char::is_control)
        .then(|| Mistake::new(flag, format!("{what} has a control character")))
}

fn check_map(flag: &'static str, what: &str, map: &Labels, limit: usize) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    if map.len() > MAX_LABELS {
        let reason = format!("{} {what}s are too many: at most {MAX_LABELS}", map.len());
        mistakes.push(Mistake::new(flag, reason));
    }
    for (name, value) in map {
        if name.is_empty() {
            mistakes.push(Mistake::new(
                flag,
                format!("there is a {what} without a name"),
            ));
        }
        let the_name = format!("the name of a {what}");
        mistakes.extend(check_length(flag, &the_name, name, MAX_LABEL_NAME_BYTES));
        if value.len() > limit {
            let reason = format!("the {what} `{name}` is longer than {limit} bytes");
            mistakes.push(Mistake::new(flag, reason));
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    fn lines(result: Result<Identity, Vec<Mistake>>) -> Vec<String> {
        let mistakes = result.unwrap_err();
        mistakes.iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn flags_win_over_the_folder_and_the_folder_over_the_host() {
        let podinfo = Podinfo {
            labels: labels(&[("app", "folder"), ("role", "front"), ("zone", "a")]),
            annotations: labels(&[("note", "folder")]),
            name: Some("web-7d9f".into()),
        };
        let mut given = Given {
            labels: labels(&[("app", "flag")]),
            ..Given::default()
        };
        let identity = given.identity(&podinfo, "host").unwrap();
        assert_eq!(
            (identity.app.as_str(), identity.role.as_str()),
            ("flag", "front")
        );
        assert_eq!((identity.id.as_str(), identity.ip), ("web-7d9f", None));
        assert_eq!(identity.labels["zone"], "a");
        assert_eq!(identity.annotations["note"], "folder");

        given.id = Some("mine".into());
        given.ip = Some("::ffff:10.1.2.3".parse().unwrap());
        let identity = given.identity(&podinfo, "host").unwrap();
        assert_eq!(identity.id, "mine");
        assert_eq!(identity.ip, Some(IpAddr::from([10, 1, 2, 3])));

        given.id = None;
        let nameless = Podinfo {
            name: None,
            ..podinfo
        };
        assert_eq!(given.identity(&nameless, "host").unwrap().id, "host");
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_flag() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let given = Given {
            id: Some("a\nb".into()),
            ip: Some(Ipv4Addr::UNSPECIFIED.into()),
            labels: labels(&[("role", ""), ("long", &long), ("", "nameless")]),
            annotations: labels(&[("note", &"x".repeat(MAX_ANNOTATION_BYTES + 1))]),
            node: long.clone(),
        };
        let lines = lines(given.identity(&Podinfo::default(), "host"));
        for said in [
            "--labels: the label `app` is missing",
            "--labels: the label `role` is empty",
            "--labels: the label `long` is longer than 253 bytes",
            "--labels: there is a label without a name",
            "--annotations: the annotation `note` is longer than 4096 bytes",
            "--id: the id has a control character",
            "--node: the node is longer than 253 bytes",
            "--ip: 0.0.0.0 is no pod's own address",
        ] {
            assert!(
                lines.iter().any(|line| line.starts_with(said)),
                "{said}: {lines:?}"
            );
        }
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn labels_must_be_an_object_of_strings() {
        assert_eq!(
            parse_labels("labels", r#"{"app":"web"}"#),
            Ok(labels(&[("app", "web")]))
        );
        for (text, said) in [
            ("{app:web}", "--labels: not valid JSON"),
            ("[]", "--labels: must be a JSON object"),
            (r#"{"app":"a","app":"b"}"#, "--labels: app: is given twice"),
            (
                r#"{"app":1}"#,
                "--labels: the value of `app` must be a string",
            ),
        ] {
            let mistakes = parse_labels("labels", text).unwrap_err();
            assert!(mistakes[0].to_string().starts_with(said), "{mistakes:?}");
        }
    }

    proptest::proptest! {
        /// One set of limits: what a slave takes for its identity, a master takes for a report.
        #[test]
        fn what_a_slave_may_say_a_master_takes(
            names in proptest::collection::btree_set("[a-z\\x01]{0,4}x{0,320}", 0..70),
            value in "[\\x01a]{0,8}",
            times in 0..700_usize,
        ) {
            let map: BTreeMap<String, String> = names.into_iter().map(|name| (name, value.repeat(times))).collect();
            let fixed = [("app", "web"), ("role", "front")].map(|(name, value)| (name.to_owned(), value.to_owned()));
            let given = Given {
                labels: map.iter().take(5).map(|(name, value)| (name.clone(), value.clone())).chain(fixed).collect(),
                annotations: map,
                ..Default::default()
            };
            if let Ok(identity) = given.identity(&Default::default(), "host") {
                let report = kontrol_core::model::Report { labels: identity.labels, annotations: identity.annotations, ..kontrol_core::testing::report(1) };
                proptest::prop_assert_eq!(report.check("", &kontrol_core::limits::Limits::default()), Ok(()));
            }
        }
    }
}
