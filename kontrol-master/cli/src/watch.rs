//! `kontrol-master watch`: one line for each change of the ensemble, for as long as the user cares.
//!
//! ```text
//! open behind N ──▶ lines … ──▶ breaks ──▶ note on standard error, pause (full jitter) ──▶ open behind the last seen
//! ```
//!
//! The first connection must succeed, so that a wrong address is told at once; later ones are tried for ever.

use super::{
    ClientArgs,
    actions::words,
    error::CliError,
    explain::reason as leave_reason,
    masters::{Masters, may_resume, reason, refusal},
    operate,
    output::{Format, Output, Style},
    status::{master, outcome},
    text::{clean, or_nothing, payload, span},
};
use clap::Args;
use kontrol_proto::v1::{
    Action, LeaveReason, Master, Pod, WatchRequest, WatchResponse,
    watch_response::{Event, Snapshot},
};
use std::time::{Duration, SystemTime};
use tonic::Streaming;

/// The first pause is at most this.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Every pause is at most this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Where to start.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Go on behind this revision, as an earlier watch showed it; 0 starts with a snapshot
    #[arg(long, env = "KONTROL_REVISION", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    revision: i64,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Follows the ensemble until `stop` is done.
pub(super) async fn run(
    masters: &Masters,
    args: &WatchArgs,
    output: &mut Output<'_>,
    stop: &mut impl AsyncFnMut(),
) -> Result<(), CliError> {
    // Cancel safe: lines are written whole, between awaits.
    tokio::select! {
        result = follow(masters, place(args.revision, String::new()), output) => result,
        () = stop() => Ok(()),
    }
}

async fn follow(
    masters: &Masters,
    mut place: WatchRequest,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let mut stream = masters.watch(&place).await?;
    loop {
        let mut reason = lines(&mut stream, &mut place, output).await?;
        let mut bound = FIRST_PAUSE;
        stream = loop {
            let pause = rand::random_range(Duration::ZERO..=bound);
            output.note(format_args!(
                "the watch broke ({reason}): going on behind revision {} in {}",
                place.revision,
                span(pause)
            ));
            tokio::time::sleep(pause).await;
            bound = LONGEST_PAUSE.min(bound * 2);
            match masters.watch(&place).await {
                Ok(stream) => break stream,
                Err(CliError::Unreachable(reasons)) => reason = reasons,
                Err(error) => return Err(error),
            }
        };
    }
}

/// Where a watch begins, or goes on.
fn place(revision: i64, history: String) -> WatchRequest {
    WatchRequest {
        revision,
        history: Some(history),
    }
}

/// Writes a line for each message; tells why there are no more.
async fn lines(
    stream: &mut Streaming<WatchResponse>,
    place: &mut WatchRequest,
    output: &mut Output<'_>,
) -> Result<String, CliError> {
    let mut shown = 0;
    loop {
        let mut message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok("the master ended it".to_owned()),
            Err(status) if may_resume(&status) => return Ok(reason(&status)),
            Err(status) => return Err(refusal("the master", &status)),
        };
        // For this program alone: whoever reads the lines goes on by their revision.
        let history = message.history.take().unwrap_or_default();
        // What the leader tells of the callback may belong to an earlier revision than the last pod seen.
        if matches!(message.event, Some(Event::Snapshot(_))) || message.revision >= place.revision {
            *place = self::place(message.revision, history);
        }
        let Some(event) = &message.event else {
            continue; // a sign of life, or of a newer master
        };
        match output.format() {
            Format::Json => output.json(&message, "kontrol.v1.WatchResponse")?,
            Format::Table => {
                if let Event::Snapshot(piece) = event {
                    shown += piece.pods.len();
                    if piece.more {
                        continue;
                    }
                }
                let (style, what, text) = describe(event, shown);
                shown = 0;
                let what = output.paint(style, &format!("{what:<9}"));
                let time = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S");
                output.line(format_args!(
                    "{time}  {:<8}  {what} {text}",
                    message.revision
                ))?;
            }
        }
    }
}

