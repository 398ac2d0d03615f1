//! `kontrol-master release`: ends the safeguard, so that the silent pods that it keeps leave.

use super::{
    super::{
        ClientArgs,
        error::CliError,
        masters::Masters,
        output::{Format, Output},
        text::age,
    },
    words,
};
use clap::Args;
use kontrol_proto::v1::ReleaseSafeguardRequest;
use std::time::SystemTime;

/// Why to end it.
#[derive(Debug, Clone, Args)]
pub struct ReleaseArgs {
    /// Why, in at most 1,000 bytes
    #[arg(default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    pub(in super::super) client: ClientArgs,
}

/// Ends the safeguard and tells what that lets go.
pub(in super::super) async fn run(
    masters: &Masters,
    args: &ReleaseArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = ReleaseSafeguardRequest {
        reason: args.reason.clone(),
    };
    let answer = masters
        .write(async |client| client.operate().release_safeguard(request.clone()).await)
        .await?;
    match (output.format(), &answer.safeguard) {
        (Format::Json, _) => output.json(&answer, "kontrol.v1.ReleaseSafeguardResponse"),
        (Format::Table, None) => {
            output.line("nothing is frozen: a pod that is silent for its TTL leaves")
        }
        (Format::Table, Some(safeguard)) => {
            let since = age(safeguard.since.as_ref(), SystemTime::now());
            let silent = words::silent(safeguard);
            output.line(format_args!(
                "released, so that silent pods leave now: {silent}; removals were frozen for {since}"
            ))
        }
    }
}
