//! `kontrol-master exec`: runs a command on pods, shows what they write, and tells how it ended.
//!
//! ```text
//! dispatch ──▶ accepted ──▶ started, output, finished … ──▶ summary ──▶ exit code: the worst of all targets
//!    │                          │
//!    │ certainly not taken      ├─ asked to stop: cancels, goes on until the summary; asked again: leaves
//!    ▼                          └─ breaks: tells how to look for what became of it
//! next master
//! ```
//!
//! Invariant: no command is dispatched twice. Whoever leaves the stream before the summary cancels the action, so that
//! every early end here, for instance that of a reader (`| head`), ends what runs.

mod lines;
mod names;
mod request;
mod screen;
mod tally;

pub(super) use request::ExecArgs;

use super::{
    error::CliError,
    masters::{Client, Masters, is_cut, reason},
    output::Output,
    stop::INTERRUPTED,
    text::{clean, span},
};
use futures::{FutureExt, future::Fuse};
use kontrol_proto::v1::{
    CancelActionRequest, DispatchRequest, DispatchResponse,
    dispatch_response::{Accepted, Event},
};
use screen::Screen;
use std::{io, pin::pin, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tonic::{Response, Status, Streaming};

/// How long a master may take to accept an action, or to cancel it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What is over sooner needs no progress.
const FIRST_PROGRESS: Duration = Duration::from_secs(1);
/// Pause between two looks at the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Why a stream ends that the master did not end: it tells a summary, or why there is none.
const CUT: &str = "something between here and the master ended it, as proxies do after a time without a message: let them wait for more than 5 s, or use --detach";
/// The exit code when the reader of the output went away: a shell's, for SIGPIPE.
const READER_LEFT: u8 = 141;

/// An action that a master took.
struct Dispatched {
    accepted: Accepted,
    stream: Streaming<DispatchResponse>,
    client: Client,
}

/// What is told of the settings of other commands, with the names that they have here.
pub(super) fn renamed(line: &str) -> String {
    line.replace("--key", &format!("--{}", request::CERT_KEY))
}

/// Dispatches an action and follows it to its end; tells the exit code.
pub(super) async fn run(
    masters: &Masters,
    args: &ExecArgs,
    input: &mut dyn io::Read,
    output: &mut Output<'_>,
    stop: &mut impl AsyncFnMut(),
) -> Result<u8, CliError> {
    let request = args.request(input)?;
    let Dispatched {
        accepted,
        stream,
        client,
    } = tokio::select! {
        dispatched = dispatch(masters, &request) => dispatched?,
        () = stop() => {
            output.note("left before a master accepted the action; to look: kontrol-master actions");
            return Ok(INTERRUPTED);
        }
    };
    if accepted.targets.is_empty() {
        return Err(CliError::Failed(
            "no pod matches, so nothing runs; to look: kontrol-master pods".to_owned(),
        ));
    }
    let id = accepted.action_id.clone();
    let mut screen = Screen::new(output, args, &accepted);
    let shown = async {
        screen.accepted(accepted, args.detach)?;
        if args.detach {
            return Ok(0);
        }
        follow(&id, stream, &client, &mut screen, stop).await
    };
    match shown.await {
        Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(READER_LEFT),
        followed => followed,
    }
}

async fn dispatch(masters: &Masters, request: &DispatchRequest) -> Result<Dispatched, CliError> {
    let dispatched = masters.write(async |client| {
        let answer = client.actions().dispatch(request.clone()).await?;
        let mut stream = answer.into_inner();
        let mut first = stream.message().await?;
        while first.as_ref().is_some_and(|first| first.event.is_none()) {
            first = stream.message().await?; // a sign of life
        }
        let Some(Event::Accepted(accepted)) = first.and_then(|first| first.event) else {
            return Err(Status::internal(
                "neither accepts the action nor refuses it",
            ));
        };
        Ok(Response::new(Dispatched {
            accepted,
            stream,
            client,
        }))
    });
    match dispatched.await {
        Err(CliError::Unclear(reason)) => Err(CliError::Failed(format!(
            "{reason}, so the command may or may not run; to look: kontrol-master actions"
        ))),
        dispatched => dispatched,
    }
}

/// Shows what becomes of an action, until its summary or a reason to leave.
async fn follow(
    id: &str,
    mut stream: Streaming<DispatchResponse>,
    client: &Client,
    screen: &mut Screen<'_, '_>,
    stop: &mut impl AsyncFnMut(),
) -> Result<u8, CliError> {
    let shown = clean(id);
    let mut cancelling = pin!(Fuse::terminated());
    let mut interrupted = false;
    let mut ticks = interval_at(Instant::now() + FIRST_PROGRESS, PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reason = loop {
        // Cancel safe: a message is taken whole or not at all, as is a tick; a cancel goes on where it was.
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    screen.show(&message)?;
                    if let Some(Event::Summary(_)) = message.event {
                        return Ok(if interrupted { INTERRUPTED } else { screen.exit_code() });
                    }
                }
                Ok(None) => break CUT.to_owned(),
                Err(status) if is_cut(&status) => break format!("{}: {CUT}", reason(&status)),
                Err(status) => break reason(&status),
            },
            Err(reason) = &mut cancelling => {
                screen.note(format_args!("the master did not cancel it ({reason}): leaving, which cancels it as well"));
                return Ok(INTERRUPTED);
            }
            () = stop() => {
                if interrupted {
                    screen.note(format_args!("left; to look: kontrol-master actions show {shown}"));
                    return Ok(INTERRUPTED);
                }
                interrupted = true;
                screen.note("cancelling; once more to leave at once");
                cancelling.set(cancel(client, id).fuse());
            }
            _ = ticks.tick() => screen.progress(),
        }
    };
    screen.flush()?;
    Err(CliError::Lost(format!(
        "the stream of action {shown} broke ({reason}): it may go on, or be cancelled; to look: kontrol-master actions show {shown}"
    )))
}

/// Cancels an action on the master that carries it; tells why it can't.
async fn cancel(client: &Client, id: &str) -> Result<(), String> {
    let request = CancelActionRequest { id: id.to_owned() };
    match timeout(ANSWER_TIMEOUT, client.actions().cancel_action(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(reason(&status)),
        Err(_) => Err(format!("no answer within {}", span(ANSWER_TIMEOUT))),
    }
}
