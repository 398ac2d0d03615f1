//! The scripted master's hold, runs, preview, evictions and safeguard.

use super::Scripted;
use kontrol_proto::v1::{operate_service_server::OperateService, *};
use std::{fmt::Debug, future::pending};
use tonic::{Request, Response, Status};

/// What comes of operating the ensemble.
#[derive(Default)]
pub(in super::super) struct Operated {
    pub(in super::super) hold: Option<Hold>,
    pub(in super::super) run: RunCallbackResponse,
    pub(in super::super) preview: PreviewCallbackResponse,
    pub(in super::super) evicted: EvictPodResponse,
    pub(in super::super) safeguard: Option<Safeguard>,
    /// Refuses all of it so.
    pub(in super::super) refuse: Option<Status>,
}

impl Scripted {
    async fn operate<Q: Debug, A>(
        &self,
        request: &Request<Q>,
        answer: A,
    ) -> Result<Response<A>, Status> {
        let answer = self.0.answer(request, answer);
        if self.0.hang {
            pending::<()>().await;
        }
        match &self.0.operated.refuse {
            Some(status) => Err(status.clone()),
            None => answer,
        }
    }
}

#[tonic::async_trait]
impl OperateService for Scripted {
    async fn hold_callback(
        &self,
        request: Request<HoldCallbackRequest>,
    ) -> Result<Response<HoldCallbackResponse>, Status> {
        let answer = HoldCallbackResponse {
            hold: self.0.operated.hold.clone(),
            revision: 7,
        };
        self.operate(&request, answer).await
    }

    async fn resume_callback(
        &self,
        request: Request<ResumeCallbackRequest>,
    ) -> Result<Response<ResumeCallbackResponse>, Status> {
        let answer = ResumeCallbackResponse {
            hold: self.0.operated.hold.clone(),
            revision: 8,
        };
        self.operate(&request, answer).await
    }

    async fn run_callback(
        &self,
        request: Request<RunCallbackRequest>,
    ) -> Result<Response<RunCallbackResponse>, Status> {
        self.operate(&request, self.0.operated.run.clone()).await
    }

    async fn preview_callback(
        &self,
        request: Request<PreviewCallbackRequest>,
    ) -> Result<Response<PreviewCallbackResponse>, Status> {
        let answer = self.0.operated.preview.clone();
        self.operate(&request, answer).await
    }

    async fn evict_pod(
        &self,
        request: Request<EvictPodRequest>,
    ) -> Result<Response<EvictPodResponse>, Status> {
        let answer = self.0.operated.evicted.clone();
        self.operate(&request, answer).await
    }

    async fn release_safeguard(
        &self,
        request: Request<ReleaseSafeguardRequest>,
    ) -> Result<Response<ReleaseSafeguardResponse>, Status> {
        let answer = ReleaseSafeguardResponse {
            safeguard: self.0.operated.safeguard.clone(),
            revision: 9,
        };
        self.operate(&request, answer).await
    }
}
