//! EnsembleService: reads from this master's roster, and PutState.

use super::{
    Context, convert,
    page::page,
    stream::{alive, until_stop},
    watch,
};
use crate::{
    cluster::error::Error,
    ensemble::{explain, operate::held, state},
};
use futures::{Stream, future::join_all};
use kontrol_core::{
    json::depth_of_text,
    model::{Invalid, Selector, invalid::key},
};
use kontrol_proto::v1::{
    self, ExplainPodRequest, ExplainPodResponse, GetEnsembleRequest, GetEnsembleResponse,
    GetPodRequest, GetPodResponse, GetStateRequest, GetStateResponse, ListPodsRequest,
    ListPodsResponse, PutStateRequest, PutStateResponse, WatchRequest, WatchResponse,
    ensemble_service_server::EnsembleService,
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl EnsembleService for Service {
    async fn get_ensemble(
        &self,
        _: Request<GetEnsembleRequest>,
    ) -> Result<Response<GetEnsembleResponse>, Status> {
        let view = self.context.view()?;
        let settings = &self.context.settings;
        let leader = view.leader();
        let (operate, _) = view.operate();
        Ok(Response::new(GetEnsembleResponse {
            namespace: settings.namespace.clone(),
            app: settings.app.clone(),
            digest: view.digest().to_string(),
            pod_count: u32::try_from(view.len()).unwrap_or(u32::MAX),
            epoch: leader.map_or(0, |leader| leader.epoch),
            leader: leader.map(|leader| convert::master(&leader.master)),
            masters: view.masters().map(convert::master).collect(),
            callback: Some(self.context.status.now().into()),
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
                safeguard: settings.safeguard.percent.into(),
                safeguard_min: u32::try_from(settings.safeguard.min).unwrap_or(u32::MAX),
                safeguard_max: convert::duration(settings.safeguard.max),
            }),
            master: self.context.id.to_string(),
            hold: held(operate).map(convert::hold),
            safeguard: operate.safeguard.as_ref().map(convert::safeguard),
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
        let behind = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Error::from(Invalid::new("page_token", "is not one that ListPods gave"))
            })?),
        };
        let most = match request.page_size {
            0 => usize::MAX,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        };
        let view = self.context.view()?;
        let page = page(&view, behind, most, |member| {
            (request.role.is_empty() || member.pod.role() == request.role)
                && selector.matches(member.pod.labels())
        });
        Ok(Response::new(ListPodsResponse {
            pods: page.pods,
            digest: view.digest().to_string(),
            revision: view.revision(),
            next_page_token: page.next.map(|seq| seq.to_string()).unwrap_or_default(),
        }))
    }

    async fn get_pod(
        &self,
        request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        let key = key("key", &request.into_inner().key).map_err(Error::from)?;
        let view = self.context.view()?;
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
        let view = self.context.view()?;
        let member = view.member(key);
        let accounts = join_all(
            view.masters()
                .map(|master| explain::ask(&self.context.dialer, master, key)),
        )
        .await;
        Ok(Response::new(ExplainPodResponse {
            key: key.to_string(),
            live: member.is_some(),
            pod: member.map(|member| convert::member(&view, member)),
            summary: explain::summary(&view, key, &accounts),
            removal: view.removal(key).map(|removal| convert::removal(removal)),
            views: accounts.into_iter().map(convert::account).collect(),
        }))
    }

    async fn get_state(
        &self,
        _: Request<GetStateRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        let view = self.context.view()?;
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
        let put = convert::state(request.into_inner()).map_err(Error::from)?;
        let limits = &self.context.settings.limits;
        if let Some(reason) = limits.too_deep(depth_of_text(put.as_str())) {
            return Err(Error::from(Invalid::new("state", reason)).into());
        }
        let revision = state::put(&self.context.store, &*self.context.view()?, put).await?;
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
        self.context.view()?;
        let token = self.context.token.clone();
        let messages = watch::stream(
            &self.context.roster,
            Arc::clone(&self.context.metrics),
            request,
        );
        let messages = alive(messages, |last| WatchResponse {
            revision: last.revision,
            history: last.history.clone(),
            event: None,
        });
        Ok(Response::new(Box::pin(until_stop(messages, token))))
    }
}
