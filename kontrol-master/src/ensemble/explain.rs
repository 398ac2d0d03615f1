//! Why a pod is in the roster or not: what each master heard of it, and a sentence.

use crate::cluster::peers::Dialer;
use kontrol_core::{
    model::PodKey,
    view::{Member, PeerMaster, Reason, Removal, View, operate::Freeze},
};
use kontrol_proto::internal::v1::{InspectRequest, peer_service_client::PeerServiceClient};
use kontrol_runtime::clock::now_ms;
use std::time::Duration;
use tokio::time::timeout;

/// How long another master may take to tell what it heard.
const INSPECT_LIMIT: Duration = Duration::from_secs(1);

/// What one master knows of a pod.
#[derive(Debug, Clone)]
pub struct Account {
    /// The master.
    pub master: PeerMaster,
    /// Whether it leads.
    pub leads: bool,
    /// How long ago it heard the pod last.
    pub heard_ago: Option<Duration>,
    /// In what time it removes the pod if that stays silent.
    pub expires_in: Option<Duration>,
    /// Why it could not be asked; empty when it was.
    pub error: String,
}

/// Asks a master what it knows of a pod.
pub async fn ask(dialer: &Dialer, master: &PeerMaster, key: PodKey) -> Account {
    let mut account = Account {
        master: master.clone(),
        leads: false,
        heard_ago: None,
        expires_in: None,
        error: String::new(),
    };
    let ask = async {
        let channel = dialer
            .dial(master, INSPECT_LIMIT)
            .await
            .map_err(|_| "can't be reached".to_owned())?;
        let request = InspectRequest {
            key: key.to_string(),
        };
        let answer = PeerServiceClient::new(channel).inspect(request).await;
        answer.map_err(|status| status.message().to_owned())
    };
    match timeout(INSPECT_LIMIT, ask).await {
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            let span = |span: prost_types::Duration| Duration::try_from(span).ok();
            account.leads = answer.leads;
            account.heard_ago = answer.heard_ago.and_then(span);
            account.expires_in = answer.expires_in.and_then(span);
        }
        Ok(Err(error)) => account.error = error,
        Err(_) => "does not answer".clone_into(&mut account.error),
    }
    account
}

/// Why a pod is in the roster or not, in a sentence.
pub fn summary(view: &View, key: PodKey, accounts: &[Account]) -> String {
    if let Some(member) = view.member(key) {
        let (operate, _) = view.operate();
        return present(key, member, accounts, operate.safeguard.as_ref());
    }
    match view.removal(key) {
        Some(removal) => gone(key, removal),
        None => format!("{key} is not in the roster, and this master remembers no removal of it"),
    }
}

fn present(key: PodKey, member: &Member, accounts: &[Account], frozen: Option<&Freeze>) -> String {
    let show = |span: Duration| format!("{:.1} s", span.as_secs_f64());
    let leader = accounts.iter().find(|account| account.leads);
    let deadline = match (leader, frozen) {
        (
            Some(Account {
                heard_ago,
                expires_in: Some(Duration::ZERO),
                ..
            }),
            Some(freeze),
        ) => {
            let ago = heard_ago.map_or("long".to_owned(), show);
            format!(
                "the leader last heard it {ago} ago and would have removed it, but {} of {} pods fell silent at once, and \
                 the safeguard keeps them until they are back, `kontrol-master release`, or its limit",
                freeze.silent, freeze.pods
            )
        }
        (
            Some(Account {
                heard_ago: Some(heard),
                expires_in: Some(expires),
                ..
            }),
            _,
        ) => format!(
            "the leader last heard it {} ago and removes it in {} if it stays silent",
            show(*heard),
            show(*expires)
        ),
        (Some(_) | None, _) => {
            "no leader could tell its deadline, and without one nothing expires".to_owned()
        }
    };
    let pod = &member.pod;
    let (id, seq) = (pod.id(), pod.seq());
    format!("{key} ({id}) is in the roster with seq {seq}: {deadline}")
}

fn gone(key: PodKey, removal: &Removal) -> String {
    let ago = removal.record.as_ref().map_or_else(String::new, |record| {
        let ago = Duration::from_millis(now_ms().saturating_sub(record.time_ms));
        format!(
            " {:.0} s ago, after {:.1} s of silence, by master {}",
            ago.as_secs_f64(),
            Duration::from_millis(record.silence_ms).as_secs_f64(),
            record.master
        )
    });
    let why = match removal.reason {
        Reason::Down => "it said that it goes down",
        Reason::Expired => "it was silent for its TTL",
        Reason::Lost => "its process died while it was attached",
        Reason::Replaced => "another pod reports from its address",
        Reason::Evicted => "an operator evicted it",
        Reason::Unknown => "nobody wrote why",
    };
    let id = removal.pod.id();
    format!("{key} ({id}) is not in the roster: it left{ago}, because {why}")
}
