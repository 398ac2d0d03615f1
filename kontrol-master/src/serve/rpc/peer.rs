//! PeerService: what the other masters call.

use super::{Context, convert};
use crate::cluster::{
    error::Error,
    relay::{self, Sign},
    status::CallbackStatus,
};
use futures::{Stream, StreamExt, stream};
use kontrol_core::{
    liveness::Instance,
    model::{PodKey, invalid::key},
    view::millis,
};
use kontrol_proto::internal::v1::{
    InspectRequest, InspectResponse, RelayRequest, RelayResponse, peer_service_server::PeerService,
};
use std::{pin::Pin, time::Duration};
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Response, Status, Streaming};

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

/// One relay from a peer.
struct Relayed {
    context: Context,
    requests: Streaming<RelayRequest>,
    callback: watch::Receiver<CallbackStatus>,
    told: bool,
    /// When the stream was opened: what its stamps count from.
    began: Instant,
}

impl Relayed {
    /// Counts the next batch and answers it; `None` when the stream is over.
    async fn next(&mut self) -> Option<Result<RelayResponse, Status>> {
        let request = match self.requests.message().await {
            Ok(Some(request)) => request,
            Ok(None) => return None,
            Err(status) => return Some(Err(status)),
        };
        if request.leader != *self.context.instance {
            let message = format!(
                "the master {} (instance {})",
                self.context.id, self.context.instance
            );
            return Some(Err(Status::not_found(message)));
        }
        let leads = self.context.election.leads();
        if leads.is_none_or(|fence| fence.epoch() != request.epoch) {
            let message = format!("not the leader of epoch {}", request.epoch);
            let view = self.context.roster.peek();
            let later = view.leader().is_some_and(|now| now.epoch > request.epoch);
            return Some(Err(if later {
                Status::aborted(message)
            } else {
                Status::failed_precondition(message)
            }));
        }
        let Ok(master) = request.master.parse::<Instance>() else {
            return Some(Err(Status::invalid_argument("master is not a master's id")));
        };
        let now = Instant::now();
        let since = now
            .saturating_duration_since(self.began)
            .saturating_sub(Duration::from_millis(request.echo));
        let held = Duration::from_millis(request.echo_age_ms.into());
        if request.batch > 1 && relay::is_late(since, held) {
            return Some(Err(Status::deadline_exceeded(
                "the batch was under way for too long",
            )));
        }
        if request.batch <= 1 && !request.refreshes.is_empty() {
            return Some(Err(Status::invalid_argument(
                "batch 1 has refreshes, and no echo",
            )));
        }
        let view = self.context.roster.view();
        let mut again = Vec::new();
        for (position, refresh) in (0..).zip(&request.refreshes) {
            let key = u128::from(refresh.key_high) << 64 | u128::from(refresh.key_low);
            let age = Duration::from_millis(refresh.age_ms.into());
            let sign = Sign {
                key: PodKey::from_u128(key),
                revision: refresh.revision,
                beat: refresh.beat,
                attachment: refresh.attachment,
                at: now.checked_sub(age).unwrap_or(now),
            };
            if refresh.detached {
                self.context.relay.detached_here(sign);
            } else if refresh.written {
                if let Some(member) = view.member(sign.key) {
                    member.heard.wrote(sign.revision);
                }
            } else if !relay::hear(&view, sign, master) {
                again.push(position);
            }
        }
        let changed = self.callback.has_changed().unwrap_or(false) || !self.told;
        self.told = true;
        Some(Ok(RelayResponse {
            batch: request.batch,
            callback: changed.then(|| self.callback.borrow_and_update().clone().into()),
            revision: if again.is_empty() { 0 } else { view.revision() },
            again,
            stamp: millis(self.began.elapsed()),
        }))
    }
}

#[tonic::async_trait]
impl PeerService for Service {
    type RelayStream = Pin<Box<dyn Stream<Item = Result<RelayResponse, Status>> + Send>>;

    async fn relay(
        &self,
        request: Request<Streaming<RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let relayed = Relayed {
            context: self.context.clone(),
            requests: request.into_inner(),
            callback: self.context.status.follow(),
            told: false,
            began: Instant::now(),
        };
        let end = self.context.token.clone().cancelled_owned();
        let answers = stream::unfold(Some(relayed), async |relayed| {
            let mut relayed = relayed?;
            let answer = relayed.next().await?;
            // A refusal is the last word of a stream.
            let rest = answer.is_ok().then_some(relayed);
            Some((answer, rest))
        });
        Ok(Response::new(Box::pin(answers.take_until(end))))
    }

    async fn inspect(
        &self,
        request: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, Status> {
        let key = key("key", &request.into_inner().key).map_err(Error::from)?;
        let leads = self.context.election.leads().is_some();
        let view = self.context.roster.view();
        let heard = view.member(key).and_then(|member| member.heard.at());
        let expires = heard
            .filter(|_| leads)
            .map(|heard| heard + self.context.settings.ttl);
        Ok(Response::new(InspectResponse {
            leads,
            heard_ago: heard.and_then(|heard| convert::duration(heard.elapsed())),
            expires_in: expires
                .and_then(|at| convert::duration(at.saturating_duration_since(Instant::now()))),
        }))
    }
}
