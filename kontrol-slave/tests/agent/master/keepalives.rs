//! The keepalives of the scripted master: as requests, and on streams.

use super::{By, Heard, Reply, Streams, known};
use futures::{Stream, StreamExt};
use kontrol_proto::v1::{
    PingError, PingRequest, PingResponse, PingStreamRequest, PingStreamResponse,
    keepalive_service_server::KeepaliveService, ping_stream_request::Kind,
    ping_stream_response::Result as Answer,
};
use kontrol_slave::payload::from_proto;
use std::{future::pending, pin::Pin, sync::Arc};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

#[derive(Clone)]
pub(super) struct Service {
    pub(super) reply: watch::Receiver<Reply>,
    pub(super) streams: watch::Receiver<Streams>,
    /// How often what was said on streams was forgotten.
    pub(super) again: watch::Receiver<u32>,
    pub(super) heard: watch::Sender<Vec<Heard>>,
    pub(super) tokens: watch::Receiver<Option<String>>,
    pub(super) token: CancellationToken,
}

impl Service {
    async fn answer(&self, request: PingRequest, by: By) -> Result<PingResponse, Status> {
        let heard = Heard {
            at: Instant::now(),
            request,
            by,
        };
        let payload = heard.request.payload.clone().unwrap_or_default();
        let payload = from_proto(payload).unwrap_or_default().to_string();
        let reply = self.reply.borrow().clone();
        if matches!(reply, Reply::AcceptSmall(_)) && payload.len() > 50 {
            return Err(Status::invalid_argument("payload is too large"));
        }
        let key = match heard.request.ip.as_str() {
            "127.0.0.1" => "2kce4N",
            _ => "2kce4O",
        };
        self.heard.send_modify(|all| all.push(heard));
        match reply {
            Reply::Accept(interval) | Reply::AcceptSmall(interval) => Ok(PingResponse {
                key: key.into(),
                seq: 7,
                ttl: prost_types::Duration::try_from(interval * 5).ok(),
                interval: prost_types::Duration::try_from(interval).ok(),
            }),
            Reply::Refuse(status) => Err(status),
            Reply::Hang => {
                let hang = self.token.run_until_cancelled(pending::<()>());
                hang.await;
                Err(Status::unavailable("stopped"))
            }
        }
    }

    /// Answers one keepalive of a stream.
    async fn said(
        &self,
        said: &tokio::sync::Mutex<Option<(PingRequest, u32)>>,
        kind: Option<Kind>,
    ) -> Answer {
        let (streams, again) = (*self.streams.borrow(), *self.again.borrow());
        let mut said = said.lock().await;
        let answer = match kind.unwrap() {
            Kind::Ping(ping) => {
                let answer = self.answer(ping.clone(), By::Stream).await;
                *said = answer.is_ok().then_some((ping, again));
                answer
            }
            Kind::Beat(_) if streams == Streams::WithoutBeats => {
                Err(Status::invalid_argument("app is required"))
            }
            Kind::Beat(beat) => match &*said {
                Some((ping, when)) if *when == again => {
                    let ping = PingRequest {
                        beat,
                        ..ping.clone()
                    };
                    self.answer(ping, By::Beat).await
                }
                _ => return Answer::Again(true),
            },
        };
        match answer {
            Ok(response) => Answer::Response(response),
            Err(status) => Answer::Error(PingError {
                code: status.code().into(),
                message: status.message().to_owned(),
            }),
        }
    }
}

#[tonic::async_trait]
impl KeepaliveService for Service {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        known(&self.tokens, &request)?;
        let answer = self.answer(request.into_inner(), By::Request).await;
        answer.map(Response::new)
    }

    type PingStreamStream = Pin<Box<dyn Stream<Item = Result<PingStreamResponse, Status>> + Send>>;

    async fn ping_stream(
        &self,
        request: Request<Streaming<PingStreamRequest>>,
    ) -> Result<Response<Self::PingStreamStream>, Status> {
        known(&self.tokens, &request)?;
        let streams = *self.streams.borrow();
        if streams == Streams::Unknown {
            return Err(Status::unimplemented(""));
        }
        if streams == Streams::Deaf {
            return Ok(Response::new(Box::pin(futures::stream::pending())));
        }
        let many = if streams == Streams::CutWhenIdle {
            1
        } else {
            usize::MAX
        };
        let mut tokens = self.tokens.clone();
        tokens.mark_unchanged();
        let end = self.token.clone();
        let over = async move {
            tokio::select! {
                () = end.cancelled() => {}
                Ok(()) = tokens.changed() => {}
            }
        };
        let (service, said) = (self.clone(), Arc::default());
        let answers = request.into_inner().take(many).take_until(over);
        let answers = answers.then(move |request| {
            let (service, said) = (service.clone(), Arc::clone(&said));
            async move {
                let result = Some(service.said(&said, request?.kind).await);
                Ok(PingStreamResponse { result })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
