//! How an action ended, as its master is told. It only decides: no clock, no IO.

use super::call::{CallEnd, How};
use kontrol_proto::v1::{
    ActionResult, Outcome,
    attach_request::{Event, Finished},
};
use kontrol_runtime::{
    command_line::one_line,
    process::{Cause, End, Report, Status},
};
use std::time::Duration;

/// Exit codes, as a shell has them.
const BY_SIGNAL: i32 = 128;
const SIGKILL: i32 = 9;
/// The exit code of a handler that panicked: that of a Rust program which did.
const PANICKED: i32 = 101;

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

/// The end of what was killed with its guard, which could not report it.
fn killed(outcome: Outcome, reason: String) -> ActionResult {
    ActionResult {
        signal: SIGKILL,
        exit_code: BY_SIGNAL + SIGKILL,
        ..NotRun::new(outcome, reason).result()
    }
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
            let limit = kontrol_runtime::duration::show(timeout);
            let reason = format!("it did not end within {limit}, and its guard was stopped");
            return killed(Outcome::TimedOut, reason);
        }
        None => {
            let reason = format!(
                "the guard of the command was killed ({}), and the command with it",
                end.status
            );
            return killed(Outcome::Exited, reason);
        }
    };
    let (outcome, error) = by_cause(cause, stop, timeout);
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

/// What an end counts as, and why.
fn by_cause(cause: Cause, stop: Option<Stop>, timeout: Duration) -> (Outcome, String) {
    match cause {
        Cause::Itself => (Outcome::Exited, String::new()),
        Cause::Lease => {
            let limit = kontrol_runtime::duration::show(timeout);
            (Outcome::TimedOut, format!("it did not end within {limit}"))
        }
        Cause::Stop | Cause::ParentGone => (Outcome::Cancelled, cancelled(stop).reason),
        Cause::Signal => (
            Outcome::Cancelled,
            "the guard of the command was asked to end".to_owned(),
        ),
    }
}

/// How a call of the handler ended.
pub(super) fn judge_call(end: CallEnd, stop: Option<Stop>, timeout: Duration) -> ActionResult {
    let (mut outcome, error) = by_cause(end.cause, stop, timeout);
    let (exit_code, said) = match end.how {
        How::Answered(Ok(code)) => (code.into(), String::new()),
        How::Answered(Err(refused)) => {
            if outcome == Outcome::Exited {
                outcome = Outcome::Refused;
            }
            (-1, refused.to_string())
        }
        How::Panicked(words) => (PANICKED, format!("the handler panicked: {words}")),
        How::Dropped => (-1, String::new()),
        How::Deaf => {
            let deaf = "the handler blocks, so that nothing can end it";
            (-1, deaf.to_owned())
        }
    };
    let said = [error, one_line(&said)];
    let said: Vec<String> = said.into_iter().filter(|said| !said.is_empty()).collect();
    ActionResult {
        outcome: outcome.into(),
        exit_code,
        error: said.join("; "),
        ..ActionResult::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    /// The outcome, the exit code and the signal of what a guard said, or did not say.
    fn verdict(
        report: Option<Report>,
        overdue: bool,
        stop: Option<Stop>,
    ) -> (Outcome, i32, i32, String) {
        let end = End {
            status: ExitStatus::from_raw(9),
            report,
            left: Vec::new(),
            overdue,
        };
        let result = judge(end, stop, Duration::from_secs(60));
        (
            result.outcome(),
            result.exit_code,
            result.signal,
            result.error,
        )
    }

    #[test]
    fn what_the_guard_reports_decides() {
        use Outcome::{Cancelled, Exited, TimedOut};
        let cancelled = "the action was cancelled";
        let late = "it did not end within 1m";
        for (cause, status, expected) in [
            (Cause::Itself, Status::Exited(0), (Exited, 0, 0, "")),
            (Cause::Itself, Status::Exited(3), (Exited, 3, 0, "")),
            (Cause::Itself, Status::Killed(11), (Exited, 139, 11, "")),
            (Cause::Lease, Status::Killed(15), (TimedOut, 143, 15, late)),
            (Cause::Lease, Status::Exited(0), (TimedOut, 0, 0, late)),
            (
                Cause::Stop,
                Status::Killed(9),
                (Cancelled, 137, 9, cancelled),
            ),
            (Cause::Stop, Status::NotRun, (Cancelled, -1, 0, cancelled)),
        ] {
            let (outcome, exit_code, signal, error) = expected;
            assert_eq!(
                verdict(Some(Report::Ended(cause, status)), false, None),
                (outcome, exit_code, signal, error.to_owned())
            );
        }
        let not_started = Some(Report::NotStarted("no such user".into()));
        let (outcome, exit_code, _, error) = verdict(not_started, false, None);
        assert_eq!((outcome, exit_code), (Outcome::Refused, -1));
        assert!(error.ends_with("no such user"), "{error}");
    }

    #[test]
    fn a_handler_ends_as_a_command_does() {
        use Outcome::{Cancelled, Exited, Refused, TimedOut};
        let verdict = |cause, how, stop| {
            let result = judge_call(CallEnd { cause, how }, stop, Duration::from_secs(60));
            assert_eq!(result.signal, 0);
            (result.outcome(), result.exit_code, result.error)
        };
        let no = || How::Answered(Err(crate::action::handler::Refused::new("no")));
        let late = "it did not end within 1m";
        for (cause, how, expected) in [
            (Cause::Itself, How::Answered(Ok(0)), (Exited, 0, "")),
            (Cause::Itself, How::Answered(Ok(255)), (Exited, 255, "")),
            (Cause::Itself, no(), (Refused, -1, "no")),
            (
                Cause::Itself,
                How::Panicked("x".into()),
                (Exited, 101, "the handler panicked: x"),
            ),
            (Cause::Lease, How::Answered(Ok(0)), (TimedOut, 0, late)),
            (Cause::Lease, How::Dropped, (TimedOut, -1, late)),
            (
                Cause::Stop,
                How::Dropped,
                (Cancelled, -1, "the action was cancelled"),
            ),
            (
                Cause::Stop,
                no(),
                (Cancelled, -1, "the action was cancelled; no"),
            ),
        ] {
            let (outcome, exit_code, error) = expected;
            let expected = (outcome, exit_code, error.to_owned());
            assert_eq!(verdict(cause, how, Some(Stop::Cancelled)), expected);
        }
        let (outcome, _, error) = verdict(Cause::Lease, How::Deaf, None);
        assert!(outcome == TimedOut && error.starts_with(late) && error.contains("blocks"));
        let (.., error) = verdict(Cause::ParentGone, How::Dropped, Some(Stop::SlaveStops));
        assert_eq!(error, "the slave stops");
        let (.., error) = verdict(Cause::Itself, How::Panicked("ä".repeat(9999)), None);
        assert!(error.len() < 1100 && error.ends_with('…'), "{error}");
    }

    #[test]
    fn a_guard_that_says_nothing_was_killed_for_what_is_known_here() {
        let (outcome, exit_code, signal, error) = verdict(None, false, None);
        assert_eq!((outcome, exit_code, signal), (Outcome::Exited, 137, 9));
        assert!(error.contains("guard"), "{error}");
        let (outcome, exit_code, signal, _) = verdict(None, true, None);
        assert_eq!((outcome, exit_code, signal), (Outcome::TimedOut, 137, 9));
        let (outcome, exit_code, _, error) = verdict(None, true, Some(Stop::SlaveStops));
        assert_eq!((outcome, exit_code), (Outcome::Cancelled, -1));
        assert_eq!(error, "the slave stops");
    }
}
