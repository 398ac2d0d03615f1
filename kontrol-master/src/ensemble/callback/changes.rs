//! The CHANGES document: what joined, changed and left since the digest handled last. PURE.

use kontrol_core::{
    json,
    model::{Digest, Pod, PodKey, Reason},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// The CHANGES document: `{"changed":[pod...],"joined":[pod...],"left":[pod...],"since":digest}`, each list in seq order,
/// pods as in the PODS document; those that left have a `reason` as well.
///
/// `handled` is the digest handled last with the pods it stood for. Without it every pod has joined, since `null`. A pod
/// whose id or seq is another is another pod at the same address: one left, one joined. `reason` tells why a pod left.
pub fn document<'a, H, C>(
    handled: Option<(Digest, H)>,
    current: C,
    reason: impl Fn(&Pod) -> Reason,
) -> Vec<u8>
where
    H: IntoIterator<Item = &'a Arc<Pod>>,
    C: IntoIterator<Item = &'a Arc<Pod>>,
{
    let (since, handled) = match handled {
        Some((digest, pods)) => (format!("\"{digest}\""), by_key(pods)),
        None => ("null".to_owned(), BTreeMap::new()),
    };
    let current = by_key(current);
    let stays = |old: &Pod, new: &Pod| old.id() == new.id() && old.seq() == new.seq();

    let (mut joined, mut changed, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for (key, new) in &current {
        match handled.get(key) {
            Some(old) if stays(old, new) => {
                if old.canonical() != new.canonical() {
                    changed.push(*new);
                }
            }
            _ => joined.push(*new),
        }
    }
    for (key, old) in &handled {
        if !current.get(key).is_some_and(|new| stays(old, new)) {
            left.push(*old);
        }
    }

    let mut document = Vec::new();
    for (name, mut pods) in [(&b"{\"changed\":"[..], changed), (b",\"joined\":", joined)] {
        pods.sort_by_key(|pod| pod.seq());
        document.extend_from_slice(name);
        document.extend(kontrol_core::model::digest::pods_document(pods.into_iter()));
    }
    document.extend_from_slice(b",\"left\":");
    left.sort_by_key(|pod| pod.seq());
    let left = left.into_iter().map(|pod| explained(pod, reason(pod)));
    document.extend(json::canonical(&left.collect()));
    document.extend_from_slice(b",\"since\":");
    document.extend_from_slice(since.as_bytes());
    document.push(b'}');
    document
}

/// A pod as in the PODS document, and why it left.
fn explained(pod: &Pod, reason: Reason) -> Value {
    // What a pod keeps of itself is an object that it has written.
    let mut object: Value = serde_json::from_slice(pod.canonical()).unwrap_or_else(|_| json!({}));
    object["reason"] = json!(reason);
    object
}

fn by_key<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> BTreeMap<PodKey, &'a Arc<Pod>> {
    pods.into_iter().map(|pod| (pod.key(), pod)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::{model::Report, testing::report};
    use proptest::prelude::*;

    fn pod(host: u8, seq: u64) -> Arc<Pod> {
        Arc::new(Pod::join(report(host), seq, 1))
    }

    fn with(host: u8, seq: u64, change: impl FnOnce(&mut Report)) -> Arc<Pod> {
        let mut report = report(host);
        change(&mut report);
        Arc::new(Pod::join(report, seq, 1))
    }

    /// The document where nobody knows why pods left.
    fn document<'a, H, C>(handled: Option<(Digest, H)>, current: C) -> Vec<u8>
    where
        H: IntoIterator<Item = &'a Arc<Pod>>,
        C: IntoIterator<Item = &'a Arc<Pod>>,
    {
        super::document(handled, current, |_| Reason::Unknown)
    }

    fn read(document: &[u8]) -> Value {
        let value = serde_json::from_slice(document).unwrap();
        assert_eq!(
            json::canonical(&value),
            document,
            "the document is canonical"
        );
        value
    }

    fn seqs(changes: &Value, list: &str) -> Vec<u64> {
        let pods = changes[list].as_array().unwrap().iter();
        pods.map(|pod| pod["seq"].as_u64().unwrap()).collect()
    }

    #[test]
    fn without_a_baseline_every_pod_has_joined_in_seq_order() {
        let current = [pod(1, 9), pod(2, 3)];
        let changes = read(&document(None::<(Digest, [_; 0])>, &current));
        assert_eq!(seqs(&changes, "joined"), [3, 9]);
        assert_eq!(changes["since"], json!(null));
        assert_eq!(changes["left"], json!([]));
    }

    #[test]
    fn joined_changed_and_left_are_told_apart() {
        let old = [pod(1, 0), pod(2, 1), pod(3, 2), pod(4, 3)];
        let digest = Digest::of(old.iter());
        let current = [
            pod(1, 0),
            with(2, 1, |report| report.payload = json!({"hot": true})),
            with(4, 3, |report| report.id = "other".into()),
            pod(5, 4),
        ];
        let changes = read(&document(Some((digest, &old)), &current));
        assert_eq!(changes["since"], json!(digest.to_string()));
        assert_eq!(seqs(&changes, "joined"), [3, 4]);
        assert_eq!(seqs(&changes, "changed"), [1]);
        assert_eq!(seqs(&changes, "left"), [2, 3]);
        assert_eq!(changes["changed"][0]["payload"], json!({"hot": true}));
        assert_eq!(changes["left"][1]["id"], json!("web-4"));
    }

    #[test]
    fn those_that_left_say_why() {
        let old = [
            pod(1, 0),
            with(2, 1, |report| report.payload = json!(1.5)),
            pod(3, 2),
        ];
        let digest = Digest::of(old.iter());
        let why = |pod: &Pod| match pod.seq() {
            0 => Reason::Down,
            _ => Reason::Lost,
        };
        let changes = read(&super::document(Some((digest, &old)), &[pod(3, 2)], why));
        assert_eq!(changes["left"][0]["reason"], "DOWN");
        let mut left = changes["left"][1].clone();
        assert_eq!(left["reason"], "LOST");
        left.as_object_mut().unwrap().remove("reason");
        assert_eq!(json::canonical(&left), old[1].canonical(), "else as it was");
    }

    #[test]
    fn a_pod_that_came_back_with_another_seq_left_and_joined() {
        let old = [pod(1, 0)];
        let changes = read(&document(
            Some((Digest::of(old.iter()), &old)),
            &[pod(1, 7)],
        ));
        assert_eq!(seqs(&changes, "left"), [0]);
        assert_eq!(seqs(&changes, "joined"), [7]);
    }

    #[test]
    fn what_the_digest_leaves_out_is_no_change() {
        let old = [pod(1, 0)];
        let now = [with(1, 0, |report| report.beat = 99)];
        let changes = read(&document(Some((Digest::of(old.iter()), &old)), &now));
        assert_eq!(changes["changed"], json!([]));
    }

    proptest! {
        /// Whoever applies the changes to the roster handled last gets the roster of now.
        #[test]
        fn changes_lead_from_one_roster_to_the_other(
            old in prop::collection::btree_map(0_u8..20, (0_u64..4, any::<bool>()), 0..12),
            new in prop::collection::btree_map(0_u8..20, (0_u64..4, any::<bool>()), 0..12),
        ) {
            let roster = |pods: BTreeMap<u8, (u64, bool)>| -> Vec<Arc<Pod>> {
                pods.into_iter()
                    .map(|(host, (seq, hot))| with(host, u64::from(host) * 10 + seq, |r| r.payload = json!(hot)))
                    .collect()
            };
            let (old, new) = (roster(old), roster(new));
            let changes = read(&document(Some((Digest::of(old.iter()), &old)), &new));
            let by_seq = |pods: &[Value]| -> BTreeMap<u64, Value> {
                pods.iter().map(|pod| (pod["seq"].as_u64().unwrap(), pod.clone())).collect()
            };
            let values = |pods: &[Arc<Pod>]| -> Vec<Value> {
                pods.iter().map(|pod| serde_json::from_slice(pod.canonical()).unwrap()).collect()
            };
            let mut applied = by_seq(&values(&old));
            for pod in changes["left"].as_array().unwrap() {
                let mut removed = applied.remove(&pod["seq"].as_u64().unwrap()).unwrap();
                removed["reason"] = json!("UNKNOWN");
                prop_assert_eq!(&removed, pod);
            }
            for pod in changes["joined"].as_array().unwrap() {
                prop_assert!(applied.insert(pod["seq"].as_u64().unwrap(), pod.clone()).is_none());
            }
            for pod in changes["changed"].as_array().unwrap() {
                let before = applied.insert(pod["seq"].as_u64().unwrap(), pod.clone());
                prop_assert!(before.is_some() && before.as_ref() != Some(pod));
            }
            prop_assert_eq!(applied, by_seq(&values(&new)));
        }
    }
}
