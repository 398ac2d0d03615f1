//! The two rosters of a trial: made up, or those of a tier with one pod made up beside them. PURE.
//!
//! No real pod is ever said to have left: a callback may destroy what it believes to be gone. What has left at the second
//! run was made up for the first.

use kontrol_core::model::{Exact, Pod, Report};
use kontrol_proto::v1;
use kontrol_slave::payload::from_proto;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Most pods that are made up.
pub(super) const MAX_PODS: u32 = 100_000;
/// Addresses for benchmarks (RFC 2544), which no host has: room for more than `MAX_PODS`.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Addresses for documentation (RFC 5737), which no host has either.
const MADE_UP_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The pod that is made up beside real ones.
pub(super) const MADE_UP_ID: &str = "callback-test";

/// What a trial hands to a callback.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    /// The pods of the first run, in seq order.
    pub(super) first: Vec<Arc<Pod>>,
    /// Those of the second.
    pub(super) second: Vec<Arc<Pod>>,
    /// The state that the first run finds.
    pub(super) state: Option<Exact>,
    /// The epoch of the leader.
    pub(super) epoch: i64,
}

impl Scene {
    /// So many pods, always the same. For the second run the first has left, the next has another payload, and one joined.
    pub(super) fn made_up(count: u32) -> Self {
        let first: Vec<_> = (0..count).map(|number| made_up(number, 1)).collect();
        let mut second: Vec<_> = first.iter().skip(1).cloned().collect();
        if let Some(changed) = second.first_mut() {
            *changed = made_up(1, 2);
        }
        second.push(made_up(count, 1));
        Self {
            first,
            second,
            state: None,
            epoch: 1,
        }
    }

    /// The pods and the state of a tier. At the first run there is one more pod, like the last of them but at an address
    /// that nobody has; for the second it has left. An error tells what can't be read.
    pub(super) fn of(tier: kontrol_cli::Tier) -> Result<Self, String> {
        let real = tier.pods.into_iter().map(|pod| {
            let key = pod.key.clone();
            self::pod(pod).map_err(|reason| format!("the pod {key} can't be read: {reason}"))
        });
        let second: Vec<Arc<Pod>> = real.collect::<Result<_, _>>()?;
        let state = tier.state.as_deref().map(|text| {
            Exact::read(text.as_bytes())
                .map_err(|fault| format!("the state can't be read: {fault}"))
        });
        let mut first = second.clone();
        first.push(beside(&second));
        Ok(Self {
            first,
            second,
            state: state.transpose()?,
            epoch: tier.epoch,
        })
    }
}

/// A pod by its number: two of three are stable, the third is a canary, over two zones.
fn made_up(number: u32, version: u32) -> Arc<Pod> {
    let ip = IpAddr::V4(Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + number));
    let role = if number % 3 == 2 { "canary" } else { "web" };
    let zone = if number.is_multiple_of(2) { "a" } else { "b" };
    let labels = [("app", "demo"), ("role", role), ("zone", zone)];
    let report = Report {
        app: "demo".to_owned(),
        id: format!("web-{number}"),
        ip,
        role: role.to_owned(),
        nonce: format!("{number:016x}"),
        payload: json!({"load": number % 10, "version": version}),
        down: false,
        beat: 0,
        labels: BTreeMap::from(labels.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        annotations: BTreeMap::new(),
        node: format!("node-{zone}"),
        by: None,
    };
    Arc::new(Pod::join(report, u64::from(number), 0))
}

/// A pod behind these, like the last of them.
fn beside(pods: &[Arc<Pod>]) -> Arc<Pod> {
    let Some(last) = pods.last() else {
        return made_up(0, 1);
    };
    let taken: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.ip()).collect();
    let ip = (0..).map(|host| IpAddr::V4(Ipv4Addr::from_bits(MADE_UP_ADDRESS.to_bits() + host)));
    let ip = ip.into_iter().find(|ip| !taken.contains(ip));
    let report = Report {
        app: last.app().to_owned(),
        id: MADE_UP_ID.to_owned(),
        ip: ip.unwrap_or(IpAddr::V4(MADE_UP_ADDRESS)),
        role: last.role().to_owned(),
        nonce: String::new(),
        payload: last.payload().clone(),
        down: false,
        beat: 0,
        labels: last.labels().clone(),
        annotations: BTreeMap::new(),
        node: last.node().to_owned(),
        by: None,
    };
    Arc::new(Pod::join(report, last.seq().saturating_add(1), 0))
}

