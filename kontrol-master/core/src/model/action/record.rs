//! An action as the store keeps it, readable with etcdctl.
//!
//! A record must fit into one write. Where there are too many targets for that, it first leaves out the ends of their
//! output, then their names, and at last those that succeeded, which are counted all the same.

use super::{ActionId, Counts, Ended, Outcome};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest record, in bytes: one write of the store has room for it and for a fence.
pub const MAX_RECORD_BYTES: usize = 768 * 1024;

/// Where an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Some targets have not ended.
    Running,
    /// All have.
    Finished,
}

/// Which pods an action is for, as it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Pods by key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Pods by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Roles, of which a pod has one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// A label selector.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub labels: String,
    /// Every pod.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What runs, without what may be secret: the values of its variables, and its input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandRecord {
    /// A program and its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Or text for a shell.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shell: String,
    /// The names of its variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
}

/// All of an action but the results of its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its id.
    pub id: ActionId,
    /// Where it is.
    pub state: State,
    /// Who dispatched it.
    pub dispatcher: String,
    /// The id of the master that carries it.
    pub master: String,
    /// Which start of that master it is.
    pub instance: String,
    /// That master's candidacy when it wrote this (`leader/<lease>`): nobody takes the action over while the key is there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lease: String,
    /// When it was accepted, in milliseconds since 1970.
    pub created_ms: u64,
    /// When the last target ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// How long it may run on each target.
    pub timeout_ms: u64,
    /// It goes on without its dispatcher.
    #[serde(default)]
    pub detach: bool,
    /// Which pods it is for.
    pub selector: Selection,
    /// What runs.
    pub command: CommandRecord,
    /// How it went so far.
    pub summary: Counts,
}

/// One target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultRecord {
    /// Its key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Which incarnation got the order or, before its turn, is to get it; empty once it has ended, or where there is no pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// How it ended; absent while it hasn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Its exit code.
    #[serde(skip_serializing_if = "is_zero")]
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "is_zero")]
    pub signal: i32,
    /// Why it did not end by itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// How long it ran, in milliseconds.
    #[serde(skip_serializing_if = "is_nothing")]
    pub duration_ms: u64,
    /// How much it wrote to standard output.
    #[serde(skip_serializing_if = "is_nothing")]
    pub stdout_bytes: u64,
    /// How much it wrote to standard error.
    #[serde(skip_serializing_if = "is_nothing")]
    pub stderr_bytes: u64,
    /// A part of its output was not passed on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The end of standard output, as far as it is text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stdout_tail: String,
    /// The end of standard error, as far as it is text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

impl ResultRecord {
    /// Says how it ended.
    pub fn end(&mut self, ended: &Ended) {
        self.outcome = Some(ended.outcome);
        self.exit_code = ended.exit_code;
        self.signal = ended.signal;
        self.error.clone_from(&ended.error);
        self.duration_ms = u64::try_from(ended.duration.as_millis()).unwrap_or(u64::MAX);
        self.stdout_bytes = ended.stdout_bytes;
        self.stderr_bytes = ended.stderr_bytes;
        self.truncated = ended.truncated;
    }

    /// How it ended; nothing while it hasn't.
    pub fn ended(&self) -> Option<Ended> {
        Some(Ended {
            outcome: self.outcome?,
            exit_code: self.exit_code,
            signal: self.signal,
            error: self.error.clone(),
            duration: Duration::from_millis(self.duration_ms),
            stdout_bytes: self.stdout_bytes,
            stderr_bytes: self.stderr_bytes,
            truncated: self.truncated,
        })
    }
}

/// An action as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// All but the results.
    #[serde(flatten)]
    pub head: Head,
    /// The targets, those that succeeded left out where they are too many.
    #[serde(default)]
    pub results: Vec<ResultRecord>,
}

impl Record {
    /// The bytes to store, of at most [`MAX_RECORD_BYTES`]: what a head may have is far less.
    pub fn encode(mut self) -> Vec<u8> {
        let leave_out: [fn(&mut Vec<ResultRecord>); 4] = [
            |results| {
                for result in results {
                    result.stdout_tail.clear();
                    result.stderr_tail.clear();
                }
            },
            |results| {
                for result in results {
                    if !result.key.is_empty() {
                        result.id.clear();
                    }
                    result.error = result.error.chars().take(80).collect();
                }
            },
            |results| {
                results.retain(|result| {
                    !(result.outcome == Some(Outcome::Exited) && result.exit_code == 0)
                });
            },
            Vec::clear,
        ];
        let mut bytes = self.to_bytes();
        for step in leave_out {
            if bytes.len() <= MAX_RECORD_BYTES {
                break;
            }
            step(&mut self.results);
            bytes = self.to_bytes();
        }
        bytes
    }

    fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers become JSON; should that fail, the store refuses the empty value.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(targets: usize, tail: usize) -> Record {
        let result = |number: usize| ResultRecord {
            key: format!("{number:06}"),
            id: format!("pod-{number}"),
            nonce: "00000000000000aa".into(),
            outcome: Some(Outcome::Exited),
            exit_code: i32::from(number.is_multiple_of(100)),
            stdout_tail: "x".repeat(tail),
            ..ResultRecord::default()
        };
        Record {
            head: Head {
                id: ActionId::new(1, 2),
                state: State::Finished,
                dispatcher: "127.0.0.1".into(),
                master: "m".into(),
                instance: "00".into(),
                lease: "1f".into(),
                created_ms: 1,
                finished_ms: Some(2),
                timeout_ms: 60_000,
                detach: false,
                selector: Selection {
                    all: true,
                    ..Selection::default()
                },
                command: CommandRecord {
                    argv: vec!["true".into()],
                    ..CommandRecord::default()
                },
                summary: Counts::default(),
            },
            results: (0..targets).map(result).collect(),
        }
    }

    #[test]
    fn a_record_reads_back_and_its_head_alone_as_well() {
        let record = record(3, 10);
        let bytes = record.clone().encode();
        assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), record);
        assert_eq!(serde_json::from_slice::<Head>(&bytes).unwrap(), record.head);
    }

    #[test]
    fn a_record_that_is_too_large_loses_the_least_important_first() {
        let read = |targets, tail| {
            let bytes = record(targets, tail).encode();
            assert!(bytes.len() <= MAX_RECORD_BYTES, "{}", bytes.len());
            serde_json::from_slice::<Record>(&bytes).unwrap().results
        };
        let tails = read(1000, 1000);
        assert_eq!((tails.len(), tails[0].stdout_tail.len()), (1000, 0));
        assert_eq!(tails[1].id, "pod-1");
        let failures = read(50_000, 0);
        assert_eq!(failures.len(), 500, "those that failed are kept");
        assert!(failures.iter().all(|result| result.exit_code == 1));
    }
}
