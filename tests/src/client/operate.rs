//! The operator's hand: hold, resume, run, preview, evict, release, as a client over gRPC asks for them.

use super::{Api, MAX_ANSWER_BYTES, answer};
use kontrol_proto::v1::{
    EvictPodRequest, EvictPodResponse, HoldCallbackRequest, HoldCallbackResponse,
    PreviewCallbackRequest, PreviewCallbackResponse, ReleaseSafeguardRequest,
    ReleaseSafeguardResponse, ResumeCallbackRequest, ResumeCallbackResponse, RunCallbackRequest,
    RunCallbackResponse, operate_service_client::OperateServiceClient,
};
use std::time::Duration;
use tonic::{Status, transport::Channel};

impl Api {
    /// The operate service.
    pub fn operates(&self) -> OperateServiceClient<Channel> {
        OperateServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Holds the callback for so long.
    pub async fn hold(
        &self,
        reason: &str,
        duration: Duration,
    ) -> Result<HoldCallbackResponse, Status> {
        self.ask_hold(HoldCallbackRequest {
            reason: reason.into(),
            duration: Some(duration.try_into().unwrap()),
        })
        .await
    }

    /// Asks for a hold, whatever is asked for.
    pub async fn ask_hold(
        &self,
        request: HoldCallbackRequest,
    ) -> Result<HoldCallbackResponse, Status> {
        answer(self.operates().hold_callback(request)).await
    }

    /// Ends the hold.
    pub async fn resume(&self, reason: &str) -> Result<ResumeCallbackResponse, Status> {
        let reason = reason.to_owned();
        answer(
            self.operates()
                .resume_callback(ResumeCallbackRequest { reason }),
        )
        .await
    }

    /// Has the callback run now.
    pub async fn run_callback(&self, again: bool) -> Result<RunCallbackResponse, Status> {
        let request = RunCallbackRequest {
            again,
            reason: "a test".into(),
        };
        answer(self.operates().run_callback(request)).await
    }

    /// What the next run would be handed.
    pub async fn preview(&self) -> Result<PreviewCallbackResponse, Status> {
        answer(self.operates().preview_callback(PreviewCallbackRequest {})).await
    }

    /// Evicts a pod.
    pub async fn evict(&self, key: &str, reason: &str) -> Result<EvictPodResponse, Status> {
        let request = EvictPodRequest {
            key: key.into(),
            reason: reason.into(),
        };
        answer(self.operates().evict_pod(request)).await
    }

    /// Ends the safeguard.
    pub async fn release(&self, reason: &str) -> Result<ReleaseSafeguardResponse, Status> {
        let reason = reason.to_owned();
        answer(
            self.operates()
                .release_safeguard(ReleaseSafeguardRequest { reason }),
        )
        .await
    }

    /// The value of a metric without labels; the sum of all its values where there are some. None where there is no such line.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.http("GET", "/metrics", None).await.body;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().unwrap())
        });
        let values: Vec<f64> = values.collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}
