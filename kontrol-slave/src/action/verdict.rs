//! How an action ended, as its master is told. It only decides: no clock, no IO.

use crate::process::{Cause, End, Report, Status};
use kontrol_proto::v1::{
    ActionResult, Outcome,
    attach_request::{Event, Finished},
};
use std::time::Duration;

/// Exit codes, as a shell has them.
const BY_SIGNAL: i32 = 128;

/// Why an action is to end before it ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Cancelled,
    SlaveStops,
}

/// How an action ended whose command did not run to an end of its own, and why.
pub(super) struct NotRun {
    outcome: Outcome,
    pub(super) reason: String,
}

impl NotRun {
    pub(super) fn new(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
        }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::new(Outcome::Refused, reason)
    }

    /// As the report of an action that is not kept.
    pub(super) fn told(self, action_id: String) -> Event {
        let result = Some(self.result());
        Event::Finished(Finished { action_id, result })
    }

    pub(super) fn result(self) -> ActionResult {
        ActionResult {
            outcome: self.outcome.into(),
            exit_code: -1,
            error: self.reason,
            ..ActionResult::default()
        }
    }
}

/// The end of what did not run because it was asked to end before.
pub(super) fn cancelled(stop: Option<Stop>) -> NotRun {
    let reason = match stop {
        Some(Stop::SlaveStops) => "the slave stops",
        Some(Stop::Cancelled) | None => "the action was cancelled",
    };
    NotRun::new(Outcome::Cancelled, reason)
}

/// How it ended, from what the guard reported.
pub(super) fn judge(end: End, stop: Option<Stop>, timeout: Duration) -> ActionResult {
    let (cause, status) = match end.report {
        Some(Report::Ended(cause, status)) => (cause, status),
        Some(Report::NotStarted(reason)) => {
            let reason = format!("the command could not be started: {reason}");
            return NotRun::refused(reason).result();
        }
        None if stop.is_some() => return cancelled(stop).result(),
        None if end.overdue => {
            let limit = crate::duration::show(timeout);
            let reason = format!("it did not end within {limit}, and its guard was stopped");
            return ActionResult {
                signal: 9,
                exit_code: BY_SIGNAL + 9,
                ..NotRun::new(Outcome::TimedOut, reason).result()
            };
        }
        None => {
            let reason = format!(
                "the guard of the command was killed ({}), and the command with it",
                end.status
            );
            return ActionResult {
                signal: 9,
                exit_code: BY_SIGNAL + 9,
                ..NotRun::new(Outcome::Exited, reason).result()
            };
        }
    };
    let (outcome, error) = match cause {
        Cause::Itself => (Outcome::Exited, String::new()),
        Cause::Lease => {
            let limit = crate::duration::show(timeout);
            (Outcome::TimedOut, format!("it did not end within {limit}"))
        }
        Cause::Stop | Cause::ParentGone => (Outcome::Cancelled, cancelled(stop).reason),
        Cause::Signal => (
            Outcome::Cancelled,
            "the guard of the command was asked to end".to_owned(),
        ),
    };
    let (exit_code, signal) = match status {
        Status::Exited(code) => (code, 0),
        Status::Killed(signal) => (BY_SIGNAL + signal, signal),
        Status::NotRun => (-1, 0),
    };
    ActionResult {
        outcome: outcome.into(),
        exit_code,
        signal,
        error,
        ..ActionResult::default()
    }
}
