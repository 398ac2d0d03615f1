//! EnsembleService: reads from this master's roster, and PutState.

use super::{
    Context, convert,
    stream::{alive, until_stop},
    watch,
};
use crate::cluster::{error::Error, peers::dial, store::StoreError};
use futures::{Stream, future::join_all};
use kontrol_core::{
    kv::{Compare, Op, Outcome, Revision, Txn},
    model::{Exact, Invalid, PodKey, Selector, invalid::key},
    view::{Member, PeerMaster, STATE, StateRecord, Unreadable, View},
};
use kontrol_proto::{
    internal::v1::{InspectRequest, peer_service_client::PeerServiceClient},
    v1::{
        self, ExplainPodRequest, ExplainPodResponse, GetEnsembleRequest, GetEnsembleResponse,
        GetPodRequest, GetPodResponse, GetStateRequest, GetStateResponse, ListPodsRequest,
        ListPodsResponse, MasterView, PutStateRequest, PutStateResponse, WatchRequest,
        WatchResponse, ensemble_service_server::EnsembleService,
    },
};
use kontrol_runtime::clock::now_ms;
use std::{pin::Pin, time::Duration};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

/// How often a PutState that others keep overtaking is tried.
const MAX_ATTEMPTS: usize = 16;
/// How long another master may take to tell what it heard.
const INSPECT_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    fn view(&self) -> Result<std::sync::Arc<View>, Error> {
        if self.context.roster.started() {
            Ok(self.context.roster.view())
        } else {
            Err(Error::Unavailable(
                "this master has not read the roster yet; try another master".to_owned(),
            ))
        }
    }

    async fn put_state(&self, state: Exact) -> Result<Revision, Error> {
        let view = self.view()?;
        let mut current = match view.state() {
            Ok((record, revision)) => (StateRecord::clone(record), revision),
            Err(unreadable) => replaced(unreadable),
        };
        for _ in 0..MAX_ATTEMPTS {
            let record = StateRecord {
                state: Some(state.clone()),
                ..current.0
            };
            let txn = Txn {
                compares: vec![match current.1 {
                    0 => Compare::Absent(STATE.to_owned()),
                    revision => Compare::ModRevision(STATE.to_owned(), revision),
                }],
                ops: vec![Op::put(
                    STATE,
                    serde_json::to_vec(&record)
                        .map_err(|error| Error::Internal(format!("write the state: {error}")))?,
                )],
                otherwise: vec![STATE.to_owned()],
            };
            let outcome = match self.context.store.commit(txn).await {
                Err(StoreError::Indeterminate(_)) => {
                    let read = self.context.store.read(&[STATE.to_owned()]).await;
                    read.map(Outcome::Conflict)
                }
                outcome => outcome,
            };
            match outcome.map_err(|error| Error::from_store(&error))? {
                Outcome::Committed(revision) => return Ok(revision),
                Outcome::Conflict(snapshot) => {
                    current = StateRecord::find(&snapshot)
                        .unwrap_or_else(|unreadable| replaced(&unreadable));
                    if current.0.state.as_ref() == Some(&state) {
                        return Ok(current.1);
                    }
                }
            }
        }
        Err(Error::Unavailable(
            "others kept changing the state; try again".to_owned(),
        ))
    }

    async fn inspect(&self, master: &PeerMaster, key: PodKey) -> MasterView {
        let mut view = MasterView {
            master: Some(convert::master(master)),
            ..MasterView::default()
        };
        let ask = async {
            let channel = dial(master, INSPECT_LIMIT)
                .await
                .map_err(|_| "can't be reached".to_owned())?;
            let request = InspectRequest {
                key: key.to_string(),
            };
            let answer = PeerServiceClient::new(channel).inspect(request).await;
            answer
                .map(Response::into_inner)
                .map_err(|status| status.message().to_owned())
        };
        match timeout(INSPECT_LIMIT, ask).await {
            Ok(Ok(answer)) => {
                view.leads = answer.leads;
                view.heard_ago = answer.heard_ago;
                view.expires_in = answer.expires_in;
            }
            Ok(Err(error)) => view.error = error,
            Err(_) => "does not answer".clone_into(&mut view.error),
        }
        view
    }
}

#[tonic::async_trait]
impl EnsembleService for Service {
    async fn get_ensemble(
        &self,
        _: Request<GetEnsembleRequest>,
    ) -> Result<Response<GetEnsembleResponse>, Status> {
        let view = self.view()?;
        let settings = &self.context.settings;
        let leader = view.leader();
        Ok(Response::new(GetEnsembleResponse {
            namespace: settings.namespace.clone(),
            app: settings.app.clone(),
            digest: view.digest().to_string(),
            pod_count: u32::try_from(view.len()).unwrap_or(u32::MAX),
            epoch: leader.map_or(0, |leader| leader.epoch),
            leader: leader.map(|leader| convert::master(&leader.master)),
            masters: view.masters().map(convert::master).collect(),
            callback: Some(self.context.status.now()),
            handled_digest: view
                .state()
                .map(|(record, _)| record.digest.clone())
                .unwrap_or_default(),
            revision: view.revision(),
            settings: Some(v1::Settings {
                ttl: convert::duration(settings.ttl),
                interval: convert::duration(settings.interval()),
                damper: convert::duration(settings.damper),
                damper_max: convert::duration(settings.damper_max),
                fover: convert::duration(settings.fover),
                lost: convert::duration(settings.lost),
                history: convert::duration(settings.history),
                lease: self
                    .context
                    .election
                    .longer_lease()
                    .and_then(convert::duration),
            }),
            master: self.context.id.to_string(),
        }))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let request = request.into_inner();
        let selector: Selector = request
            .selector
            .parse()
            .map_err(|error| Error::from(Invalid::new("selector", error)))?;
        let view = self.view()?;
        let wanted = |member: &&Member| {
            (request.role.is_empty() || member.pod.role() == request.role)
                && selector.matches(member.pod.labels())
        };
        let members = view.pods().filter_map(|pod| view.member(pod.key()));
        Ok(Response::new(ListPodsResponse {
            pods: members
                .filter(wanted)
                .map(|member| convert::member(&view, member))
                .collect(),
            digest: view.digest().to_string(),
            revision: view.revision(),
        }))
    }

