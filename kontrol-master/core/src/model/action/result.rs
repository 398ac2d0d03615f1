//! What becomes of a command on one target, and of all of them in numbers.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// By itself.
    Exited,
    /// It took too long.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// The slave would not run it.
    Refused,
    /// It never got to a slave.
    Unreachable,
    /// It got to a slave that was not heard of again.
    Lost,
}

/// The end of a command on a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Its exit code; 128 + N for a signal, -1 when it did not run or nobody knows.
    pub exit_code: i32,
    /// The signal that ended it; 0: none.
    pub signal: i32,
    /// Why it did not end by itself.
    pub error: String,
    /// How long it ran.
    pub duration: Duration,
    /// How much it wrote to standard output.
    pub stdout_bytes: u64,
    /// How much it wrote to standard error.
    pub stderr_bytes: u64,
    /// Whether a part of its output was not passed on.
    pub truncated: bool,
}

impl Ended {
    /// An end that no slave told.
    pub fn untold(outcome: Outcome, error: impl Into<String>) -> Self {
        Self {
            outcome,
            exit_code: -1,
            signal: 0,
            error: error.into(),
            duration: Duration::ZERO,
            stdout_bytes: 0,
            stderr_bytes: 0,
            truncated: false,
        }
    }

    /// Whether it exited with code 0.
    pub fn succeeded(&self) -> bool {
        self.outcome == Outcome::Exited && self.exit_code == 0
    }
}

/// An action in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// All targets.
    pub targets: u32,
    /// Exited with code 0.
    pub succeeded: u32,
    /// Exited otherwise.
    pub failed: u32,
    /// Timed out.
    pub timed_out: u32,
    /// Cancelled.
    pub cancelled: u32,
    /// Refused.
    pub refused: u32,
    /// Unreachable.
    pub unreachable: u32,
    /// Lost.
    pub lost: u32,
    /// Too many failed, so that the rest did not start.
    pub stopped: bool,
}

impl Counts {
    /// Counts one end.
    pub fn add(&mut self, ended: &Ended) {
        let count = match ended.outcome {
            Outcome::Exited if ended.succeeded() => &mut self.succeeded,
            Outcome::Exited => &mut self.failed,
            Outcome::TimedOut => &mut self.timed_out,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Refused => &mut self.refused,
            Outcome::Unreachable => &mut self.unreachable,
            Outcome::Lost => &mut self.lost,
        };
        *count += 1;
    }

    /// How many did not exit with code 0.
    pub fn failures(&self) -> u32 {
        let others = [
            self.timed_out,
            self.cancelled,
            self.refused,
            self.unreachable,
            self.lost,
        ];
        // A record of the store can say anything.
        let sum = |sum: u32, count| sum.saturating_add(count);
        others.into_iter().fold(self.failed, sum)
    }

    /// How many have ended.
    pub fn ended(&self) -> u32 {
        self.succeeded.saturating_add(self.failures())
    }
}
