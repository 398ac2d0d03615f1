//! The scripted master's actions.

use super::Scripted;
use futures::{StreamExt, stream, stream::BoxStream};
use kontrol_proto::v1::{action_service_server::ActionService, *};
use std::sync::Arc;
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};

/// Most actions in a page.
pub(super) const PAGE: usize = 2;

/// What comes of a dispatch.
#[derive(Default)]
pub(in super::super) struct Dispatched {
    /// What is streamed at once.
    pub(in super::super) messages: Vec<Result<DispatchResponse, Status>>,
    /// What comes behind them.
    pub(in super::super) then: Then,
}

/// What comes behind the first messages of a dispatch.
#[derive(Default)]
pub(in super::super) enum Then {
    /// The end.
    #[default]
    End,
    /// These, once it is cancelled, and then the end.
    AfterCancel(Vec<Result<DispatchResponse, Status>>),
    /// Nothing, and no end.
    Silence,
}

/// Tells when the stream that holds it is dropped.
struct Leaving(Arc<Notify>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tonic::async_trait]
impl ActionService for Scripted {
    type AttachStream = BoxStream<'static, Result<AttachResponse, Status>>;
    type DispatchStream = BoxStream<'static, Result<DispatchResponse, Status>>;

    async fn attach(
        &self,
        _request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("no command attaches"))
    }

    async fn dispatch(
        &self,
        request: Request<DispatchRequest>,
    ) -> Result<Response<Self::DispatchStream>, Status> {
        self.0.answer(&request, ())?;
        let script = self.0.dispatches.lock().unwrap().pop_front();
        let Dispatched { messages, then } = script.transpose()?.unwrap_or_default();
        let cancelled = Arc::clone(&self.0.cancelled);
        let then = match then {
            Then::End => stream::empty().boxed(),
            Then::AfterCancel(messages) => stream::once(async move { cancelled.notified().await })
                .flat_map(move |()| stream::iter(messages.clone()))
                .boxed(),
            Then::Silence => stream::pending().boxed(),
        };
        let leaving = Leaving(Arc::clone(&self.0.left));
        let messages = stream::iter(messages).chain(then).map(move |message| {
            let _ = &leaving;
            message
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn get_action(
        &self,
        request: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        let id = &request.get_ref().id;
        let action = self.0.actions.iter().find(|action| action.id == *id);
        let action = action.ok_or(Status::not_found("no action has that id"))?;
        let answer = GetActionResponse {
            action: Some(action.clone()),
        };
        self.0.answer(&request, answer)
    }

    async fn list_actions(
        &self,
        request: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        let ListActionsRequest {
            page_size,
            page_token,
        } = request.get_ref();
        let start = page_token.parse().unwrap_or(0);
        let end = start + PAGE.min(*page_size as usize);
        let actions = self.0.actions.iter().skip(start).take(end - start);
        let more = end < self.0.actions.len();
        let answer = ListActionsResponse {
            actions: actions.cloned().collect(),
            next_page_token: if more { end.to_string() } else { String::new() },
        };
        self.0.answer(&request, answer)
    }

    async fn cancel_action(
        &self,
        request: Request<CancelActionRequest>,
    ) -> Result<Response<CancelActionResponse>, Status> {
        self.0.answer(&request, ())?;
        if let Some(status) = &self.0.refuse_cancel {
            return Err(status.clone());
        }
        self.0.cancelled.notify_one();
        let id = &request.get_ref().id;
        let action = self.0.actions.iter().find(|action| action.id == *id);
        Ok(Response::new(CancelActionResponse {
            finished: action.is_some_and(|action| action.state() == ActionState::Finished),
        }))
    }
}
