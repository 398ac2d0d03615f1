//! OperateService.

use super::{Context, convert};
use crate::{
    cluster::error::Error,
    ensemble::{
        operate::{self, Asked},
        preview::{self, Wait, Why},
    },
};
use kontrol_core::{
    kv::Revision,
    model::{Invalid, invalid::key},
};
use kontrol_proto::v1::{
    EvictPodRequest, EvictPodResponse, HoldCallbackRequest, HoldCallbackResponse,
    PreviewCallbackRequest, PreviewCallbackResponse, ReleaseSafeguardRequest,
    ReleaseSafeguardResponse, ResumeCallbackRequest, ResumeCallbackResponse, RunCallbackRequest,
    RunCallbackResponse, WaitReason, operate_service_server::OperateService,
    preview_callback_response,
};
use std::time::Duration;
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    /// So that a read that follows shows it. Missing the limit does no harm.
    async fn shown(&self, revision: Revision) {
        let limit = Duration::from_millis(500);
        self.context.roster.caught_up(revision, limit).await;
    }
}

#[tonic::async_trait]
impl OperateService for Service {
    async fn hold_callback(
        &self,
        request: Request<HoldCallbackRequest>,
    ) -> Result<Response<HoldCallbackResponse>, Status> {
        let by = super::caller(&request);
        let request = request.into_inner();
        let duration = request.duration.map(Duration::try_from).transpose();
        let duration =
            duration.map_err(|_| Error::from(Invalid::new("duration", "is negative")))?;
        let asked = Asked::new(by, request.reason)?;
        let store = &self.context.store;
        let (hold, revision) =
            operate::hold(store, &*self.context.view()?, asked, duration).await?;
        self.shown(revision).await;
        Ok(Response::new(HoldCallbackResponse {
            hold: Some(convert::hold(&hold)),
            revision,
        }))
    }

    async fn resume_callback(
        &self,
        request: Request<ResumeCallbackRequest>,
    ) -> Result<Response<ResumeCallbackResponse>, Status> {
        let by = super::caller(&request);
        let asked = Asked::new(by, request.into_inner().reason)?;
        let store = &self.context.store;
        let (hold, revision) = operate::resume(store, &*self.context.view()?, &asked).await?;
        self.shown(revision).await;
        Ok(Response::new(ResumeCallbackResponse {
            hold: hold.as_ref().map(convert::hold),
            revision,
        }))
    }

    async fn run_callback(
        &self,
        request: Request<RunCallbackRequest>,
    ) -> Result<Response<RunCallbackResponse>, Status> {
        let by = super::caller(&request);
        let request = request.into_inner();
        let asked = Asked::new(by, request.reason)?;
        let status = self.context.status.now();
        let store = &self.context.store;
        let asking =
            operate::run(store, &*self.context.view()?, &status, asked, request.again).await?;
        self.shown(asking.revision).await;
        Ok(Response::new(RunCallbackResponse {
            digest: asking.digest.to_string(),
            handled: asking.handled,
            revision: asking.revision,
        }))
    }

    async fn preview_callback(
        &self,
        _: Request<PreviewCallbackRequest>,
    ) -> Result<Response<PreviewCallbackResponse>, Status> {
        let status = self.context.status.now();
        let Context { store, memory, .. } = &self.context;
        let view = self.context.view()?;
        let preview = preview::preview(store, &view, &status, memory).await?;
        let input = String::from_utf8(preview.input)
            .map_err(|error| Error::Internal(format!("the input is no text: {error}")))?;
        Ok(Response::new(PreviewCallbackResponse {
            digest: preview.digest.to_string(),
            handled_digest: preview.handled,
            input: None,
            input_json: input.trim_end().to_owned(),
            waits: preview.waits.into_iter().map(wait).collect(),
        }))
    }

    async fn evict_pod(
        &self,
        request: Request<EvictPodRequest>,
    ) -> Result<Response<EvictPodResponse>, Status> {
        let by = super::caller(&request);
        let request = request.into_inner();
        let key = key("key", &request.key).map_err(Error::from)?;
        let asked = Asked::new(by, request.reason)?;
        let Context { store, id, .. } = &self.context;
        let (pod, revision) =
            operate::evict(store, &*self.context.view()?, key, &asked, id).await?;
        self.shown(revision).await;
        Ok(Response::new(EvictPodResponse {
            pod: Some(convert::pod(&pod)),
            next: "if it lives, it comes back with its next keepalive, as a new pod with a new seq: stop its slave if it is to stay away"
                .to_owned(),
            revision,
        }))
    }

    async fn release_safeguard(
        &self,
        request: Request<ReleaseSafeguardRequest>,
    ) -> Result<Response<ReleaseSafeguardResponse>, Status> {
        let by = super::caller(&request);
        let asked = Asked::new(by, request.into_inner().reason)?;
        let store = &self.context.store;
        let (freeze, revision) = operate::release(store, &*self.context.view()?, asked).await?;
        self.shown(revision).await;
        Ok(Response::new(ReleaseSafeguardResponse {
            safeguard: freeze.as_ref().map(convert::safeguard),
            revision,
        }))
    }
}

fn wait(wait: Wait) -> preview_callback_response::Wait {
    let reason = match wait.why {
        Why::NoCallback => WaitReason::NoCallback,
        Why::NoLeader => WaitReason::NoLeader,
        Why::NothingNew => WaitReason::NothingNew,
        Why::Damper => WaitReason::Damper,
        Why::Retry => WaitReason::Retry,
        Why::Held => WaitReason::Held,
        Why::Running => WaitReason::Running,
        Why::Safeguard => WaitReason::Safeguard,
        Why::Trouble => WaitReason::Trouble,
    };
    preview_callback_response::Wait {
        reason: reason.into(),
        until: wait.until.map(Into::into),
        text: wait.text,
    }
}
