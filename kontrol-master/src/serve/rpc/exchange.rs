//! ExchangeService: what the other masters call to reach the slaves that are attached here.

use super::Context;
use crate::{
    action::{outlet::Outlet, wire},
    cluster::error::Error,
};
use kontrol_core::{liveness::Instance, model::Invalid};
use kontrol_proto::internal::v1::{
    CancelRequest, CancelResponse, ExchangeRequest, ExchangeResponse,
    exchange_request::{Hello, Message},
    exchange_service_server::ExchangeService,
};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How many replies may wait for a peer; one that is further behind opens its stream anew.
const QUEUE: usize = 16_384;

#[derive(Debug)]
pub(super) struct Service {
    context: Context,
    /// Numbers the streams, so that the end of one is not taken for that of the next.
    streams: AtomicU64,
}

impl Service {
    pub(super) fn new(context: Context) -> Self {
        Self {
            context,
            streams: AtomicU64::new(0),
        }
    }
}

#[tonic::async_trait]
impl ExchangeService for Service {
    type ExchangeStream = ReceiverStream<Result<ExchangeResponse, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(Message::Hello(Hello { master })) = first else {
            return Err(Error::from(Invalid::new("hello", "must come first")).into());
        };
        let master: Instance = master
            .parse()
            .map_err(|_| Error::from(Invalid::new("master", "is not a master's instance")))?;
        let known = self
            .context
            .roster
            .view()
            .masters()
            .any(|one| one.is(master));
        if !known {
            let reason = "this master does not know that one yet; it opens its stream again";
            return Err(Error::Unavailable(reason.to_owned()).into());
        }
        let (replies, stream) = mpsc::channel(QUEUE);
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let switchboard = self.context.switchboard.clone();
        let (outlet, cut) = Outlet::new(replies.clone());
        switchboard.caller_up(master, number, outlet).await;
        let token = self.context.token.clone();
        // Joined with the others at the end.
        drop(self.context.streams.spawn(async move {
            loop {
                // All arms are cancel safe.
                let request = tokio::select! {
                    () = token.cancelled() => break,
                    // It does not read, or opened another stream.
                    () = cut.cancelled() => break,
                    () = replies.closed() => break,
                    request = requests.message() => request,
                };
                let Ok(Some(request)) = request else { break };
                if let Some(Message::Orders(orders)) = request.message
                    && let Some(order) = orders.order
                {
                    let to = orders.targets.into_iter().filter_map(wire::slave).collect();
                    switchboard.caller_orders(master, order, to).await;
                }
            }
            switchboard.caller_down(master, number).await;
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        let id = request.into_inner().id;
        let known = match id.parse() {
            Ok(id) => self.context.dispatches.cancel(&id).await,
            Err(_) => false,
        };
        if known {
            Ok(Response::new(CancelResponse {}))
        } else {
            Err(Error::NotFound("this master carries no such action".to_owned()).into())
        }
    }
}