/// A pod as a master tells it.
fn pod(pod: v1::Pod) -> Result<Arc<Pod>, String> {
    let ip: IpAddr = pod
        .ip
        .parse()
        .map_err(|_| format!("{:?} is not an IP address", pod.ip))?;
    let payload = match pod.payload {
        Some(payload) => from_proto(payload).map_err(|error| format!("its payload {error}"))?,
        None => Value::String(String::new()),
    };
    let report = Report {
        app: pod.app,
        id: pod.id,
        ip: ip.to_canonical(),
        role: pod.role,
        nonce: pod.nonce,
        payload,
        down: false,
        beat: 0,
        labels: pod.labels.into_iter().collect(),
        annotations: pod.annotations.into_iter().collect(),
        node: pod.node,
        by: None,
    };
    Ok(Arc::new(Pod::join(report, pod.seq, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ensemble::callback::changes;
    use kontrol_core::{
        limits::Limits,
        model::{Digest, Reason},
    };
    use kontrol_slave::payload::to_proto;

    fn ids(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.id()).collect()
    }

    /// How many pods joined, changed and left between the two runs.
    fn changed(scene: &Scene) -> [usize; 3] {
        let before = (Digest::of(scene.first.iter()), &scene.first);
        let document = changes::document(Some(before), &scene.second, |_| Reason::Lost);
        let document: Value = serde_json::from_slice(&document).unwrap();
        ["joined", "changed", "left"].map(|list| document[list].as_array().unwrap().len())
    }

    #[test]
    fn what_is_made_up_is_always_the_same_and_changes_in_every_way() {
        let scene = Scene::made_up(3);
        assert_eq!(scene, Scene::made_up(3));
        assert_eq!(ids(&scene.first), ["web-0", "web-1", "web-2"]);
        assert_eq!(ids(&scene.second), ["web-1", "web-2", "web-3"]);
        assert_eq!(
            (scene.first[2].role(), scene.state.is_none()),
            ("canary", true)
        );
        for (count, changes) in [
            (0, [1, 0, 0]),
            (1, [1, 0, 1]),
            (2, [1, 1, 1]),
            (1000, [1, 1, 1]),
        ] {
            assert_eq!(changed(&Scene::made_up(count)), changes, "{count}");
        }
        let last = made_up(MAX_PODS, 1);
        assert!(
            last.ip().to_string().starts_with("198.19."),
            "{}",
            last.ip()
        );
    }

    #[test]
    fn every_pod_that_is_made_up_is_one_that_a_master_takes() {
        for pod in &Scene::made_up(5).first {
            let report = Report {
                app: pod.app().to_owned(),
                id: pod.id().to_owned(),
                ip: pod.ip(),
                role: pod.role().to_owned(),
                nonce: pod.nonce().to_owned(),
                payload: pod.payload().clone(),
                down: false,
                beat: 0,
                labels: pod.labels().clone(),
                annotations: BTreeMap::new(),
                node: pod.node().to_owned(),
                by: None,
            };
            assert_eq!(
                report.check(&pod.key().to_string(), &Limits::default()),
                Ok(())
            );
        }
    }

    fn told(seq: u64, ip: &str) -> v1::Pod {
        v1::Pod {
            key: format!("key-{seq}"),
            id: format!("db-{seq}"),
            app: "a".into(),
            ip: ip.into(),
            role: "db".into(),
            seq,
            payload: Some(to_proto(&json!({"n": seq}))),
            ..v1::Pod::default()
        }
    }

    fn tier(pods: Vec<v1::Pod>, state: Option<&str>) -> kontrol_cli::Tier {
        kontrol_cli::Tier {
            pods,
            state: state.map(str::to_owned),
            epoch: 7,
        }
    }

    #[test]
    fn of_real_pods_none_ever_leaves() {
        let pods = vec![told(4, "10.0.0.4"), told(9, "192.0.2.1")];
        let scene = Scene::of(tier(pods, Some("[1.0]"))).unwrap();
        assert_eq!(ids(&scene.first), ["db-4", "db-9", MADE_UP_ID]);
        assert_eq!(ids(&scene.second), ["db-4", "db-9"]);
        assert_eq!(changed(&scene), [0, 0, 1]);
        let made_up = &scene.first[2];
        assert_eq!((made_up.seq(), made_up.role()), (10, "db"));
        assert_eq!(made_up.ip().to_string(), "192.0.2.2", "another has .1");
        assert_eq!(made_up.payload(), &json!({"n": 9}));
        assert_eq!(scene.state.unwrap().as_str(), "[1.0]");
        assert_eq!(scene.epoch, 7);
        let nobody = Scene::of(tier(Vec::new(), None)).unwrap();
        assert_eq!((nobody.first.len(), nobody.second.len()), (1, 0));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Scene::of(tier(vec![told(1, "nowhere")], None)).unwrap_err();
        assert_eq!(
            error,
            "the pod key-1 can't be read: \"nowhere\" is not an IP address"
        );
        let error = Scene::of(tier(Vec::new(), Some("{"))).unwrap_err();
        assert!(error.starts_with("the state can't be read: "), "{error}");
    }
}
