//! An action that a handler in this process carries out: it is asked to end as a command is, and then dropped.
//!
//! ```text
//! runs ── time is up, cancelled, the slave stops ──▶ asked ── grace ──▶ dropped ── does not yield ──▶ left alone
//!   └──────────── returns or panics ──────────────────┴───────────────────┘
//! ```
//!
//! It runs on a thread beside those of the runtime: code that blocks would hold up tasks of ours that wait behind it on the
//! same thread. Nothing can end such code. Its action ends all the same; its place is taken until it returns.

use super::{
    command::{self, GRACE, Pod},
    handler::{ActionCommand, ActionOutput, ActionReply, ActionRequest, Handler},
    outcome::Stop,
};
use kontrol_proto::v1::attach_response::Run;
use kontrol_runtime::process::Cause;
use serde_json::Value;
use std::{any::Any, collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    io::DuplexStream,
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a handler has when the slave stops: as a command that lost its slave.
const LAST_GRACE: Duration = Duration::from_millis(250);
/// How long a handler that is dropped may take for it: its task ends where it awaits next.
const DROP: Duration = Duration::from_millis(250);

/// What a handler is to be asked.
pub(super) struct Call {
    handler: Handler,
    id: String,
    key: String,
    command: ActionCommand,
    env: BTreeMap<String, String>,
    input: Option<Value>,
    /// Of the text that the input was.
    input_bytes: usize,
}

/// A handler at work. Dropped, it is dropped where it awaits.
pub(super) struct Calling {
    task: JoinSet<Option<ActionReply>>,
    cancellation: CancellationToken,
    /// Until it is to be dropped.
    kept: Option<DropGuard>,
    deadline: Instant,
    phase: Phase,
}

/// How far its end is, and when the next phase begins.
#[derive(Clone, Copy)]
enum Phase {
    Runs,
    Asked(Cause, Instant),
    Dropped(Cause, Instant),
}

/// How a call ended.
pub(super) struct CallEnd {
    /// What brought it about.
    pub(super) cause: Cause,
    pub(super) how: How,
}

/// What became of the handler.
#[derive(Debug)]
pub(super) enum How {
    Answered(ActionReply),
    /// With these words.
    Panicked(String),
    Dropped,
    /// It blocks its thread, and goes on.
    Deaf,
}

impl Call {
    /// What the handler is to be asked; or why it can't.
    pub(super) fn new(handler: &Handler, run: &Run, pod: &Pod) -> Result<Self, String> {
        let command = run.command.as_ref().ok_or("the order says no command")?;
        let argv = command::words(command)?;
        let input = command::input(command)?;
        let input_bytes = input.as_ref().map_or(0, String::len);
        let input = input.map(|text| serde_json::from_str(&text)).transpose();
        Ok(Self {
            handler: handler.clone(),
            id: run.action_id.clone(),
            key: pod.key.clone(),
            command: if command.shell.is_empty() {
                ActionCommand::Argv(argv)
            } else {
                ActionCommand::Shell(command.shell.clone())
            },
            env: command.env.clone().into_iter().collect(),
            input: input.map_err(|error| format!("the input is not valid JSON: {error}"))?,
            input_bytes,
        })
    }

    /// How much memory it takes until it runs.
    pub(super) fn bytes(&self) -> usize {
        let words = match &self.command {
            ActionCommand::Argv(words) => words.iter().map(String::len).sum(),
            ActionCommand::Shell(text) => text.len(),
        };
        let variables = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        words + variables.sum::<usize>() + self.input_bytes
    }
}

impl Drop for Calling {
    /// A handler that blocks can't be dropped, but it may look at its token: the slave's runtime waits for it.
    fn drop(&mut self) {
        self.cancellation.cancel();
    }
}

impl Calling {
    /// Calls the handler; returns what it writes, too. `slot` is taken for as long as its code runs.
    pub(super) fn start(
        call: Call,
        deadline: Instant,
        slot: Arc<OwnedSemaphorePermit>,
    ) -> (Self, DuplexStream, DuplexStream) {
        let cancellation = CancellationToken::new();
        let (output, stdout, stderr) = ActionOutput::pipes();
        let request = ActionRequest {
            id: call.id,
            key: call.key,
            command: call.command,
            env: call.env,
            input: call.input,
            deadline,
            cancellation: cancellation.clone(),
        };
        let mut task = JoinSet::new();
        let (runtime, dropped) = (Handle::current(), CancellationToken::new());
        let kept = Some(dropped.clone().drop_guard());
        task.spawn_blocking(move || {
            let _slot = slot;
            let called = call.handler.call(request, output);
            runtime.block_on(dropped.run_until_cancelled(called))
        });
        let calling = Self {
            task,
            cancellation,
            kept,
            deadline,
            phase: Phase::Runs,
        };
        (calling, stdout, stderr)
    }

    /// Asks it to end, and drops it a grace later.
    pub(super) fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Cancelled => self.ask(Cause::Stop, GRACE),
            Stop::SlaveStops => self.ask(Cause::ParentGone, LAST_GRACE),
        }
    }

    /// A later cause replaces none, but can shorten the grace.
    fn ask(&mut self, cause: Cause, grace: Duration) {
        self.cancellation.cancel();
        let end = Instant::now() + grace;
        self.phase = match self.phase {
            Phase::Runs => Phase::Asked(cause, end),
            Phase::Asked(first, at) => Phase::Asked(first, at.min(end)),
            Phase::Dropped(first, at) => Phase::Dropped(first, at),
        };
    }

    /// Waits for its end. Cancel safe; not to be called again after that.
    pub(super) async fn wait(&mut self) -> CallEnd {
        loop {
            let next = match self.phase {
                Phase::Runs => self.deadline,
                Phase::Asked(_, at) | Phase::Dropped(_, at) => at,
            };
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                Some(joined) = self.task.join_next() => return self.ended(joined),
                () = sleep_until(next) => match self.phase {
                    Phase::Runs => self.ask(Cause::Lease, GRACE),
                    Phase::Asked(cause, _) => {
                        self.kept = None;
                        // It may not have begun.
                        self.task.abort_all();
                        self.phase = Phase::Dropped(cause, Instant::now() + DROP);
                    }
                    Phase::Dropped(cause, _) => return CallEnd { cause, how: How::Deaf },
                },
            }
        }
    }

    fn ended(&self, joined: Result<Option<ActionReply>, JoinError>) -> CallEnd {
        let how = match joined.map_err(JoinError::try_into_panic) {
            Ok(Some(reply)) => How::Answered(reply),
            Err(Ok(panic)) => How::Panicked(words(&*panic)),
            Ok(None) | Err(Err(_)) => How::Dropped,
        };
        let cause = match (self.phase, &how) {
            (Phase::Asked(cause, _) | Phase::Dropped(cause, _), _) => cause,
            // Its runtime stops.
            (Phase::Runs, How::Dropped) => Cause::ParentGone,
            (Phase::Runs, How::Answered(_) | How::Panicked(_) | How::Deaf) => Cause::Itself,
        };
        CallEnd { cause, how }
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without words").to_owned()
}
