//! I3, I6, I7: one run at a time, none for what was handled, each state follows from the one before, none is lost.
//!
//! Every state of a storm has a member `id` that no other has; what a run prints has beside it the `id` of the state that it
//! was given, as `parent`.

use super::record::History;
use crate::history;
use serde_json::Value;
use std::collections::BTreeMap;

/// What breaks the promises about the callback and its state.
pub(super) fn violations(history: &History) -> Vec<String> {
    let mut found = history::violations(&history.runs);
    for run in &history.runs {
        let changes = run.read.as_ref().and_then(|read| read.changes.as_ref());
        let since = changes.and_then(|changes| changes["since"].as_str());
        if since == Some(run.hash.as_str()) {
            found.push(format!(
                "a run started for {}, which was handled last",
                run.hash
            ));
        }
    }
    let mut last = Value::Null;
    let mut stored: BTreeMap<i64, String> = BTreeMap::new();
    for change in history
        .changes
        .iter()
        .filter(|change| change.key == "state")
    {
        let Some(state) = change.value.as_ref().map(state) else {
            found.push(format!("the state is gone at revision {}", change.revision));
            continue;
        };
        let id = state["id"].clone();
        stored.insert(change.revision, id.as_str().unwrap_or_default().to_owned());
        // What was there stays when only the digest is noted; what was put follows from nothing.
        if id != last && state.get("parent").is_some_and(|parent| *parent != last) {
            found.push(format!(
                "the state {id} at revision {} was made from {}, and {last} was there",
                change.revision, state["parent"]
            ));
        }
        last = id;
    }
    for put in &history.puts {
        if stored.get(&put.revision) != Some(&put.id) {
            found.push(format!(
                "{} was put at revision {}, and is not there",
                put.id, put.revision
            ));
        }
    }
    found
}

/// The state in the record that holds it, as a value or as its text.
fn state(record: &Value) -> Value {
    let state = &record["state"];
    match state.as_str().or(record["json"].as_str()) {
        Some(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        None => state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Change, Put};
    use super::*;
    use crate::script::{Read, Run};
    use serde_json::json;

    fn states(states: &[Value]) -> History {
        let change = |(index, state): (usize, &Value)| Change {
            revision: index as i64 + 1,
            key: "state".into(),
            value: Some(json!({"state": state, "digest": "d"})),
        };
        History {
            changes: states.iter().enumerate().map(change).collect(),
            ..History::default()
        }
    }

    #[test]
    fn each_state_follows_from_the_one_before() {
        let first = json!({"id": "a", "parent": null});
        let put = json!({"id": "p"});
        let second = json!({"id": "b", "parent": "p"});
        let mut good = states(&[first.clone(), put.clone(), put.clone(), second]);
        good.puts = vec![Put {
            id: "p".into(),
            revision: 2,
        }];
        assert_eq!(violations(&good), Vec::<String>::new());
        // A run that was given the state before the put replaces it.
        let stale = json!({"id": "b", "parent": "a"});
        assert_eq!(violations(&states(&[first.clone(), put, stale])).len(), 1);
        let mut lost = states(&[first]);
        lost.puts = vec![Put {
            id: "p".into(),
            revision: 2,
        }];
        assert_eq!(violations(&lost).len(), 1);
    }

    #[test]
    fn runs_at_once_and_for_what_was_handled_are_found() {
        let run = |start: f64, hash: &str, since: &str| Run {
            start,
            last: start + 1.0,
            hash: hash.into(),
            read: Some(Read {
                changes: Some(json!({"since": since})),
                ..Read::default()
            }),
            ..Run::default()
        };
        let of = |runs: &[Run]| History {
            runs: runs.to_vec(),
            ..History::default()
        };
        let good = [run(0.0, "a", ""), run(1.0, "b", "a")];
        assert_eq!(violations(&of(&good)), Vec::<String>::new());
        assert_eq!(
            violations(&of(&[run(0.0, "a", ""), run(0.5, "b", "a")])).len(),
            1
        );
        assert_eq!(
            violations(&of(&[run(0.0, "a", ""), run(1.0, "a", "a")])).len(),
            1
        );
    }
}
