//! KeepaliveService.

use super::{Context, convert, stream::why_it_ended};
use crate::{metrics::Queue, serve::access::Caller};
use futures::{Stream, StreamExt};
use kontrol_proto::v1::{
    PingError, PingRequest, PingResponse, PingStreamRequest, PingStreamResponse,
    keepalive_service_server::KeepaliveService, ping_stream_response::Result as StreamResult,
};
use prost::Message;
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

/// As the table of access has them.
const PING: &str = "kontrol.v1.KeepaliveService/Ping";
const PING_STREAM: &str = "kontrol.v1.KeepaliveService/PingStream";
/// How many keepalives of one stream are taken in at once; their answers keep the order.
const STREAM_CONCURRENCY: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Service {
    context: Context,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    async fn take(
        &self,
        caller: &Caller,
        rpc: &str,
        request: PingRequest,
    ) -> Result<PingResponse, Status> {
        caller.speaks_for(&request.id, rpc)?;
        let bytes = request.encoded_len();
        let (mut report, key) =
            convert::report(request).map_err(crate::cluster::error::Error::from)?;
        let (settings, keepalives) = (&self.context.settings, &self.context.keepalives);
        let limit = settings.limits.request_bytes;
        // As with every other limit of keepalives: what was taken once counts on.
        if bytes > limit && !report.down && !keepalives.is_said(&report) {
            self.context.metrics.turned_away(Queue::Sizes);
            return Err(Status::invalid_argument(format!(
                "the keepalive has {bytes} bytes, and {limit} are the limit (--max-request)"
            )));
        }
        report.by = caller.principal().cloned();
        let accepted = keepalives.accept(report, &key).await?;
        Ok(PingResponse {
            key: accepted.key.to_string(),
            seq: accepted.seq,
            ttl: convert::duration(settings.ttl),
            interval: convert::duration(settings.interval()),
        })
    }
}

#[tonic::async_trait]
impl KeepaliveService for Service {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let taken = self.take(&caller, PING, request.into_inner()).await;
        taken.map(Response::new)
    }

    type PingStreamStream = Pin<Box<dyn Stream<Item = Result<PingStreamResponse, Status>> + Send>>;

    async fn ping_stream(
        &self,
        request: Request<Streaming<PingStreamRequest>>,
    ) -> Result<Response<Self::PingStreamStream>, Status> {
        let service = self.clone();
        let caller = Caller::of(request.extensions())?;
        let end = self.context.token.clone().cancelled_owned();
        let answers = request
            .into_inner()
            .take_until(end)
            .map(move |request| {
                let (service, caller) = (service.clone(), caller.clone());
                async move {
                    let ping = request?.ping.unwrap_or_default();
                    let result = match service.take(&caller, PING_STREAM, ping).await {
                        Ok(response) => StreamResult::Response(response),
                        Err(status) => StreamResult::Error(PingError {
                            code: status.code().into(),
                            message: status.message().to_owned(),
                        }),
                    };
                    Ok(PingStreamResponse {
                        result: Some(result),
                    })
                }
            })
            .buffered(STREAM_CONCURRENCY)
            .chain(why_it_ended(self.context.token.clone()));
        Ok(Response::new(Box::pin(answers)))
    }
}
