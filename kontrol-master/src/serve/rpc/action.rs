//! ActionService.

use super::{Context, stream::alive};
use crate::serve::access::{Caller, Lapsed};
use crate::{
    action::{cancel, session::Orders, wire},
    cluster::error::Error,
};
use futures::Stream;
use kontrol_core::model::{Invalid, action::ActionId, invalid::clip};
use kontrol_proto::v1::{
    AttachRequest, CancelActionRequest, CancelActionResponse, DispatchRequest, DispatchResponse,
    GetActionRequest, GetActionResponse, ListActionsRequest, ListActionsResponse,
    action_service_server::ActionService,
};
use kontrol_runtime::connection::Ending;
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

/// How many actions a page has unless the caller says otherwise, and at the most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

fn id(text: &str) -> Result<ActionId, Error> {
    text.parse()
        .map_err(|error| Invalid::new("id", format!("{:?} {error}", clip(text))).into())
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl ActionService for Service {
    type AttachStream = Orders;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Orders>, Status> {
        let ending = request.extensions().get::<Ending>().cloned();
        let caller = Caller::of(request.extensions())?;
        let may = move |id: &str| caller.speaks_for(id, "kontrol.v1.ActionService/Attach");
        let sessions = &self.context.sessions;
        let lapsed = Lapsed::of(request.extensions());
        let ending = ending.unwrap_or_default();
        let orders = sessions.open(request.into_inner(), ending, may, lapsed);
        orders.await.map(Response::new)
    }

    type DispatchStream = Pin<Box<dyn Stream<Item = Result<DispatchResponse, Status>> + Send>>;

    async fn dispatch(
        &self,
        request: Request<DispatchRequest>,
    ) -> Result<Response<Self::DispatchStream>, Status> {
        let caller = super::caller(&request);
        let lapsed = Lapsed::of(request.extensions());
        let told = self
            .context
            .dispatches
            .dispatch(request.into_inner(), caller, lapsed)?;
        // Its master ends it itself when it stops: it knows what becomes of the action.
        let told = alive(told, |_| DispatchResponse { event: None });
        Ok(Response::new(Box::pin(told)))
    }

    async fn get_action(
        &self,
        request: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        let id = id(&request.into_inner().id)?;
        let read = self.context.history.read(&id).await;
        let read = read.map_err(|error| Error::from_store(&error))?;
        let (record, _) = read.ok_or_else(|| Error::no_action(&id))?;
        let action = Some(wire::action(record));
        Ok(Response::new(GetActionResponse { action }))
    }

    async fn list_actions(
        &self,
        request: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        let request = request.into_inner();
        let size = match usize::try_from(request.page_size).unwrap_or(MAX_PAGE) {
            0 => PAGE,
            size => size.min(MAX_PAGE),
        };
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<ActionId>().map_err(|_| {
                Error::from(Invalid::new(
                    "page_token",
                    "is not one that ListActions gave",
                ))
            })?),
        };
        let view = self.context.view()?;
        let actions = view.actions().iter().rev();
        let mut rest = actions
            .filter(|(id, _)| before.as_ref().is_none_or(|before| *id < before))
            .peekable();
        let page: Vec<_> = rest
            .by_ref()
            .take(size)
            .map(|(_, known)| wire::head(&known.head))
            .collect();
        let last = page.last().map(|action| action.id.clone());
        Ok(Response::new(ListActionsResponse {
            next_page_token: last.filter(|_| rest.peek().is_some()).unwrap_or_default(),
            actions: page,
        }))
    }

    async fn cancel_action(
        &self,
        request: Request<CancelActionRequest>,
    ) -> Result<Response<CancelActionResponse>, Status> {
        let id = id(&request.into_inner().id)?;
        let finished = cancel::cancel(
            &self.context.dispatches,
            &self.context.roster,
            &self.context.dialer,
            &id,
        )
        .await?;
        Ok(Response::new(CancelActionResponse { finished }))
    }
}
