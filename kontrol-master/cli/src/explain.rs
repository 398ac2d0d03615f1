//! `kontrol-master explain`: why a pod is in the roster or not.

use super::{
    ClientArgs,
    error::CliError,
    masters::Masters,
    output::{Format, Output, Style},
    pods,
    status::master,
    text::{NOTHING, age, clean, or_nothing, proto_span},
};
use clap::Args;
use kontrol_core::model::PodKey;
use kontrol_proto::v1::{
    ExplainPodRequest, ExplainPodResponse, LeaveReason, ListPodsRequest, MasterView, Removal,
};
use std::{net::IpAddr, time::SystemTime};

/// Which pod to explain.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The pod's key, IP address, or (while it is alive) id
    #[arg(value_name = "KEY|IP|ID")]
    pod: String,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Asks for the explanation and shows it.
pub(super) async fn run(
    masters: &Masters,
    args: &ExplainArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let answer = find(masters, args.pod.trim()).await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.ExplainPodResponse"),
        Format::Table => show(&answer, output),
    }
}

/// An IP address tells the key. Any other name may be a key, an id, or both: a live key comes first, then the id of a
/// live pod, then the key of a pod that left.
pub(super) async fn find(masters: &Masters, pod: &str) -> Result<ExplainPodResponse, CliError> {
    if let Ok(ip) = pod.parse::<IpAddr>() {
        return explain(masters, PodKey::from(ip).to_string()).await;
    }
    let by_key = match pod.parse::<PodKey>() {
        Ok(key) => Some(explain(masters, key.to_string()).await?),
        Err(_) => None,
    };
    if let Some(answer) = &by_key
        && answer.live
    {
        return Ok(answer.clone());
    }
    let pods = pods::list(masters, ListPodsRequest::default()).await?.pods;
    let keys: Vec<String> = pods
        .into_iter()
        .filter(|candidate| candidate.id == pod)
        .map(|candidate| candidate.key)
        .collect();
    match (keys.as_slice(), by_key) {
        ([key], _) => explain(masters, key.clone()).await,
        ([], Some(answer)) => Ok(answer),
        ([], None) => Err(CliError::Failed(format!(
            "no live pod has the id {}: name a pod that left by its key or IP address",
            clean(pod)
        ))),
        (keys, _) => Err(CliError::Failed(format!(
            "{} live pods have the id {}: name one by its key: {}",
            keys.len(),
            clean(pod),
            clean(&keys.join(", "))
        ))),
    }
}

async fn explain(masters: &Masters, key: String) -> Result<ExplainPodResponse, CliError> {
    let request = ExplainPodRequest { key };
    masters
        .read(async |client| client.ensemble().explain_pod(request.clone()).await)
        .await
}

fn show(answer: &ExplainPodResponse, output: &mut Output<'_>) -> Result<(), CliError> {
    let (style, verdict) = if answer.live {
        (Style::Good, "is in the roster")
    } else {
        (Style::Bad, "is not in the roster")
    };
    let told = !answer.summary.is_empty();
    let summary = if told {
        clean(&answer.summary)
    } else {
        clean(&format!("{} {verdict}", answer.key))
    };
    let summary = output.paint(style, &summary);
    output.line(summary)?;
    // The summary of a pod that left tells of its removal already, if not always by whom.
    match &answer.removal {
        Some(removal) if answer.live || !told => {
            output.line(removed(removal, SystemTime::now()))?;
        }
        Some(Removal { by, .. }) if !answer.summary.contains(by) => {
            output.line(format_args!("evicted by {}", clean(by)))?;
        }
        Some(_) | None => {}
    }
    if answer.views.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.table(
        &["MASTER", "LEADS", "HEARD", "EXPIRES", "ERROR"],
        answer.views.iter().map(row),
    )
}

fn row(view: &MasterView) -> Vec<String> {
    let never = |span: String, mark: &str| {
        if span == NOTHING || !view.error.is_empty() {
            NOTHING.to_owned()
        } else {
            format!("{mark}{span}")
        }
    };
    let heard = match never(proto_span(view.heard_ago.as_ref()), "") {
        span if span != NOTHING => format!("{span} ago"),
        _ if view.error.is_empty() => "never".to_owned(),
        span => span,
    };
    vec![
        view.master
            .as_ref()
            .map_or_else(|| NOTHING.to_owned(), master),
        if view.leads { "yes" } else { "no" }.to_owned(),
        heard,
        never(proto_span(view.expires_in.as_ref()), "in "),
        or_nothing(&view.error),
    ]
}

fn removed(removal: &Removal, now: SystemTime) -> String {
    let id = removal.pod.as_ref().map_or("", |pod| pod.id.as_str());
    let by = match clean(&removal.by) {
        by if by.is_empty() => by,
        by => format!(" ({by})"),
    };
    format!(
        "last removal: {} ago, {} by {}: {}{by}; it had been silent for {}",
        age(removal.time.as_ref(), now),
        or_nothing(id),
        or_nothing(&removal.master),
        reason(removal.reason()),
        proto_span(removal.silence.as_ref()),
    )
}

/// Why a pod left, in words.
pub(super) fn reason(reason: LeaveReason) -> &'static str {
    match reason {
        LeaveReason::Unspecified => "for a reason that this master did not see",
        LeaveReason::Down => "it said goodbye",
        LeaveReason::Expired => "it was silent for its TTL",
        LeaveReason::Lost => "its process died while it was attached",
        LeaveReason::Replaced => "another pod reports from its address",
        LeaveReason::Evicted => "an operator evicted it",
    }
}
