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
use kontrol_proto::v1::{ListPodsRequest, ListPodsResponse, Pod};
use std::{mem, time::SystemTime};

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
    let selector = args.selector.as_ref();
    let request = ListPodsRequest {
        role: args.role.clone().unwrap_or_default(),
        selector: selector.map(Selector::to_string).unwrap_or_default(),
        ..ListPodsRequest::default()
    };
    let answer = list(masters, request).await?;
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

/// Reads all pages as one. A pod that stays is told once; the digest and the revision are those of the last page.
pub(super) async fn list(
    masters: &Masters,
    mut request: ListPodsRequest,
) -> Result<ListPodsResponse, CliError> {
    let mut pods = Vec::new();
    loop {
        let mut page = masters
            .read(async |client| client.ensemble().list_pods(request.clone()).await)
            .await?;
        pods.append(&mut page.pods);
        let next = mem::take(&mut page.next_page_token);
        if next.is_empty() || next == request.page_token {
            return Ok(ListPodsResponse { pods, ..page });
        }
        request.page_token = next;
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
