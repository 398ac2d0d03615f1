//! Label selectors, held against an evaluation that knows nothing of the parser. PURE.

use super::{parts, said};
use crate::model::Selector;
use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// A selector, and behind a NUL labels as `name=value` lines: it is shown as it is meant, and matches as it is shown.
pub fn selector(data: &[u8]) {
    let Some([text, lines]) = parts(data) else {
        return;
    };
    let selector: Selector = match text.parse() {
        Ok(selector) => selector,
        Err(error) => return said(error),
    };
    let shown = selector.to_string();
    assert_eq!(shown.parse().as_ref(), Ok(&selector), "{shown:?}");
    assert_eq!(selector.is_empty(), shown.is_empty());
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let given: Labels = pairs.map(|(n, v)| (n.into(), v.into())).collect();
    let check = |labels: &Labels| {
        let holds = requirements(&shown).all(|one| holds(one, labels));
        assert_eq!(selector.matches(labels), holds, "{shown:?} {labels:?}");
    };
    check(&Labels::new());
    check(&given);
    // Labels that the selector speaks of are hard to come upon.
    for (name, value) in requirements(&shown).flat_map(mentioned) {
        let mut labels = given.clone();
        labels.insert(name.into(), value.into());
        check(&labels);
    }
}

/// The requirements of a selector as it is shown: between commas that stand in no brackets.
fn requirements(shown: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    shown
        .split(move |c| {
            inside = (inside || c == '(') && c != ')';
            c == ',' && !inside
        })
        .filter(|one| !one.is_empty())
}

/// The name and the values of `name in (a,b)` and `name notin (a,b)`, and which of the two it is.
fn among(one: &str) -> Option<(&str, Vec<&str>, bool)> {
    let (head, values) = one.strip_suffix(')')?.split_once(" (")?;
    let (name, word) = head.rsplit_once(' ')?;
    Some((name, values.split(',').collect(), word == "in"))
}

fn holds(one: &str, labels: &Labels) -> bool {
    let is_one_of = |name: &str, values: &[&str]| {
        let value = labels.get(name);
        value.is_some_and(|value| values.contains(&value.as_str()))
    };
    if let Some(name) = one.strip_prefix('!') {
        !labels.contains_key(name)
    } else if let Some((name, values, is_in)) = among(one) {
        is_one_of(name, &values) == is_in
    } else if let Some((name, value)) = one.split_once("!=") {
        !is_one_of(name, &[value])
    } else if let Some((name, value)) = one.split_once('=') {
        is_one_of(name, &[value])
    } else {
        labels.contains_key(one)
    }
}

/// Labels that a requirement is about.
fn mentioned(one: &str) -> Vec<(&str, &str)> {
    if let Some((name, values, _)) = among(one) {
        return values.into_iter().map(|value| (name, value)).collect();
    }
    let one = one.strip_prefix('!').unwrap_or(one);
    let pair = one.split_once("!=").or_else(|| one.split_once('='));
    let (name, value) = pair.unwrap_or((one, ""));
    vec![(name, value), (name, "x")]
}
