//! What came of a run, from what the guard reports, what it was told, and what the program wrote. PURE.

use super::{Failure, output};
use kontrol_core::model::Exact;
use kontrol_runtime::process::{Cause, Report, Status};
use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

/// What came of a run: the guard's report and exit status, what it was asked to stop for, and the output.
pub(super) fn judge(
    report: Option<Report>,
    guard: ExitStatus,
    asked: Option<Failure>,
    stdout: &[u8],
) -> (i32, Result<Option<Exact>, Failure>) {
    let (cause, status) = match report {
        Some(Report::Ended(cause, status)) => (cause, status),
        Some(Report::NotStarted(reason)) => return (-1, Err(Failure::NotStarted(reason))),
        None => {
            let code = guard.code().or(guard.signal().map(|signal| 128 + signal));
            let lost = Failure::GuardLost(guard.to_string());
            return (code.unwrap_or(-1), Err(asked.unwrap_or(lost)));
        }
    };
    let outcome = match (cause, status, asked) {
        (_, _, Some(failure @ Failure::TooLong(_))) => Err(failure),
        (Cause::Itself, Status::Exited(0), _) => output::state(stdout).map_err(Failure::NotJson),
        (Cause::Itself, Status::Exited(code), _) => Err(Failure::Exit(code)),
        (Cause::Itself, Status::Killed(signal), _) => Err(Failure::Signal(signal)),
        (Cause::Lease, _, _) => Err(Failure::LeaseUnconfirmed),
        (_, _, asked) => Err(asked.unwrap_or(Failure::Stopped)),
    };
    (status.code(), outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(
        cause: Cause,
        status: Status,
        asked: Option<Failure>,
    ) -> (i32, Result<Option<Exact>, Failure>) {
        let report = Some(Report::Ended(cause, status));
        judge(report, ExitStatus::from_raw(0), asked, b"{\"a\":1}")
    }

    #[test]
    fn only_a_program_that_ended_by_itself_with_0_succeeds() {
        let state = Ok(Some(Exact::read(b"{\"a\":1}").unwrap()));
        let (exited, killed) = (Status::Exited(0), Status::Killed(15));
        assert_eq!(judged(Cause::Itself, exited, None), (0, state.clone()));
        assert_eq!(
            judged(Cause::Itself, exited, Some(Failure::Stopped)),
            (0, state),
            "the stop came too late"
        );
        for (cause, status, asked, code, failure) in [
            (Cause::Itself, Status::Exited(3), None, 3, Failure::Exit(3)),
            (Cause::Itself, killed, None, 143, Failure::Signal(15)),
            (
                Cause::Stop,
                exited,
                Some(Failure::Stopped),
                0,
                Failure::Stopped,
            ),
            (
                Cause::Lease,
                killed,
                Some(Failure::Stopped),
                143,
                Failure::LeaseUnconfirmed,
            ),
            (Cause::Signal, killed, None, 143, Failure::Stopped),
            (
                Cause::Lease,
                Status::NotRun,
                None,
                -1,
                Failure::LeaseUnconfirmed,
            ),
            (
                Cause::Itself,
                exited,
                Some(Failure::TooLong(9)),
                0,
                Failure::TooLong(9),
            ),
        ] {
            assert_eq!(judged(cause, status, asked), (code, Err(failure)));
        }
    }

    #[test]
    fn a_guard_without_a_report_is_a_failure() {
        let (code, outcome) = judge(None, ExitStatus::from_raw(9), None, b"{}");
        assert_eq!(code, 137);
        assert!(matches!(outcome, Err(Failure::GuardLost(_))));
    }
}
