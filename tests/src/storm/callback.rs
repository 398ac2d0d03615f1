//! I3, I6, I7: one run at a time, none for what was handled, each with the state that is there; what was put is there.
//!
//! Every state of a storm has a member `id` that no other has; what a run prints has its own.

use super::{
    record::{History, Time},
    store::bounds,
};
use crate::history;
use serde_json::Value;

/// How long before the first line of a run its state may have been read, on a busy machine.
const READ: Time = 3.0;

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
    let states = states(history);
    for run in &history.runs {
        // A run that was stopped or whose master lost its place stores nothing, whatever it was given.
        if !states.iter().any(|state| state.id == run.id) {
            continue;
        }
        let given = run.read.as_ref().and_then(|read| read.state.as_ref());
        let given = given
            .and_then(|state| state["id"].as_str())
            .unwrap_or_default();
        let known = states
            .iter()
            .any(|state| state.id == given && state.current(history, run.start));
        // Nothing is there before the first.
        let first = states
            .first()
            .is_some_and(|first| bounds(history, first.from).1 >= run.start - READ);
        if !(known || given.is_empty() && first) {
            found.push(format!(
                "the run {} was given the state {given:?}, which was not there when it started at {:.3}",
                run.id, run.start
            ));
        }
    }
    for put in &history.puts {
        let mut stored = states.iter().filter(|state| state.from == put.revision);
        if !stored.any(|state| state.id == put.id) {
            found.push(format!(
                "{} was put at revision {}, and is not there",
                put.id, put.revision
            ));
        }
    }
    found
}

/// A state from the write that made it to the next.
struct State {
    id: String,
    from: i64,
    until: Option<i64>,
}

impl State {
    /// Whether it can have been the present one when a run that started then was made ready.
    fn current(&self, history: &History, start: Time) -> bool {
        let mut read = start - READ;
        for fault in &history.faults {
            if fault.from <= start && read < fault.ready {
                read = read.min(fault.from);
            }
        }
        let goes = self.until.map(|revision| bounds(history, revision).1);
        bounds(history, self.from).0 <= start && goes.is_none_or(|latest| latest >= read)
    }
}

fn states(history: &History) -> Vec<State> {
    let mut states: Vec<State> = Vec::new();
    for change in history
        .changes
        .iter()
        .filter(|change| change.key == "state")
    {
        let id = change.value.as_ref().map(state).unwrap_or_default();
        let id = id["id"].as_str().unwrap_or_default().to_owned();
        if let Some(last) = states.last_mut() {
            // Where only the digest is noted, the state stays.
            if last.id == id {
                continue;
            }
            last.until = Some(change.revision);
        }
        states.push(State {
            id,
            from: change.revision,
            until: None,
        });
    }
    states
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
    use super::{
        super::{
            record::{Change, Put},
            samples::history,
        },
        *,
    };
    use crate::script::{Read, Run};
    use serde_json::json;

    fn of(states: &[(i64, &str)], runs: &[(f64, &str, &str)]) -> History {
        let change = |(second, id): &(i64, &str)| Change {
            revision: second * 10,
            key: "state".into(),
            value: Some(json!({"state": {"id": id}, "digest": "d"})),
        };
        let run = |(start, id, given): &(f64, &str, &str)| Run {
            id: (*id).to_owned(),
            start: *start,
            last: *start,
            hash: (*id).to_owned(),
            read: Some(Read {
                state: Some(json!({"id": given})),
                ..Read::default()
            }),
            ..Run::default()
        };
        History {
            changes: states.iter().map(change).collect(),
            runs: runs.iter().map(run).collect(),
            ..history(&[])
        }
    }

    #[test]
    fn each_run_is_given_the_state_that_is_there() {
        let stored = [(10, "a"), (20, "p"), (30, "b"), (40, "c")];
        let good = [(9.0, "a", ""), (25.0, "b", "p"), (39.0, "c", "b")];
        let mut history = of(&stored, &good);
        history.puts = vec![Put {
            id: "p".into(),
            revision: 200,
        }];
        assert_eq!(violations(&history), Vec::<String>::new());
        // What was put between is overlooked.
        let stale = [(25.0, "b", "a")];
        assert_eq!(violations(&of(&stored, &stale)).len(), 1);
        history.puts[0].revision = 300;
        assert_eq!(violations(&history).len(), 1, "not there");
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
        let of_runs = |runs: &[Run]| History {
            runs: runs.to_vec(),
            ..History::default()
        };
        let good = [run(0.0, "a", ""), run(1.0, "b", "a")];
        assert_eq!(violations(&of_runs(&good)), Vec::<String>::new());
        assert_eq!(
            violations(&of_runs(&[run(0.0, "a", ""), run(0.5, "b", "a")])).len(),
            1
        );
        assert_eq!(
            violations(&of_runs(&[run(0.0, "a", ""), run(1.0, "a", "a")])).len(),
            1
        );
    }
}
