//! I5: each target runs an action once, has one end, the same for whoever looks, and its output is whole or marked.

use super::record::{Acted, History};
use kontrol_proto::v1::{ActionResult, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// Whether its master could not reach the store. Such an action runs all the same, and its record is written once the store
/// is back; a master that ends before takes it along.
fn was_never_written(history: &History, action: &Acted) -> bool {
    let key = format!("actions/{}", action.id);
    let mut faults = history.faults.iter();
    faults.any(|fault| {
        (fault.from..=fault.ready).contains(&action.accepted) && fault.keeps_from_store()
    }) && !history
        .changes
        .iter()
        .any(|change| change.key.starts_with(&key))
}

/// What breaks the promises about actions.
pub(super) fn violations(history: &History) -> Vec<String> {
    let mut starts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut ends: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (action, id, what) in &history.executions {
        if what == "start" {
            *starts.entry((action, id)).or_default() += 1;
        } else {
            ends.insert((action, id));
        }
    }
    let mut found: Vec<String> = starts
        .iter()
        .filter(|(_, count)| **count > 1)
        .map(|((action, id), count)| format!("{action} ran {count} times on {id}"))
        .collect();
    for action in &history.actions {
        let mut complain = |text: String| found.push(format!("{}: {text}", action.id));
        for key in &action.twice {
            complain(format!("{key} ended twice"));
        }
        let Some(recorded) = &action.recorded else {
            if was_never_written(history, action) {
                continue;
            }
            complain("has no end in the history".to_owned());
            continue;
        };
        let mut by_key: BTreeMap<&str, &ActionResult> = BTreeMap::new();
        for result in recorded {
            let name = if result.key.is_empty() {
                &result.id
            } else {
                &result.key
            };
            if by_key.insert(name, result).is_some() {
                complain(format!("{name} has two results in the history"));
            }
        }
        for (key, id) in &action.targets {
            let at = (action.id.as_str(), id.as_str());
            let Some(recorded) = by_key.get(key.as_str()) else {
                complain(format!("{id} has no result in the history"));
                continue;
            };
            match action.told.get(key) {
                Some(told) if end(told) != end(recorded) => complain(format!(
                    "{id} ended as {:?} in its stream and as {:?} in the history",
                    end(told),
                    end(recorded)
                )),
                None if action.summed => complain(format!("{id} has no end in a whole stream")),
                _ => {}
            }
            let ran = starts.contains_key(&at);
            match recorded.outcome() {
                Outcome::Unreachable | Outcome::Refused if ran => {
                    complain(format!("{id} is {:?}, and ran it", recorded.outcome()))
                }
                Outcome::Exited if !ran => complain(format!("{id} exited, and did not run it")),
                Outcome::Exited if recorded.exit_code == 0 && recorded.signal == 0 => {
                    if !ends.contains(&at) {
                        complain(format!("{id} exited well, and did not come to its end"));
                    }
                    complain_of_output(action, key, id, &mut complain);
                }
                Outcome::Unspecified
                | Outcome::Exited
                | Outcome::TimedOut
                | Outcome::Cancelled
                | Outcome::Refused
                | Outcome::Unreachable
                | Outcome::Lost => {}
            }
        }
    }
    found
}

/// The end of a target, as far as it must be the same for all.
fn end(result: &ActionResult) -> (Outcome, i32, i32) {
    (result.outcome(), result.exit_code, result.signal)
}

fn complain_of_output(action: &Acted, key: &str, id: &str, complain: &mut impl FnMut(String)) {
    let told = action.told.get(key).is_some_and(|told| !told.truncated);
    if !told || action.truncated.contains(key) {
        return;
    }
    let got = action
        .stdout
        .get(key)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if got != action.text.as_bytes() {
        complain(format!(
            "{id} wrote {} bytes, of which {} came, and nothing is marked",
            action.text.len(),
            got.len()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::{Change, Fault},
        *,
    };
    use serde_json::json;

    fn result(outcome: Outcome) -> ActionResult {
        ActionResult {
            key: "k".into(),
            id: "a".into(),
            outcome: outcome.into(),
            ..ActionResult::default()
        }
    }

    fn good() -> History {
        let action = Acted {
            id: "x".into(),
            targets: BTreeMap::from([("k".to_owned(), "a".to_owned())]),
            text: "hello".into(),
            told: BTreeMap::from([("k".to_owned(), result(Outcome::Exited))]),
            stdout: BTreeMap::from([("k".to_owned(), b"hello".to_vec())]),
            summed: true,
            recorded: Some(vec![result(Outcome::Exited)]),
            ..Acted::default()
        };
        let line = |what: &str| ("x".to_owned(), "a".to_owned(), what.to_owned());
        History {
            actions: vec![action],
            executions: vec![line("start"), line("end")],
            ..History::default()
        }
    }

    /// What the judge says, and how the history breaks a promise.
    type Case = (&'static str, fn(&mut History));

    #[test]
    fn an_action_that_was_never_written_is_excused_where_its_master_did_not_reach_the_store() {
        for (kind, accepted, excused) in [
            ("Island+Rolling", 5.0, true),
            ("Island+Rolling", 15.0, false),
            ("Kill", 5.0, false),
        ] {
            let mut all = good();
            all.actions[0].accepted = accepted;
            all.actions[0].recorded = None;
            all.faults.push(Fault {
                kind: kind.into(),
                from: 4.0,
                mended: 8.0,
                ready: 10.0,
            });
            assert_eq!(violations(&all).is_empty(), excused, "{kind} {accepted}");
            let key = format!("actions/{}", all.actions[0].id);
            all.changes.push(Change {
                revision: 55,
                key,
                value: Some(json!({})),
            });
            assert!(!violations(&all).is_empty(), "it has a record");
        }
    }

    #[test]
    fn each_break_of_the_promises_is_found() {
        assert_eq!(violations(&good()), Vec::<String>::new());
        let cases: [Case; 8] = [
            ("ran 2 times", |all| {
                all.executions.push(all.executions[0].clone())
            }),
            ("did not run", |all| all.executions.clear()),
            ("did not come to its end", |all| all.executions.truncate(1)),
            ("ended as", |all| {
                all.actions[0]
                    .told
                    .insert("k".into(), result(Outcome::Lost));
            }),
            ("no end in a whole stream", |all| {
                all.actions[0].told.clear()
            }),
            ("no end in the history", |all| {
                all.actions[0].recorded = None
            }),
            ("no result", |all| {
                all.actions[0].recorded = Some(Vec::new())
            }),
            ("nothing is marked", |all| {
                all.actions[0].stdout.insert("k".into(), b"hel".to_vec());
            }),
        ];
        for (complaint, break_it) in cases {
            let mut history = good();
            break_it(&mut history);
            let found = violations(&history);
            assert!(
                found.len() == 1 && found[0].contains(complaint),
                "{complaint}: {found:?}"
            );
        }
    }

    #[test]
    fn what_surely_did_not_run_did_not() {
        let mut history = good();
        history.actions[0].told.clear();
        history.actions[0].summed = false;
        history.actions[0].recorded = Some(vec![result(Outcome::Unreachable)]);
        assert_eq!(violations(&history).len(), 1);
        history.executions.clear();
        assert_eq!(violations(&history), Vec::<String>::new());
    }
}
