//! Counts how an action goes: what to tell while it runs, and the exit code at its end.

use kontrol_proto::v1::{ActionResult, Outcome};
use std::collections::HashSet;

/// How an action goes so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    targets: usize,
    ended: usize,
    failed: usize,
    /// The keys of those that started and did not end.
    running: HashSet<String>,
    worst: u8,
}

impl Tally {
    pub(super) fn new(targets: usize) -> Self {
        Self {
            targets,
            ..Self::default()
        }
    }

    /// The command started on a target.
    pub(super) fn started(&mut self, key: &str) {
        self.running.insert(key.to_owned());
    }

    /// The command ended on a target, or never will start there.
    pub(super) fn finished(&mut self, result: &ActionResult) {
        let code = exit_code(result);
        self.running.remove(&result.key);
        self.ended += 1;
        self.failed += usize::from(code != 0);
        self.worst = self.worst.max(code);
    }

    /// The exit code for all targets: the highest.
    pub(super) fn exit_code(&self) -> u8 {
        self.worst
    }

    /// `12/200 done, 1 failed, 20 running`; nothing to tell of a single target.
    pub(super) fn progress(&self) -> Option<String> {
        let Self {
            targets,
            ended,
            failed,
            ref running,
            ..
        } = *self;
        let failed = match failed {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let running = running.len();
        (targets > 1).then(|| format!("{ended}/{targets} done{failed}, {running} running"))
    }
}

/// The exit code for one target, in the spirit of shells and of timeout(1); 0 only when the command ended well.
pub(super) fn exit_code(result: &ActionResult) -> u8 {
    match result.outcome() {
        // What no process can exit with, nobody understands.
        Outcome::Exited => u8::try_from(result.exit_code).unwrap_or(255),
        Outcome::TimedOut => 124,
        Outcome::Refused => 126,
        Outcome::Cancelled => 130,
        Outcome::Unreachable | Outcome::Lost | Outcome::Unspecified => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(key: &str, outcome: Outcome, exit_code: i32) -> ActionResult {
        ActionResult {
            key: key.to_owned(),
            outcome: outcome.into(),
            exit_code,
            ..ActionResult::default()
        }
    }

    #[test]
    fn each_ending_has_its_exit_code() {
        for (outcome, given, code) in [
            (Outcome::Exited, 0, 0),
            (Outcome::Exited, 3, 3),
            (Outcome::Exited, 137, 137),
            (Outcome::Exited, -1, 255),
            (Outcome::Exited, 256, 255),
            (Outcome::TimedOut, 143, 124),
            (Outcome::Refused, -1, 126),
            (Outcome::Cancelled, 143, 130),
            (Outcome::Unreachable, -1, 255),
            (Outcome::Lost, -1, 255),
            (Outcome::Unspecified, 0, 255),
        ] {
            assert_eq!(exit_code(&result("a", outcome, given)), code, "{outcome:?}");
        }
    }

    #[test]
    fn the_highest_exit_code_wins() {
        let mut tally = Tally::new(3);
        assert_eq!(tally.exit_code(), 0);
        for (code, worst) in [(3, 3), (0, 3), (137, 137), (1, 137)] {
            tally.finished(&result("a", Outcome::Exited, code));
            assert_eq!(tally.exit_code(), worst);
        }
    }

    #[test]
    fn progress_counts_each_target_once() {
        let mut tally = Tally::new(200);
        for key in ["a", "b", "c"] {
            tally.started(key);
        }
        tally.finished(&result("a", Outcome::Exited, 0));
        assert_eq!(tally.progress().unwrap(), "1/200 done, 2 running");
        tally.finished(&result("b", Outcome::Lost, -1));
        // This one never started.
        tally.finished(&result("", Outcome::Unreachable, -1));
        assert_eq!(tally.progress().unwrap(), "3/200 done, 2 failed, 1 running");
        assert_eq!(Tally::new(1).progress(), None);
    }
}
