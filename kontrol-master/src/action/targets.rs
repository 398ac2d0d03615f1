//! Which pods an action is for. PURE.

use kontrol_core::{
    model::{Pod, PodKey, Selector, action::Selection},
    rollout::Target,
    view::View,
};
use std::collections::{BTreeMap, HashSet};

/// The targets: in the order of their seqs, and behind them what was named and is not there. A pod that is named, and
/// does not meet the conditions, is told as well: whoever named it expects something to happen there.
pub(super) fn targets(
    view: &View,
    selection: &Selection,
    keys: &[PodKey],
    labels: &Selector,
) -> Vec<Target> {
    let meets = |pod: &Pod| {
        let role =
            selection.roles.is_empty() || selection.roles.iter().any(|role| role == pod.role());
        role && labels.matches(pod.labels())
    };
    if keys.is_empty() && selection.ids.is_empty() {
        let pods = view.pods().filter(|pod| meets(pod));
        return pods.map(|pod| of(pod)).collect();
    }
    let ids: HashSet<&str> = selection.ids.iter().map(String::as_str).collect();
    let mut named: BTreeMap<u64, &Pod> = BTreeMap::new();
    let mut found: HashSet<&str> = HashSet::new();
    if !ids.is_empty() {
        for pod in view.pods().filter(|pod| ids.contains(pod.id())) {
            found.insert(pod.id());
            named.insert(pod.seq(), pod);
        }
    }
    let mut missing = Vec::new();
    for key in keys {
        match view.member(*key) {
            Some(member) => drop(named.insert(member.pod.seq(), &member.pod)),
            None => missing.push(Target {
                key: key.to_string(),
                id: String::new(),
                pod: Err(format!("no live pod has the key {key}")),
                nonce: String::new(),
            }),
        }
    }
    let (meeting, others): (Vec<&Pod>, Vec<&Pod>) = named.into_values().partition(|pod| meets(pod));
    let others = others.into_iter().map(|pod| Target {
        pod: Err("the pod is there, but does not meet the selector's roles and labels".to_owned()),
        ..of(pod)
    });
    let mut seen = HashSet::new();
    missing.retain(|target| seen.insert(target.key.clone()));
    let unnamed = ids.difference(&found).map(|id| Target {
        key: String::new(),
        id: (*id).to_owned(),
        pod: Err(format!("no live pod has the id {id:?}")),
        nonce: String::new(),
    });
    let mut unnamed: Vec<Target> = unnamed.collect();
    unnamed.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let meeting = meeting.into_iter().map(of);
    meeting
        .chain(others)
        .chain(missing)
        .chain(unnamed)
        .collect()
}

fn of(pod: &Pod) -> Target {
    Target {
        key: pod.key().to_string(),
        id: pod.id().to_owned(),
        pod: Ok(pod.key()),
        nonce: pod.nonce().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::{
        kv::{Entry, Event, Events},
        model::Report,
        testing::report,
        view::pod_key,
    };
    use tokio::time::Instant;

    fn view() -> View {
        let event = |host: u8, id: &str, role: &str| {
            let report = Report {
                id: id.into(),
                role: role.into(),
                ..report(host)
            };
            let pod = Pod::join(report, u64::from(host), 0);
            Event::Put(Entry {
                key: pod_key(pod.key()),
                value: pod.encode().into(),
                create_revision: 1,
                mod_revision: 1,
            })
        };
        let events = vec![
            event(1, "a", "web"),
            event(2, "b", "db"),
            event(3, "a", "db"),
        ];
        View::default()
            .apply(
                &Events {
                    revision: 1,
                    events,
                },
                Instant::now(),
            )
            .0
    }

    fn names(selection: &Selection, keys: &[PodKey]) -> Vec<(String, bool)> {
        let labels = selection.labels.parse().unwrap();
        let targets = targets(&view(), selection, keys, &labels);
        let name = |target: Target| {
            let name = if target.id.is_empty() {
                target.key
            } else {
                target.id
            };
            (name, target.pod.is_ok())
        };
        targets.into_iter().map(name).collect()
    }

    fn selection(ids: &[&str], roles: &[&str]) -> Selection {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Selection {
            ids: texts(ids),
            roles: texts(roles),
            ..Selection::default()
        }
    }

    fn there(name: &str) -> (String, bool) {
        (name.to_owned(), true)
    }

    #[test]
    fn conditions_choose_among_all_in_the_order_of_their_seqs() {
        let all = Selection {
            all: true,
            ..Selection::default()
        };
        assert_eq!(names(&all, &[]), ["a", "b", "a"].map(there));
        assert_eq!(
            names(&selection(&[], &["db", "x"]), &[]),
            ["b", "a"].map(there)
        );
        let labels = Selection {
            labels: "!app,none".into(),
            ..Selection::default()
        };
        assert_eq!(names(&labels, &[]), []);
    }

    #[test]
    fn a_name_means_each_pod_that_has_it_and_what_is_not_there_comes_last() {
        let key = report(2).key();
        let gone = PodKey::ONE;
        let named = names(&selection(&["a", "none", "a"], &[]), &[gone, key, gone]);
        let missing = [gone.to_string(), "none".to_owned()].map(|name| (name, false));
        assert_eq!(
            named,
            [["a", "b", "a"].map(there).as_slice(), &missing].concat()
        );
    }

    #[test]
    fn a_named_pod_that_does_not_meet_the_conditions_is_told() {
        let named = names(&selection(&["a"], &["web"]), &[]);
        assert_eq!(named, [there("a"), ("a".to_owned(), false)]);
    }
}
