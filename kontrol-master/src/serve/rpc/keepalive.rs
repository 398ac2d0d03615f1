//! KeepaliveService.

use super::{Context, convert, stream::why_it_ended};
use crate::{
    ensemble::keepalive::{Accepted, Standing},
    metrics::Queue,
    serve::access::Caller,
};
use futures::{Stream, StreamExt};
use kontrol_proto::v1::{
    PingError, PingRequest, PingResponse, PingStreamRequest, PingStreamResponse,
    keepalive_service_server::KeepaliveService, ping_stream_request::Kind,
    ping_stream_response::Result as StreamResult,
};
use prost::Message;
use std::pin::Pin;
use tokio::sync::watch;
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
    ) -> Result<(PingResponse, Option<Standing>), Status> {
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
        let accepted = keepalives.accept(&report, &key).await?;
        Ok((self.answer(accepted), keepalives.standing(&report)))
    }

    fn answer(&self, accepted: Accepted) -> PingResponse {
        let settings = &self.context.settings;
        PingResponse {
            key: accepted.key.to_string(),
            seq: accepted.seq,
            ttl: convert::duration(settings.ttl),
            interval: convert::duration(settings.interval()),
        }
    }

    /// Takes a whole keepalive of a stream, and tells those behind it what it left.
    async fn ping_of(
        &self,
        caller: &Caller,
        ping: PingRequest,
        left: watch::Sender<Option<Standing>>,
    ) -> Result<StreamResult, Status> {
        let (response, standing) = self.take(caller, PING_STREAM, ping).await?;
        left.send_replace(standing);
        Ok(StreamResult::Response(response))
    }

    /// Takes a short one, once the whole one before it is decided.
    async fn beat_of(
        &self,
        beat: u64,
        mut left: watch::Receiver<Option<Standing>>,
    ) -> Result<StreamResult, Status> {
        if beat == 0 {
            return Err(Status::invalid_argument("beat must be above 0"));
        }
        // Its sender goes once that is decided; what it left can be read all the same.
        while left.changed().await.is_ok() {}
        let standing = left.borrow().clone();
        let Some(standing) = standing else {
            return Ok(StreamResult::Again(true));
        };
        let confirmed = self.context.keepalives.confirm(&standing, beat).await?;
        Ok(confirmed.map_or(StreamResult::Again(true), |accepted| {
            StreamResult::Response(self.answer(accepted))
        }))
    }
}

#[tonic::async_trait]
impl KeepaliveService for Service {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let taken = self.take(&caller, PING, request.into_inner()).await;
        taken.map(|(response, _)| Response::new(response))
    }

    type PingStreamStream = Pin<Box<dyn Stream<Item = Result<PingStreamResponse, Status>> + Send>>;

    async fn ping_stream(
        &self,
        request: Request<Streaming<PingStreamRequest>>,
    ) -> Result<Response<Self::PingStreamStream>, Status> {
        let service = self.clone();
        let caller = Caller::of(request.extensions())?;
        let end = self.context.token.clone().cancelled_owned();
        // What the last whole keepalive left, or will have left.
        let mut last = watch::channel(None).1;
        let answers = request
            .into_inner()
            .take_until(end)
            .map(move |request| {
                let (service, caller, before) = (service.clone(), caller.clone(), last.clone());
                let (left, now) = watch::channel(None);
                if matches!(&request, Ok(request) if matches!(request.kind, Some(Kind::Ping(_)))) {
                    last = now;
                }
                async move {
                    let taken = match request?.kind {
                        Some(Kind::Ping(ping)) => service.ping_of(&caller, ping, left).await,
                        Some(Kind::Beat(beat)) => service.beat_of(beat, before).await,
                        None => Err(Status::invalid_argument("ping or beat is required")),
                    };
                    let result = taken.unwrap_or_else(|status| {
                        StreamResult::Error(PingError {
                            code: status.code().into(),
                            message: status.message().to_owned(),
                        })
                    });
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
