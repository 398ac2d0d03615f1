//! The callback's status as users and other masters are told it.

use super::{CallbackStatus, Run, Running};
use kontrol_proto::v1;
use std::time::{Duration, SystemTime};

impl From<CallbackStatus> for v1::CallbackStatus {
    fn from(status: CallbackStatus) -> Self {
        let running = status.running;
        Self {
            configured: status.configured,
            pending_since: status.pending_since.map(Into::into),
            running_since: running.map(|running| running.since.into()),
            last_run: status.last_run.map(Into::into),
            failures: status.failures,
            retry_at: status.retry_at.map(Into::into),
            running_digest: running
                .map(|running| running.digest.to_string())
                .unwrap_or_default(),
            error: status.error,
            due: status.due.map(Into::into),
        }
    }
}

impl From<Run> for v1::CallbackRun {
    fn from(run: Run) -> Self {
        Self {
            digest: run.digest.to_string(),
            start: Some(run.start.into()),
            duration: run.duration.try_into().ok(),
            exit_code: run.exit_code,
            error: run.error.unwrap_or_default(),
        }
    }
}

/// What another master tells. What makes no sense is left out: it is only for display.
impl From<v1::CallbackStatus> for CallbackStatus {
    fn from(told: v1::CallbackStatus) -> Self {
        let digest = told.running_digest.parse().ok();
        let since = time(told.running_since);
        Self {
            configured: told.configured,
            pending_since: time(told.pending_since),
            running: digest
                .zip(since)
                .map(|(digest, since)| Running { digest, since }),
            last_run: told.last_run.and_then(run),
            failures: told.failures,
            retry_at: time(told.retry_at),
            error: told.error,
            due: time(told.due),
        }
    }
}

fn run(told: v1::CallbackRun) -> Option<Run> {
    Some(Run {
        digest: told.digest.parse().ok()?,
        start: time(told.start)?,
        duration: told
            .duration
            .and_then(|duration| Duration::try_from(duration).ok())
            .unwrap_or_default(),
        exit_code: told.exit_code,
        error: Some(told.error).filter(|error| !error.is_empty()),
    })
}

fn time(told: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(told?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::model::Digest;

    #[test]
    fn another_master_is_told_what_this_one_knows() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1001);
        let run = |error: Option<&str>| Run {
            digest: Digest::of_nothing(),
            start: at(3),
            duration: Duration::from_micros(1_500_001),
            exit_code: 3,
            error: error.map(str::to_owned),
        };
        let running = Running {
            digest: Digest::of_nothing(),
            since: at(2),
        };
        let busy = CallbackStatus {
            configured: true,
            pending_since: Some(at(1)),
            running: Some(running),
            last_run: Some(run(Some("exit code 3"))),
            failures: 7,
            retry_at: Some(at(4)),
            error: "the state can't be read".to_owned(),
            due: Some(at(5)),
        };
        let done = CallbackStatus {
            last_run: Some(run(None)),
            ..CallbackStatus::default()
        };
        for status in [busy, done, CallbackStatus::default()] {
            let told = v1::CallbackStatus::from(status.clone());
            assert_eq!(CallbackStatus::from(told), status);
        }
    }
}
