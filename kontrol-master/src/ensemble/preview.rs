//! What the next run of the callback would be handed, and what it waits for. Any master tells it: what is handed is in the
//! store, and how the schedule stands the leader tells with the callback's status.

use super::{callback::standard_input, operate::held, term};
use crate::cluster::{error::Error, status::CallbackStatus, store::SharedStore, times};
use kontrol_core::{model::Digest, view::View};
use kontrol_runtime::duration::show;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

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
    view: &Arc<View>,
    status: &CallbackStatus,
) -> Result<Preview, Error> {
    let input = term::input(store, view).await.map_err(Error::Unavailable)?;
    let handled = view.state().map(|(state, _)| state.digest.clone());
    let handled = handled.unwrap_or_default();
    Ok(Preview {
        digest: input.digest,
        waits: waits(view, status, &handled, SystemTime::now()),
        handled,
        input: standard_input(input),
    })
}

fn waits(view: &View, status: &CallbackStatus, handled: &str, now: SystemTime) -> Vec<Wait> {
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
    if view.digest().to_string() == handled || (handled.is_empty() && view.is_empty()) {
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

    #[test]
    fn each_thing_that_a_run_waits_for_is_told() {
        let view = View::default();
        let now = SystemTime::now();
        let later = now + Duration::from_secs(3);
        let whys = |status: &CallbackStatus, handled: &str| -> Vec<Why> {
            let waits = waits(&view, status, handled, now);
            waits.iter().map(|wait| wait.why).collect()
        };
        let idle = CallbackStatus {
            configured: true,
            ..CallbackStatus::default()
        };
        assert_eq!(whys(&idle, ""), [Why::NoLeader, Why::NothingNew]);
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
        assert_eq!(
            whys(&busy, "0"),
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
