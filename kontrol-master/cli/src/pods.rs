//! `kontrol-master pods`: the roster.

use super::{
    ClientArgs,
    error::CliError,
    masters::Masters,
    output::{Format, Output},
    text::{age, or_nothing, payload},
};
use clap::Args;
use kontrol_core::model::selector::Selector;
use kontrol_proto::v1::{ListPodsRequest, Pod};
use std::time::SystemTime;

/// Which pods to list.
#[derive(Debug, Clone, Args)]
pub struct PodsArgs {
    /// Only pods of this role [default: any]
    #[arg(long, env = "KONTROL_ROLE")]
    role: Option<String>,
    /// Only pods whose labels match, in the syntax of Kubernetes: 'app=web,tier in (a,b),!canary' [default: all]
    #[arg(long, env = "KONTROL_SELECTOR")]
    selector: Option<Selector>,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Asks for pods and shows them.
pub(super) async fn run(
    masters: &Masters,
    args: &PodsArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = ListPodsRequest {
        role: args.role.clone().unwrap_or_default(),
        selector: args
            .selector
            .as_ref()
            .map(Selector::to_string)
            .unwrap_or_default(),
    };
    let answer = masters
        .read(async |client| client.ensemble().list_pods(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.ListPodsResponse"),
        Format::Table => {
            let now = SystemTime::now();
            output.table(
                &[
                    "SEQ", "KEY", "ID", "IP", "APP", "ROLE", "NODE", "AGE", "HEARD", "MASTER",
                    "PAYLOAD",
                ],
                answer.pods.iter().map(|pod| row(pod, now)),
            )
        }
    }
}

fn row(pod: &Pod, now: SystemTime) -> Vec<String> {
    vec![
        pod.seq.to_string(),
        or_nothing(&pod.key),
        or_nothing(&pod.id),
        or_nothing(&pod.ip),
        or_nothing(&pod.app),
        or_nothing(&pod.role),
        or_nothing(&pod.node),
        age(pod.first_seen.as_ref(), now),
        age(pod.last_heard.as_ref(), now),
        or_nothing(&pod.attached_master),
        payload(pod.payload.as_ref()),
    ]
}
