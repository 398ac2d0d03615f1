//! The streams to the other masters, over which this master's dispatches reach the slaves that are attached there.
//!
//! One link for each peer that lives, opened again whenever it breaks. A link carries little (orders are small, and output
//! is held back by credit), so that one connection for all actions is enough.

use super::switchboard::Switchboard;
use crate::cluster::{
    peers::{Dialer, reason},
    roster::Roster,
};
use kontrol_core::{liveness::Instance, view::PeerMaster};
use kontrol_proto::internal::v1::{
    ExchangeRequest, exchange_request, exchange_service_client::ExchangeServiceClient,
};
use kontrol_runtime::{backoff::Backoff, supervise::Failure};
use std::{collections::HashMap, time::Duration};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;

/// How many messages may wait for a peer; one that is further behind is connected anew.
const QUEUE: usize = 4096;
/// Largest message of a peer: a page of attached slaves, or a piece of output. Orders go the other way.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long a peer may take to answer a connection or a stream.
const LIMIT: Duration = Duration::from_secs(2);

/// Keeps a link to every other master that is alive.
#[derive(Debug)]
pub struct PeerLinks {
    me: Instance,
    roster: Roster,
    switchboard: Switchboard,
    dialer: Dialer,
}

impl PeerLinks {
    /// The links of this master.
    pub fn new(me: Instance, roster: Roster, switchboard: Switchboard, dialer: Dialer) -> Self {
        Self {
            me,
            roster,
            switchboard,
            dialer,
        }
    }

    /// Runs until the token is cancelled, or a link panics: nobody would open it again.
    pub async fn run(self, token: CancellationToken) -> Result<(), Failure> {
        let mut changes = self.roster.changes();
        let mut links = JoinSet::new();
        // By instance: where its link leads, and how to end it.
        let mut known: HashMap<String, (String, AbortHandle)> = HashMap::new();
        loop {
            let view = self.roster.view();
            let others: Vec<&PeerMaster> = view.masters().filter(|one| !one.is(self.me)).collect();
            // One whose address changed is linked anew.
            let gone = known.iter().filter(|(instance, (address, _))| {
                !others
                    .iter()
                    .any(|other| other.instance == **instance && other.address == *address)
            });
            let gone: Vec<String> = gone.map(|(instance, _)| instance.clone()).collect();
            for instance in gone {
                if let Some((_, link)) = known.remove(&instance) {
                    link.abort();
                }
                if let Ok(instance) = instance.parse() {
                    self.switchboard.peer_down(instance).await;
                }
            }
            for master in others {
                if let Ok(instance) = master.instance.parse()
                    && !known.contains_key(&master.instance)
                {
                    let link = Link {
                        me: self.me,
                        instance,
                        master: master.clone(),
                        switchboard: self.switchboard.clone(),
                        dialer: self.dialer.clone(),
                    };
                    let span = tracing::info_span!("link", peer = master.address);
                    let link = links.spawn(link.keep().instrument(span));
                    let link = (master.address.clone(), link);
                    known.insert(master.instance.clone(), link);
                }
            }
            // All arms are cancel safe.
            tokio::select! {
                () = token.cancelled() => break,
                more = changes.next() => if !more { break },
                Some(ended) = links.join_next() => supervise(ended)?,
            }
        }
        links.shutdown().await;
        Ok(())
    }
}

/// A link ends by being aborted, and by a panic.
fn supervise(ended: Result<(), JoinError>) -> Result<(), Failure> {
    match ended {
        Err(error) if error.is_panic() => Err(Failure::Panicked("a link to a peer".into())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The link to one peer.
struct Link {
    me: Instance,
    instance: Instance,
    master: PeerMaster,
    switchboard: Switchboard,
    dialer: Dialer,
}

impl Link {
    /// Opens the stream again and again, for as long as the peer is alive.
    async fn keep(self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let ended = self.stream(&mut backoff).await;
            tracing::debug!(cause = %reason(&ended), "the link for actions broke");
            sleep(backoff.failed()).await;
        }
    }

    async fn stream(&self, backoff: &mut Backoff) -> Status {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let hello = exchange_request::Message::Hello(exchange_request::Hello {
            master: self.me.to_string(),
        });
        let hello = ExchangeRequest {
            message: Some(hello),
        };
        // The queue is new and empty.
        let _ = sender.try_send(hello);
        let open = async {
            let channel = self.dialer.dial(&self.master, LIMIT).await?;
            ExchangeServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .exchange(ReceiverStream::new(receiver))
                .await
        };
        let mut said = match timeout(LIMIT, open).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("no answer in time"),
        };
        self.switchboard.peer_up(self.instance, sender).await;
        let ended = loop {
            match said.message().await {
                Ok(Some(message)) => {
                    backoff.reset();
                    if let Some(message) = message.message {
                        self.switchboard.peer_said(self.instance, message).await;
                    }
                }
                Ok(None) => break Status::unavailable("the stream closed"),
                Err(status) => break status,
            }
        };
        self.switchboard.peer_down(self.instance).await;
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_that_panics_is_a_failure_and_one_that_is_aborted_is_not() {
        let mut links = JoinSet::new();
        links.spawn(std::future::pending()).abort();
        assert!(supervise(links.join_next().await.unwrap()).is_ok());
        links.spawn(async { assert!(std::hint::black_box(false), "on purpose") });
        let failure = supervise(links.join_next().await.unwrap()).unwrap_err();
        assert!(failure.to_string().starts_with("a link to a peer panicked"));
    }
}
