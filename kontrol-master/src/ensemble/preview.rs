//! What the next run of the callback would be handed, and what it waits for. Any master tells it: what is handed is in the
//! store, and how the schedule stands the leader tells with the callback's status. What was handled last the store may have
//! forgotten; then only the leader can tell it.

use super::{
    callback::standard_input,
    operate::held,
    term::{self, Handled, Memory},
};
use crate::cluster::{error::Error, status::CallbackStatus, store::SharedStore, times};
use kontrol_core::{model::Digest, view::View};
use kontrol_runtime::duration::show;
use std::time::{Duration, SystemTime};

/// What the next run would be handed.
#[derive(Debug)]
pub struct Preview {
    /// The digest of the roster.
    pub digest: Digest,
    /// The digest that was handled last; empty before the first time.
    pub handled: String,
    /// What it would find on its standard input.
    pub input: Vec<u8>,
    /// What it waits for.
    pub waits: Vec<Wait>,
}

/// Something that the next run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What it is.
    pub why: Why,
    /// Until when, where that is known.
    pub until: Option<SystemTime>,
    /// In words.
    pub text: String,
}

/// What a run waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The leader has no callback.
    NoCallback,
    /// Nobody leads.
    NoLeader,
    /// The digest was handled.
    NothingNew,
    /// The roster has to stand still.
    Damper,
    /// The run before failed.
    Retry,
    /// An operator holds the callback.
    Held,
    /// Another run goes on.
    Running,
    /// The safeguard keeps silent pods in the list.
    Safeguard,
    /// Something is wrong.
    Trouble,
}

/// Shows what a run would be handed that starts now.
pub async fn preview(
    store: &SharedStore,
    view: &View,
    status: &CallbackStatus,
    memory: &Memory,
) -> Result<Preview, Error> {
    let remembered = memory.now();
    let leads = remembered.is_some();
    let handled = remembered.unwrap_or_else(|| Handled::recorded(view));
    let input = term::next_input(store, view, &handled, leads).await;
    let input = input.map_err(Error::Unavailable)?;
    let known = handled.known().map(|digest| digest.to_string());
    Ok(Preview {
        digest: input.digest,
        handled: known.unwrap_or_default(),
        waits: waits(view, status, &handled, SystemTime::now()),
        input: standard_input(input),
    })
}

fn waits(view: &View, status: &CallbackStatus, handled: &Handled, now: SystemTime) -> Vec<Wait> {
    let mut waits = Vec::new();
    let mut add = |why, until: Option<SystemTime>, text: String| {
        waits.push(Wait { why, until, text });
    };
    let left = |until: SystemTime| {
        let left = until.duration_since(now).unwrap_or_default();
        // Whole seconds, as people read it.
        show(Duration::from_secs(left.as_secs_f64().ceil() as u64))
    };
    let (operate, _) = view.operate();
    if view.leader().is_none() {
        add(Why::NoLeader, None, "no master leads".to_owned());
    } else if !status.configured {
        let text = "the leader has no callback, or has told this master of none yet";
        add(Why::NoCallback, None, text.to_owned());
    }
    if !status.error.is_empty() {
        add(Why::Trouble, None, status.error.clone());
    }
    if let Some(running) = status.running {
        let text = format!("a run for {} goes on", running.digest);
        add(Why::Running, None, text);
    }
    if let Some(hold) = held(operate) {
        let until = times::at(hold.until_ms);
        let text = format!(
            "{} holds the callback for {} more: {}",
            hold.by,
            left(until),
            hold.reason
        );
        add(Why::Held, Some(until), text);
    }
    if handled.covers(view) {
        add(
            Why::NothingNew,
            None,
            "this digest was handled: nothing is new".to_owned(),
        );
    } else {
        if let Some(due) = status.due.filter(|due| *due > now) {
            let text = format!("the roster has to stand still for {} more", left(due));
            add(Why::Damper, Some(due), text);
        }
        if let Some(retry) = status.retry_at.filter(|retry| *retry > now) {
            let text = format!(
                "the run before failed, and is tried again in {}",
                left(retry)
            );
            add(Why::Retry, Some(retry), text);
        }
    }
    if let Some(freeze) = &operate.safeguard {
        let text = format!(
            "no run waits for it: {} of {} pods are silent, and the safeguard keeps them in the list",
            freeze.silent, freeze.pods
        );
        add(Why::Safeguard, None, text);
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::status::Running;
    use kontrol_core::{
        kv::{Entry, Snapshot},
        view::{STATE, StateRecord},
    };
    use tokio::time::Instant;

    #[test]
    fn each_thing_that_a_run_waits_for_is_told() {
        let view = View::default();
        let now = SystemTime::now();
        let later = now + Duration::from_secs(3);
        let whys = |status: &CallbackStatus, handled: &Handled| -> Vec<Why> {
            let waits = waits(&view, status, handled, now);
            waits.iter().map(|wait| wait.why).collect()
        };
        let idle = CallbackStatus {
            configured: true,
            ..CallbackStatus::default()
        };
        // An empty roster needs no run before the first time.
        let nothing = Handled::default();
        assert_eq!(whys(&idle, &nothing), [Why::NoLeader, Why::NothingNew]);
        let busy = CallbackStatus {
            running: Some(Running {
                digest: Digest::of_nothing(),
                since: now,
            }),
            due: Some(later),
            retry_at: Some(later),
            error: "the state can't be read".to_owned(),
            ..idle
        };
        let state = StateRecord {
            digest: "0".repeat(32),
            ..StateRecord::default()
        };
        let snapshot = Snapshot {
            revision: 1,
            entries: vec![Entry {
                key: STATE.to_owned(),
                value: serde_json::to_vec(&state).unwrap().into(),
                create_revision: 1,
                mod_revision: 1,
            }],
        };
        let (of_another, _) = view.replace(&snapshot, Instant::now());
        assert_eq!(
            whys(&busy, &Handled::recorded(&of_another)),
            [
                Why::NoLeader,
                Why::Trouble,
                Why::Running,
                Why::Damper,
                Why::Retry
            ]
        );
    }
}
