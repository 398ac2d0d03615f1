//! `kontrol-master evict`: removes a pod from the roster.

use super::super::{
    ClientArgs,
    error::CliError,
    explain::find,
    masters::Masters,
    output::{Format, Output},
    text::{clean, or_nothing},
};
use clap::Args;
use kontrol_proto::v1::EvictPodRequest;

/// Which pod to remove, and why.
#[derive(Debug, Clone, Args)]
pub struct EvictArgs {
    /// The pod's key, IP address, or id
    #[arg(value_name = "KEY|IP|ID")]
    pod: String,
    /// Why, in at most 1,000 bytes; `explain` tells it [default: none]
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    pub(in super::super) client: ClientArgs,
}

/// Removes the pod, and tells which it was and what comes next.
///
/// Whether it is there is for the master to say that removes it: the copy of the one that found it may be behind.
pub(in super::super) async fn run(
    masters: &Masters,
    args: &EvictArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = EvictPodRequest {
        key: find(masters, args.pod.trim()).await?.key,
        reason: args.reason.clone().unwrap_or_default(),
    };
    let answer = masters
        .write(async |client| client.operate().evict_pod(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.EvictPodResponse"),
        Format::Table => {
            let pod = answer.pod.unwrap_or_default();
            output.line(format_args!(
                "removed {} ({}) at {}, seq {}",
                or_nothing(&pod.id),
                or_nothing(&pod.key),
                or_nothing(&pod.ip),
                pod.seq
            ))?;
            match clean(&answer.next) {
                next if next.is_empty() => Ok(()),
                next => output.line(next),
            }
        }
    }
}
