//! Between protobuf and what actions are to the master. What a peer or a slave says that makes no sense is ignored.

use super::attachment::Attachment;
use crate::cluster::times::{at, span};
use bytes::Bytes;
use kontrol_core::{
    model::action::{ActionId, Counts, Ended, Head, Outcome, Record, ResultRecord, State},
    rollout::{Order, Said, Slave, Stream, Target},
};
use kontrol_proto::{
    internal::v1::{Incarnation, exchange_response::Attached},
    v1::{
        self, Action, ActionResult, ActionState, ActionSummary, AttachResponse, Command, Selector,
        attach_request::Event,
        attach_response::{self, Cancel, Credit, Forget, Resume, Run},
    },
};
use kontrol_runtime::clock::now_ms;
use std::time::Duration;

/// An order about an action; `run` is what to run, for an order that says so.
pub(super) fn order(order: Order, action: &ActionId, run: Option<&Run>) -> AttachResponse {
    let action_id = action.to_string();
    let order = match order {
        Order::Run => attach_response::Order::Run(run.cloned().unwrap_or_default()),
        Order::Resume { stdout, stderr } => attach_response::Order::Resume(Resume {
            action_id,
            stdout_offset: stdout,
            stderr_offset: stderr,
        }),
        Order::Credit { stdout, stderr } => attach_response::Order::Credit(Credit {
            action_id,
            stdout_offset: stdout,
            stderr_offset: stderr,
        }),
        Order::Cancel => attach_response::Order::Cancel(Cancel { action_id }),
        Order::Forget => attach_response::Order::Forget(Forget { action_id }),
    };
    AttachResponse { order: Some(order) }
}

/// The action that an order is about.
pub(super) fn action_of_order(order: &AttachResponse) -> Option<ActionId> {
    let id = match order.order.as_ref()? {
        attach_response::Order::Welcome(_) => return None,
        attach_response::Order::Run(run) => &run.action_id,
        attach_response::Order::Resume(resume) => &resume.action_id,
        attach_response::Order::Credit(credit) => &credit.action_id,
        attach_response::Order::Cancel(cancel) => &cancel.action_id,
        attach_response::Order::Forget(forget) => &forget.action_id,
    };
    id.parse().ok()
}

/// The action that a slave speaks of.
pub(super) fn action_of(event: &Event) -> Option<ActionId> {
    let id = match event {
        Event::Hello(_) => return None,
        Event::Started(started) => &started.action_id,
        Event::Output(output) => &output.action_id,
        Event::Finished(finished) => &finished.action_id,
        Event::Unknown(unknown) => &unknown.action_id,
    };
    id.parse().ok()
}

/// What a slave says of an action.
pub(super) fn said(event: Event) -> Option<Said> {
    match event {
        Event::Hello(_) => None,
        Event::Started(_) => Some(Said::Started),
        Event::Output(output) => Some(Said::Output {
            stream: match output.stream() {
                v1::Stream::Unspecified => return None,
                v1::Stream::Stdout => Stream::Stdout,
                v1::Stream::Stderr => Stream::Stderr,
            },
            offset: output.offset,
            data: output.data,
            truncated: output.truncated,
        }),
        Event::Finished(finished) => finished.result.and_then(ended).map(Said::Finished),
        Event::Unknown(_) => Some(Said::Unknown),
    }
}

/// Longest reason that a slave may give, in characters.
const MAX_ERROR_CHARS: usize = 1024;

/// How a command ended, as its slave tells it.
fn ended(result: ActionResult) -> Option<Ended> {
    let duration = result.duration.unwrap_or_default();
    Some(Ended {
        outcome: match result.outcome() {
            v1::Outcome::Unspecified => return None,
            v1::Outcome::Exited => Outcome::Exited,
            v1::Outcome::TimedOut => Outcome::TimedOut,
            v1::Outcome::Cancelled => Outcome::Cancelled,
            v1::Outcome::Refused => Outcome::Refused,
            v1::Outcome::Unreachable => Outcome::Unreachable,
            v1::Outcome::Lost => Outcome::Lost,
        },
        exit_code: result.exit_code,
        signal: result.signal,
        error: result.error.chars().take(MAX_ERROR_CHARS).collect(),
        duration: Duration::try_from(duration).unwrap_or_default(),
        stdout_bytes: result.stdout_bytes,
        stderr_bytes: result.stderr_bytes,
        truncated: result.truncated,
    })
}

