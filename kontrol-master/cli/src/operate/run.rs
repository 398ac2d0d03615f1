//! `kontrol-master run`: has the callback run now, and with `--wait` tells how that ended.
//!
//! ```text
//! look: which runs there were ──▶ ask ──▶ look again and again ──▶ a run that is none of those has ended ──▶ 0, or 1
//!                                              └─ nothing is left to run: the run that went on handled the digest ──▶ 0
//! ```
//!
//! Runs are told apart by their start, which all masters tell alike; no revision comes with it. A run that starts between
//! the first look and the request therefore counts as the one that was asked for.

use super::{
    super::{
        ClientArgs,
        error::CliError,
        masters::Masters,
        output::{Format, Output},
        status::outcome,
        stop::INTERRUPTED,
        text::clean,
    },
    words,
};
use clap::Args;
use kontrol_proto::v1::{
    CallbackRun, GetEnsembleRequest, GetEnsembleResponse, RunCallbackRequest, RunCallbackResponse,
};
use prost_types::Timestamp;
use std::time::{Duration, SystemTime};

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Run even if the digest was handled already [default: no]
    #[arg(long)]
    again: bool,
    /// Why, in at most 1,000 bytes [default: none]
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait until the run has ended, and exit with 1 when it failed; Ctrl-C leaves it to itself [default: no]
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    pub(in super::super) client: ClientArgs,
}

/// Asks for a run, and waits for its end if that was asked for; tells the exit code.
pub(in super::super) async fn run(
    masters: &Masters,
    args: &RunArgs,
    output: &mut Output<'_>,
    stop: &mut impl AsyncFnMut(),
) -> Result<u8, CliError> {
    let known = match args.wait {
        true => Some(Known::of(&look(masters).await?)),
        false => None,
    };
    let request = RunCallbackRequest {
        again: args.again,
        reason: args.reason.clone().unwrap_or_default(),
    };
    let answer = masters
        .write(async |client| client.operate().run_callback(request.clone()).await)
        .await?;
    tell(&answer, args.wait, output)?;
    let Some(known) = known.filter(|_| !answer.handled) else {
        return Ok(0);
    };
    // Cancel safe: what is told is told whole, between awaits.
    tokio::select! {
        ended = follow(masters, &known, &answer, args.again, output) => ended.map(|()| 0),
        () = stop() => {
            output.note("left; the run goes on without this: to look: kontrol-master status");
            Ok(INTERRUPTED)
        }
    }
}

async fn look(masters: &Masters) -> Result<GetEnsembleResponse, CliError> {
    masters
        .read(async |client| client.ensemble().get_ensemble(GetEnsembleRequest {}).await)
        .await
}

fn tell(
    answer: &RunCallbackResponse,
    waits: bool,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let digest = clean(&answer.digest);
    match output.format() {
        Format::Json => output.json(answer, "kontrol.v1.RunCallbackResponse"),
        Format::Table if answer.handled => output.line(format_args!(
            "nothing runs: digest {digest} was handled already; to run all the same: kontrol-master run --again"
        )),
        Format::Table => {
            output.line(format_args!(
                "a run is asked for, at revision {}; the digest is {digest}",
                answer.revision
            ))?;
            if waits {
                return Ok(());
            }
            output.line("to follow it: kontrol-master watch; to wait for its end: run --wait")
        }
    }
}

/// Waits for a run that was not known, or until none is to come.
async fn follow(
    masters: &Masters,
    known: &Known,
    answer: &RunCallbackResponse,
    again: bool,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let mut told = String::new();
    loop {
        let obstacle = match look(masters).await {
            Ok(ensemble) => {
                if let Some(run) = known.next(&ensemble) {
                    return ended(run, output);
                }
                if !again && is_handled(&ensemble, answer) {
                    output.note(
                        "nothing is left to run: the digest is handled, by a run that went on",
                    );
                    return Ok(());
                }
                obstacle(&ensemble)
            }
            Err(CliError::Unreachable(reasons)) => format!("no master answers: {reasons}"),
            Err(error) => return Err(error),
        };
        if told != obstacle && !obstacle.is_empty() {
            output.note(format_args!("still waiting: {obstacle}"));
        }
        told = obstacle;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn ended(run: &CallbackRun, output: &mut Output<'_>) -> Result<(), CliError> {
    let text = format!("for {} {}", clean(&run.digest), outcome(run));
    match output.format() {
        Format::Json => output.json(run, "kontrol.v1.CallbackRun")?,
        Format::Table if run.error.is_empty() => output.line(format_args!("the run {text}"))?,
        Format::Table => {}
    }
    if run.error.is_empty() {
        Ok(())
    } else {
        Err(CliError::Failed(format!(
            "the run {text}; to see what comes next: kontrol-master status"
        )))
    }
}

/// Whether the callback did not run any more once the digest was handled.
fn is_handled(ensemble: &GetEnsembleResponse, answer: &RunCallbackResponse) -> bool {
    let runs = ensemble
        .callback
        .as_ref()
        .is_some_and(|callback| callback.running_since.is_some());
    !runs
        && ensemble.revision >= answer.revision
        && !ensemble.handled_digest.is_empty()
        && ensemble.handled_digest == ensemble.digest
}

/// Why no run starts, as far as that can be seen; empty when nothing is in the way.
fn obstacle(ensemble: &GetEnsembleResponse) -> String {
    let callback = ensemble.callback.as_ref();
    if ensemble.leader.is_none() {
        "no master leads".to_owned()
    } else if let Some(hold) = &ensemble.hold {
        let hold = words::hold(hold, SystemTime::now());
        format!("the callback is held {hold}")
    } else if callback.is_some_and(|callback| !callback.configured) {
        "the leader has no callback".to_owned()
    } else {
        callback.map_or_else(String::new, |callback| clean(&callback.error))
    }
}

/// The start of a run.
type Start = (i64, i32);

fn start(time: Option<&Timestamp>) -> Option<Start> {
    time.map(|time| (time.seconds, time.nanos))
}

/// The runs that there were before one was asked for.
#[derive(Debug)]
struct Known {
    epoch: i64,
    running: Option<Start>,
    last: Option<Start>,
}

impl Known {
    fn of(ensemble: &GetEnsembleResponse) -> Self {
        let callback = ensemble.callback.clone().unwrap_or_default();
        Self {
            epoch: ensemble.epoch,
            running: start(callback.running_since.as_ref()),
            last: start(
                callback
                    .last_run
                    .as_ref()
                    .and_then(|run| run.start.as_ref()),
            ),
        }
    }

    /// A later run that has ended. One of an earlier start is told by a master that is behind, unless it is that of another
    /// leader, by another clock.
    fn next<'a>(&self, ensemble: &'a GetEnsembleResponse) -> Option<&'a CallbackRun> {
        let run = ensemble.callback.as_ref()?.last_run.as_ref()?;
        let start = start(run.start.as_ref());
        let is_other = start != self.running && start != self.last;
        let is_later = start > self.running.max(self.last) || ensemble.epoch > self.epoch;
        (is_other && is_later).then_some(run)
    }
}
