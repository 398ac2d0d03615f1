//! The scripted master's ActionService: hands each channel to the test.

use super::{
    channel::{Channel, welcome},
    known,
};
use futures::{Stream, StreamExt};
use kontrol_proto::v1::{
    AttachRequest, AttachResponse, CancelActionRequest, CancelActionResponse, DispatchRequest,
    DispatchResponse, GetActionRequest, GetActionResponse, ListActionsRequest, ListActionsResponse,
    action_service_server::ActionService, attach_request::Event,
};
use std::pin::Pin;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Actions {
    pub(super) refusal: watch::Receiver<Option<Status>>,
    pub(super) tokens: watch::Receiver<Option<String>>,
    pub(super) opened: mpsc::Sender<Channel>,
    pub(super) token: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ActionService for Actions {
    type AttachStream = Answers<AttachResponse>;
    type DispatchStream = Answers<DispatchResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        known(&self.tokens, &request)?;
        if let Some(status) = self.refusal.borrow().clone() {
            return Err(status);
        }
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.event);
        let Some(Event::Hello(hello)) = first else {
            return Err(Status::invalid_argument("hello comes first"));
        };
        let (orders, waiting) = mpsc::channel(64);
        orders.send(Ok(welcome())).await.unwrap();
        let channel = Channel::new(hello, requests, orders);
        self.opened.send(channel).await.unwrap();
        let stopped = self.token.clone().cancelled_owned();
        let answers = ReceiverStream::new(waiting).take_until(stopped);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn dispatch(
        &self,
        _: Request<DispatchRequest>,
    ) -> Result<Response<Self::DispatchStream>, Status> {
        Err(Status::unimplemented("for slaves only"))
    }

    async fn get_action(
        &self,
        _: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        Err(Status::unimplemented("for slaves only"))
    }

    async fn list_actions(
        &self,
        _: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        Err(Status::unimplemented("for slaves only"))
    }

    async fn cancel_action(
        &self,
        _: Request<CancelActionRequest>,
    ) -> Result<Response<CancelActionResponse>, Status> {
        Err(Status::unimplemented("for slaves only"))
    }
}
