//! `kontrol-master actions`: what was dispatched of late, what became of one action, and an end to it.

pub(super) mod words;

use super::{
    ClientArgs,
    error::CliError,
    masters::Masters,
    output::{Format, Output, Style},
    text::{NOTHING, age, clean, clean_lines, or_nothing, proto_span},
};
use clap::{Args, Subcommand};
use kontrol_proto::v1::{
    Action, ActionResult, ActionState, ActionSummary, CancelActionRequest, GetActionRequest,
    ListActionsRequest, ListActionsResponse, Outcome,
};
use std::time::SystemTime;

/// What to do with actions.
#[derive(Debug, Args)]
pub struct ActionsArgs {
    #[command(subcommand)]
    one: Option<One>,
    /// How many to list at the most, the newest first
    #[arg(long, env = "KONTROL_LIMIT", value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// What to do with one action.
#[derive(Debug, Subcommand)]
enum One {
    /// Show an action with the result of each target and the end of what it wrote
    Show {
        /// The id of the action
        id: String,
    },
    /// Cancel an action: no further target starts it, and what runs is ended
    Cancel {
        /// The id of the action
        id: String,
    },
}

/// Lists actions, or does what was asked with one.
pub(super) async fn run(
    masters: &Masters,
    args: &ActionsArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match &args.one {
        None => list(masters, args.limit, output).await,
        Some(One::Show { id }) => show(masters, id, output).await,
        Some(One::Cancel { id }) => cancel(masters, id, output).await,
    }
}

async fn list(masters: &Masters, limit: u32, output: &mut Output<'_>) -> Result<(), CliError> {
    let answer = pages(masters, limit).await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.ListActionsResponse"),
        Format::Table => {
            let now = SystemTime::now();
            output.table(
                &[
                    "ID", "STATE", "AGE", "TOOK", "TARGETS", "OK", "FAILED", "WHO", "COMMAND",
                ],
                answer.actions.iter().map(|action| row(action, now)),
            )
        }
    }
}

/// Asks for one page after another until there are enough or no more.
async fn pages(masters: &Masters, limit: u32) -> Result<ListActionsResponse, CliError> {
    let mut all = ListActionsResponse::default();
    loop {
        let known = u32::try_from(all.actions.len()).unwrap_or(u32::MAX);
        let request = ListActionsRequest {
            page_size: limit.saturating_sub(known),
            page_token: all.next_page_token,
        };
        let page = masters
            .read(async |client| client.actions().list_actions(request.clone()).await)
            .await?;
        let got = page.actions.len();
        all.actions.extend(page.actions);
        all.next_page_token = page.next_page_token;
        if got == 0 || all.next_page_token.is_empty() || all.actions.len() >= limit as usize {
            return Ok(all);
        }
    }
}

fn row(action: &Action, now: SystemTime) -> Vec<String> {
    let summary = action.summary.unwrap_or_default();
    let ActionSummary {
        failed,
        timed_out,
        cancelled,
        refused,
        unreachable,
        lost,
        ..
    } = summary;
    let failures: u32 = [failed, timed_out, cancelled, refused, unreachable, lost]
        .into_iter()
        .fold(0, u32::saturating_add);
    vec![
        or_nothing(&action.id),
        state(action).to_owned(),
        age(action.created.as_ref(), now),
        proto_span(summary.duration.as_ref()),
        summary.targets.to_string(),
        summary.succeeded.to_string(),
        failures.to_string(),
        words::who(&action.dispatcher),
        words::short_command(action),
    ]
}

fn state(action: &Action) -> &'static str {
    match action.state() {
        ActionState::Unspecified => NOTHING,
        ActionState::Running => "running",
        ActionState::Finished => "finished",
    }
}

async fn show(masters: &Masters, id: &str, output: &mut Output<'_>) -> Result<(), CliError> {
    let request = GetActionRequest { id: id.to_owned() };
    let answer = masters
        .read(async |client| client.actions().get_action(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.GetActionResponse"),
        Format::Table => describe(&answer.action.unwrap_or_default(), output),
    }
}

fn describe(action: &Action, output: &mut Output<'_>) -> Result<(), CliError> {
    let summary = action.summary.unwrap_or_default();
    for (name, value) in head(action, &summary, SystemTime::now()) {
        let name = output.paint(Style::Bold, &format!("{name:<10}"));
        output.line(format_args!("{name}  {value}"))?;
    }
    for result in &action.results {
        output.line("")?;
        self::result(action, result, output)?;
    }
    let told = u32::try_from(action.results.len()).unwrap_or(u32::MAX);
    match summary.targets.saturating_sub(told) {
        0 => Ok(()),
        more => output.line(format_args!("\nand {more} more, not kept one by one")),
    }
}

fn head(action: &Action, summary: &ActionSummary, now: SystemTime) -> Vec<(&'static str, String)> {
    let timeout = proto_span(action.timeout.as_ref());
    let alone = if action.detach {
        "; goes on without its dispatcher"
    } else {
        ""
    };
    vec![
        ("Action", or_nothing(&action.id)),
        ("State", state(action).to_owned()),
        ("Command", words::command(action.command.as_ref())),
        ("For", words::selector(action.selector.as_ref())),
        ("Targets", words::outcome(summary)),
        (
            "Accepted",
            format!("{} ago", age(action.created.as_ref(), now)),
        ),
        ("Timeout", format!("{timeout}{alone}")),
        ("By", or_nothing(&action.dispatcher)),
        ("Master", or_nothing(&action.master)),
    ]
}

/// What became of a target, and the end of what it wrote.
fn result(action: &Action, result: &ActionResult, output: &mut Output<'_>) -> Result<(), CliError> {
    let style = match result.outcome() {
        Outcome::Exited if result.exit_code == 0 => Style::Good,
        Outcome::Unspecified => Style::Notable,
        Outcome::Exited
        | Outcome::TimedOut
        | Outcome::Cancelled
        | Outcome::Refused
        | Outcome::Unreachable
        | Outcome::Lost => Style::Bad,
    };
    let mut ending = words::ending(result, action.timeout.as_ref());
    if result.duration.is_some() {
        ending = format!("{ending} in {}", proto_span(result.duration.as_ref()));
    }
    if result.truncated {
        ending += ", not all output was passed on";
    }
    let ending = output.paint(style, &ending);
    let (id, key) = (or_nothing(&result.id), or_nothing(&result.key));
    output.line(format_args!("{id} ({key}): {ending}"))?;
    for (stream, bytes, tail) in [
        ("out", result.stdout_bytes, &result.stdout_tail),
        ("err", result.stderr_bytes, &result.stderr_tail),
    ] {
        let before = bytes.saturating_sub(tail.len() as u64);
        if before > 0 {
            output.line(format_args!("  {stream} | … {before} bytes"))?;
        }
        for line in clean_lines(tail) {
            output.line(format_args!("  {stream} | {line}"))?;
        }
    }
    Ok(())
}

/// To cancel twice does no harm, so this may be asked of one master after another, as a question is.
async fn cancel(masters: &Masters, id: &str, output: &mut Output<'_>) -> Result<(), CliError> {
    let request = CancelActionRequest { id: id.to_owned() };
    let answer = masters
        .read(async |client| client.actions().cancel_action(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.CancelActionResponse"),
        Format::Table if answer.finished => {
            output.line(format_args!("{} had ended before", clean(id)))
        }
        Format::Table => output.line(format_args!("{} is cancelled", clean(id))),
    }
}
