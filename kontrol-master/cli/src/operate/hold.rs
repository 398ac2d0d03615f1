//! `kontrol-master hold` and `resume`: keep the callback from running, and let it run again.

use super::{
    super::{
        ClientArgs,
        error::CliError,
        masters::Masters,
        output::{Format, Output},
        parse_positive,
        text::age,
    },
    words,
};
use clap::Args;
use kontrol_proto::v1::{HoldCallbackRequest, ResumeCallbackRequest};
use std::time::{Duration, SystemTime};

/// Why to hold the callback, and for how long.
#[derive(Debug, Clone, Args)]
pub struct HoldArgs {
    /// Why, in at most 1,000 bytes: whoever finds the callback held wants to know
    #[arg(value_parser = parse_reason)]
    reason: String,
    /// How long, unless `resume` ends it before: 90, 30m, 2h; at most 168h, a week
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = parse_positive)]
    duration: Duration,
    #[command(flatten)]
    pub(in super::super) client: ClientArgs,
}

/// Why to end the hold.
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// Why, in at most 1,000 bytes
    #[arg(default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    pub(in super::super) client: ClientArgs,
}

fn parse_reason(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("say why");
    }
    Ok(text.to_owned())
}

/// Holds the callback and tells until when.
pub(in super::super) async fn hold(
    masters: &Masters,
    args: &HoldArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = HoldCallbackRequest {
        reason: args.reason.clone(),
        duration: args.duration.try_into().ok(),
    };
    let answer = masters
        .write(async |client| client.operate().hold_callback(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.HoldCallbackResponse"),
        Format::Table => {
            let hold = words::hold(&answer.hold.unwrap_or_default(), SystemTime::now());
            output.line(format_args!("the callback is held {hold}"))?;
            output.line(
                "no run starts before that, but one that goes on is not stopped; to end the hold: kontrol-master resume",
            )
        }
    }
}

/// Ends the hold and tells which it was.
pub(in super::super) async fn resume(
    masters: &Masters,
    args: &ResumeArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = ResumeCallbackRequest {
        reason: args.reason.clone(),
    };
    let answer = masters
        .write(async |client| client.operate().resume_callback(request.clone()).await)
        .await?;
    match (output.format(), &answer.hold) {
        (Format::Json, _) => output.json(&answer, "kontrol.v1.ResumeCallbackResponse"),
        (Format::Table, None) => output.line("nothing was held"),
        (Format::Table, Some(hold)) => {
            let now = SystemTime::now();
            let since = age(hold.since.as_ref(), now);
            let hold = words::hold(hold, now);
            output.line(format_args!(
                "the callback is no longer held; since {since} it was held {hold}"
            ))?;
            output.line("one run follows for all that has changed, if anything has")
        }
    }
}