/// What an event says. `shown`: how many pods a snapshot has, in all its pieces.
fn describe(event: &Event, shown: usize) -> (Style, &'static str, String) {
    match event {
        Event::Snapshot(last) => (Style::Bold, "snapshot", snapshot(last, shown)),
        Event::PodJoined(joined) => (Style::Good, "joined", pod(joined.pod.as_ref())),
        Event::PodChanged(changed) => {
            let what = if changed.restarted {
                "restarted"
            } else {
                "changed"
            };
            (Style::Notable, what, pod(changed.pod.as_ref()))
        }
        Event::PodLeft(left) => {
            let reason = leave_reason(left.reason());
            let text = format!("{}: {reason}", pod(left.pod.as_ref()));
            let style = match left.reason() {
                LeaveReason::Down | LeaveReason::Evicted => Style::Notable,
                LeaveReason::Unspecified
                | LeaveReason::Expired
                | LeaveReason::Lost
                | LeaveReason::Replaced => Style::Bad,
            };
            (style, "left", text)
        }
        Event::DigestChanged(changed) => {
            let text = format!("{}, {}", clean(&changed.digest), pods(changed.pod_count));
            (Style::Plain, "digest", text)
        }
        Event::LeaderChanged(changed) => {
            let style = if changed.leader.is_some() {
                Style::Notable
            } else {
                Style::Bad
            };
            let text = leader(changed.leader.as_ref(), changed.epoch);
            (style, "leader", text)
        }
        Event::CallbackStarted(started) => {
            let text = format!("started for {}", clean(&started.digest));
            (Style::Plain, "callback", text)
        }
        Event::CallbackFinished(finished) => match &finished.run {
            Some(run) => {
                let style = if run.error.is_empty() {
                    Style::Good
                } else {
                    Style::Bad
                };
                let text = format!("{} for {}", outcome(run), clean(&run.digest));
                (style, "callback", text)
            }
            None => (Style::Plain, "callback", "ended".to_owned()),
        },
        Event::ActionStarted(started) => {
            let text = action_started(started.action.as_ref());
            (Style::Plain, "action", text)
        }
        Event::ActionFinished(finished) => action_finished(finished.action.as_ref()),
        Event::HoldChanged(changed) => match &changed.hold {
            Some(hold) => {
                let text = format!("held {}", operate::words::hold(hold, SystemTime::now()));
                (Style::Notable, "callback", text)
            }
            None => (Style::Good, "callback", "no longer held".to_owned()),
        },
        Event::SafeguardChanged(changed) => match &changed.safeguard {
            Some(safeguard) => {
                let text = operate::words::safeguard(safeguard, SystemTime::now());
                let style = operate::words::safeguard_style(safeguard);
                (style, "safeguard", text)
            }
            None => (
                Style::Good,
                "safeguard",
                "removals for silence go on".to_owned(),
            ),
        },
    }
}

fn action_started(action: Option<&Action>) -> String {
    let Some(action) = action else {
        return "started".to_owned();
    };
    format!(
        "{} ({}) started by {} on {}",
        or_nothing(&action.id),
        words::short_command(action),
        words::who(&action.dispatcher),
        words::targets(action.summary.unwrap_or_default().targets),
    )
}

fn action_finished(action: Option<&Action>) -> (Style, &'static str, String) {
    let Some(action) = action else {
        return (Style::Plain, "action", "ended".to_owned());
    };
    let summary = action.summary.unwrap_or_default();
    let style = if summary.succeeded == summary.targets {
        Style::Good
    } else {
        Style::Bad
    };
    let text = format!(
        "{} ({}) finished: {}",
        or_nothing(&action.id),
        words::short_command(action),
        words::outcome(&summary)
    );
    (style, "action", text)
}

fn snapshot(snapshot: &Snapshot, count: usize) -> String {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    format!(
        "{}, digest {}, leader {}",
        pods(count),
        clean(&snapshot.digest),
        leader(snapshot.leader.as_ref(), snapshot.epoch)
    )
}

fn pods(count: u32) -> String {
    match count {
        1 => "1 pod".to_owned(),
        count => format!("{count} pods"),
    }
}

fn leader(leader: Option<&Master>, epoch: i64) -> String {
    match leader {
        Some(leader) => format!("{}, epoch {epoch}", master(leader)),
        None => "none".to_owned(),
    }
}

fn pod(pod: Option<&Pod>) -> String {
    let Some(pod) = pod else {
        return "a pod".to_owned();
    };
    format!(
        "#{} {} {} {} {}/{} payload {}",
        pod.seq,
        or_nothing(&pod.key),
        or_nothing(&pod.id),
        or_nothing(&pod.ip),
        or_nothing(&pod.app),
        or_nothing(&pod.role),
        payload(pod.payload.as_ref()),
    )
}