    async fn get_pod(
        &self,
        request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        let key = key("key", &request.into_inner().key).map_err(Error::from)?;
        let view = self.view()?;
        let member = view.member(key).ok_or_else(|| {
            Error::NotFound(format!(
                "no live pod has the key {key}; explain it to see why"
            ))
        })?;
        Ok(Response::new(GetPodResponse {
            pod: Some(convert::member(&view, member)),
        }))
    }

    async fn explain_pod(
        &self,
        request: Request<ExplainPodRequest>,
    ) -> Result<Response<ExplainPodResponse>, Status> {
        let key = key("key", &request.into_inner().key).map_err(Error::from)?;
        let view = self.view()?;
        let member = view.member(key);
        let removal = view.removal(key);
        let views = join_all(view.masters().map(|master| self.inspect(master, key))).await;
        Ok(Response::new(ExplainPodResponse {
            key: key.to_string(),
            live: member.is_some(),
            pod: member.map(|member| convert::member(&view, member)),
            summary: summary(key, member, removal.map(AsRef::as_ref), &views),
            removal: removal.map(|removal| convert::removal(removal)),
            views,
        }))
    }

    async fn get_state(
        &self,
        _: Request<GetStateRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        let view = self.view()?;
        let (record, _) = view
            .state()
            .map_err(|unreadable| Error::Internal(unreadable.to_string()))?;
        let state = record.state.as_ref();
        Ok(Response::new(GetStateResponse {
            state: state.map(|state| convert::to_proto(&state.to_value())),
            digest: record.digest.clone(),
            epoch: record.epoch,
            json: state
                .map(|state| state.as_str().to_owned())
                .unwrap_or_default(),
        }))
    }

    async fn put_state(
        &self,
        request: Request<PutStateRequest>,
    ) -> Result<Response<PutStateResponse>, Status> {
        let state = convert::state(request.into_inner()).map_err(Error::from)?;
        let revision = self.put_state(state).await?;
        // So that a GetState that follows shows it. Missing the limit does no harm.
        self.context
            .roster
            .caught_up(revision, Duration::from_millis(500))
            .await;
        Ok(Response::new(PutStateResponse { revision }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        if request.revision < 0 {
            return Err(Error::from(Invalid::new("revision", "is negative")).into());
        }
        self.view()?;
        let token = self.context.token.clone();
        let messages = watch::stream(&self.context.roster, request);
        let messages = alive(messages, |last| WatchResponse {
            revision: last.revision,
            history: last.history.clone(),
            event: None,
        });
        Ok(Response::new(Box::pin(until_stop(messages, token))))
    }
}

/// What takes the place of a record that can't be read, because a person says so: what was handled is lost with it.
fn replaced(unreadable: &Unreadable) -> (StateRecord, Revision) {
    tracing::warn!("a state is put in place of a record that can't be read");
    (StateRecord::default(), unreadable.revision)
}

/// Why a pod is in the roster or not, in a sentence.
fn summary(
    key: PodKey,
    member: Option<&Member>,
    removal: Option<&kontrol_core::view::Removal>,
    views: &[MasterView],
) -> String {
    let show = |duration: prost_types::Duration| {
        Duration::try_from(duration)
            .map(|duration| format!("{:.1} s", duration.as_secs_f64()))
            .unwrap_or_default()
    };
    if let Some(member) = member {
        let pod = &member.pod;
        let leader = views.iter().find(|view| view.leads);
        let deadline = match leader {
            Some(MasterView {
                heard_ago: Some(heard),
                expires_in: Some(expires),
                ..
            }) => format!(
                "the leader last heard it {} ago and removes it in {} if it stays silent",
                show(*heard),
                show(*expires)
            ),
            Some(_) | None => {
                "no leader could tell its deadline, and without one nothing expires".to_owned()
            }
        };
        return format!(
            "{key} ({}) is in the roster with seq {}: {deadline}",
            pod.id(),
            pod.seq()
        );
    }
    let Some(removal) = removal else {
        return format!("{key} is not in the roster, and this master remembers no removal of it");
    };
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
        kontrol_core::view::Reason::Down => "it said that it goes down",
        kontrol_core::view::Reason::Expired => "it was silent for its TTL",
        kontrol_core::view::Reason::Lost => "its process died while it was attached",
        kontrol_core::view::Reason::Replaced => "another pod reports from its address",
        kontrol_core::view::Reason::Unknown => "nobody wrote why",
    };
    format!(
        "{key} ({}) is not in the roster: it left{ago}, because {why}",
        removal.pod.id()
    )
}