/// How a command ended on a target, as dispatchers are told.
pub(crate) fn result(target: &Target, ended: &Ended) -> ActionResult {
    ActionResult {
        key: target.key.clone(),
        id: target.id.clone(),
        outcome: outcome(ended.outcome).into(),
        exit_code: ended.exit_code,
        signal: ended.signal,
        error: ended.error.clone(),
        duration: span(ended.duration),
        stdout_bytes: ended.stdout_bytes,
        stderr_bytes: ended.stderr_bytes,
        truncated: ended.truncated,
        ..ActionResult::default()
    }
}

/// A target as the history keeps it.
fn kept_result(result: ResultRecord) -> ActionResult {
    ActionResult {
        outcome: result
            .outcome
            .map_or(v1::Outcome::Unspecified, outcome)
            .into(),
        exit_code: match result.outcome {
            Some(_) => result.exit_code,
            None => -1,
        },
        key: result.key,
        id: result.id,
        signal: result.signal,
        error: result.error.chars().take(MAX_ERROR_CHARS).collect(),
        duration: span(Duration::from_millis(result.duration_ms)),
        stdout_bytes: result.stdout_bytes,
        stderr_bytes: result.stderr_bytes,
        truncated: result.truncated,
        stdout_tail: result.stdout_tail.into(),
        stderr_tail: result.stderr_tail.into(),
    }
}

fn outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::Exited => v1::Outcome::Exited,
        Outcome::TimedOut => v1::Outcome::TimedOut,
        Outcome::Cancelled => v1::Outcome::Cancelled,
        Outcome::Refused => v1::Outcome::Refused,
        Outcome::Unreachable => v1::Outcome::Unreachable,
        Outcome::Lost => v1::Outcome::Lost,
    }
}

/// An action in numbers.
pub(crate) fn summary(counts: &Counts, took: Duration) -> ActionSummary {
    ActionSummary {
        targets: counts.targets,
        succeeded: counts.succeeded,
        failed: counts.failed,
        timed_out: counts.timed_out,
        cancelled: counts.cancelled,
        refused: counts.refused,
        unreachable: counts.unreachable,
        lost: counts.lost,
        duration: span(took),
        stopped: counts.stopped,
    }
}

/// An action without the results of its targets.
pub(crate) fn head(head: &Head) -> Action {
    let until = head.finished_ms.unwrap_or_else(now_ms);
    let took = Duration::from_millis(until.saturating_sub(head.created_ms));
    Action {
        id: head.id.to_string(),
        state: match head.state {
            State::Running => ActionState::Running,
            State::Finished => ActionState::Finished,
        }
        .into(),
        dispatcher: head.dispatcher.clone(),
        master: head.master.clone(),
        selector: Some(Selector {
            keys: head.selector.keys.clone(),
            ids: head.selector.ids.clone(),
            roles: head.selector.roles.clone(),
            labels: head.selector.labels.clone(),
            all: head.selector.all,
        }),
        command: Some(Command {
            argv: head.command.argv.clone(),
            shell: head.command.shell.clone(),
            env: head
                .command
                .env
                .iter()
                .map(|name| (name.clone(), String::new()))
                .collect(),
            input: None,
            input_json: Bytes::new(),
        }),
        created: Some(at(head.created_ms).into()),
        finished: head.finished_ms.map(|ms| at(ms).into()),
        timeout: span(Duration::from_millis(head.timeout_ms)),
        detach: head.detach,
        summary: Some(summary(&head.summary, took)),
        results: Vec::new(),
    }
}

/// An action with the results of its targets.
pub(crate) fn action(record: Record) -> Action {
    Action {
        results: record.results.into_iter().map(kept_result).collect(),
        ..head(&record.head)
    }
}

/// A slave, as masters name it to each other.
pub(super) fn incarnation(slave: &Slave) -> Incarnation {
    Incarnation {
        key: slave.key.to_string(),
        nonce: slave.nonce.to_string(),
    }
}

/// A slave that a peer names.
pub(crate) fn slave(incarnation: Incarnation) -> Option<Slave> {
    Some(Slave {
        key: incarnation.key.parse().ok()?,
        nonce: incarnation.nonce.into(),
    })
}

/// An attachment, as masters tell it to each other.
pub(super) fn attached(attachment: &Attachment) -> Attached {
    Attached {
        slave: Some(incarnation(&attachment.slave)),
        attachment: attachment.number,
    }
}

/// An attachment that a peer tells.
pub(super) fn attachment(attached: Attached) -> Option<Attachment> {
    Some(Attachment {
        slave: slave(attached.slave?)?,
        number: attached.attachment,
    })
}

/// The wire's name of a stream.
pub(super) fn stream(stream: Stream) -> v1::Stream {
    match stream {
        Stream::Stdout => v1::Stream::Stdout,
        Stream::Stderr => v1::Stream::Stderr,
    }
}
