//! The channel to a tier's master: one stream beside the keepalives, on the same HTTP/2 connection.
//!
//! ```text
//! a keepalive is answered ──▶ attach: hello, welcome ══ orders, reports ══ broke, or the tier moved ──┐
//!          ▲                                                                                          │
//!          └────────── an early keepalive, at a moment drawn from the next second (then longer) ◀─────┘
//! ```
//!
//! The keepalive comes first: it proves to the masters that the pod lives, and finds another master if this one is gone.
//! Only then the channel is opened again, there. One channel is open at a time. It shares the connection with the
//! keepalives, and its flow control not: what it can't send waits in the actions, not in front of a keepalive.
//!
//! While it is quiet it shows life, as often as [`Signs`] says, and so does the master: what is on the way may cut it else.

mod signs;

use super::{Executor, run::Channel};
use crate::{keepalive::stranger, masters::link::Attached};
use kontrol_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        AttachRequest, AttachResponse,
        action_service_client::ActionServiceClient,
        attach_request::{Event, Hello},
        attach_response::Order,
    },
};
use kontrol_runtime::dial;
use signs::Signs;
use std::{error::Error, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

/// How many reports may wait to be sent.
const QUEUE: usize = 64;
/// How long a master may take to open the channel.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long a master may take to close its end, when the slave stops.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);
/// Within what time an early keepalive is sent after the channel broke: well below the three seconds after which the masters
/// take the pod for lost. While the channel can't be opened it doubles, up to the longest.
const FIRST_HASTE: Duration = Duration::from_secs(1);
const LONGEST_HASTE: Duration = Duration::from_secs(32);
/// A channel that opens and breaks at once is opened again less often, too, but not so late that the pod is taken for lost.
const BROKEN_HASTE: Duration = Duration::from_secs(2);
/// How long a channel must have stood for the next one to be opened with haste.
const STOOD: Duration = Duration::from_secs(10);

/// The connection of a tier that answered a keepalive.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) attached: Attached,
    /// The pod's key.
    pub(crate) key: String,
    /// How many keepalives were answered so far.
    pub(crate) count: u64,
}

impl Answered {
    /// Whether keepalives are answered on another connection meanwhile, or of a pod that has another address.
    fn is_over(&self, now: Option<&Self>) -> bool {
        now.is_some_and(|now| {
            now.attached.serial() != self.attached.serial() || now.key != self.key
        })
    }
}

/// The session of one tier.
pub(crate) struct SessionTask {
    tier: usize,
    name: String,
    nonce: Arc<str>,
    answered: watch::Receiver<Option<Answered>>,
    /// Within what time a keepalive should be sent.
    haste: watch::Sender<Duration>,
    channel: watch::Sender<Channel>,
    executor: Executor,
    /// Of the last attach.
    number: u64,
    signs: Signs,
    /// The trouble that was logged last.
    said: Option<String>,
}

/// Why a channel is not open any more.
enum Ended {
    /// The tier moved to another connection.
    Moved,
    /// The stream ended after the welcome; the master, or something on the way, said why.
    Broke(String),
    /// So it did after such a silence, and the master did not say that it would.
    Cut(String, Duration),
    /// There was no welcome.
    NotOpened(Status),
    /// The keepalives stopped.
    Over,
}

/// What a status says: what to look at, where the master does not let this slave in, and why the connection broke.
fn answered_so(channel: &dial::Channel, status: &Status) -> String {
    match (status.source(), status.code()) {
        (Some(source), _) => channel.reason(source),
        (None, Code::Unauthenticated | Code::PermissionDenied) => stranger(status),
        (None, _) => status.message().to_owned(),
    }
}

/// Whether masters end channels so. What a proxy cuts has no status at all, which is told as one of this side.
fn is_of_a_master(code: Code) -> bool {
    !matches!(code, Code::Internal | Code::Unknown | Code::Cancelled)
}

impl std::fmt::Debug for SessionTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionTask")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl SessionTask {
    pub(crate) fn new(
        tier: (usize, String),
        nonce: Arc<str>,
        answered: watch::Receiver<Option<Answered>>,
        haste: watch::Sender<Duration>,
        channel: watch::Sender<Channel>,
        executor: Executor,
    ) -> Self {
        Self {
            tier: tier.0,
            name: tier.1,
            nonce,
            answered,
            haste,
            channel,
            executor,
            number: 0,
            signs: Signs::new(),
            said: None,
        }
    }

    /// Keeps the channel open until the token is cancelled; then closes it, with everything said.
    pub(crate) async fn run(mut self, token: CancellationToken) {
        let mut tried = 0;
        let mut haste = FIRST_HASTE;
        loop {
            let fresh = |answered: &Option<Answered>| {
                answered.as_ref().is_some_and(|one| one.count > tried)
            };
            let fresh = token.run_until_cancelled(self.answered.wait_for(fresh));
            let answered = match fresh.await {
                Some(Ok(answered)) => answered.clone(),
                None | Some(Err(_)) => return,
            };
            let Some(answered) = answered else { continue };
            tried = answered.count;
            let began = Instant::now();
            let ended = self.open(&answered, &token).await;
            self.channel.send_replace(None);
            if let Ended::Cut(_, quiet) = &ended
                && self.signs.cut(*quiet)
            {
                let every = self.signs.every();
                tracing::info!(tier = %self.name, "the channel for actions is cut whenever it is quiet for {quiet:.1?}, by a proxy maybe: it shows life each {every:.1?} now");
            }
            match ended {
                // The new connection has answered a keepalive already, which counts.
                Ended::Moved => {}
                Ended::Broke(reason) | Ended::Cut(reason, _) => {
                    tracing::debug!(tier = %self.name, reason, "the channel for actions broke");
                    if began.elapsed() >= STOOD {
                        haste = FIRST_HASTE;
                    }
                    self.haste.send_replace(haste.min(BROKEN_HASTE));
                    haste = BROKEN_HASTE.min(haste * 2);
                }
                Ended::NotOpened(status) => {
                    self.complain(&answered.attached.channel(), &status);
                    if status.code() != Code::Unimplemented {
                        self.haste.send_replace(haste);
                        haste = LONGEST_HASTE.min(haste * 2);
                    }
                }
                Ended::Over => return,
            }
        }
    }

    fn complain(&mut self, channel: &dial::Channel, status: &Status) {
        let reason = if status.code() == Code::Unimplemented {
            "this master knows no actions".to_owned()
        } else {
            answered_so(channel, status)
        };
        if self.said.as_ref() != Some(&reason) {
            tracing::info!(tier = %self.name, "no channel for actions yet: {reason}");
            self.said = Some(reason);
        }
    }

    /// Opens the channel and serves it to its end.
    async fn open(&mut self, answered: &Answered, token: &CancellationToken) -> Ended {
        self.number += 1;
        let hello = Hello {
            key: answered.key.clone(),
            nonce: self.nonce.as_ref().to_owned(),
            attachment: self.number,
            actions: self.executor.at_hand(self.tier).await,
        };
        let (reports, stream) = mpsc::channel(QUEUE);
        // The queue is new and empty.
        let _ = reports.try_send(AttachRequest {
            event: Some(Event::Hello(hello)),
        });
        let mut client = ActionServiceClient::new(answered.attached.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let open = async {
            let orders = client.attach(ReceiverStream::new(stream)).await?;
            let mut orders = orders.into_inner();
            match orders.message().await?.and_then(|first| first.order) {
                Some(Order::Welcome(_)) => Ok(orders),
                _ => Err(Status::internal("the master did not welcome the slave")),
            }
        };
        // A master that hangs in the middle of it does not hold up the next one, to which the keepalives have moved.
        let mut moves = self.answered.clone();
        let moved = moves.wait_for(|now| answered.is_over(now.as_ref()));
        let opened = tokio::select! {
            opened = token.run_until_cancelled(timeout(OPEN_LIMIT, open)) => opened,
            Ok(_) = moved => return Ended::Moved,
        };
        let orders = match opened {
            None => return Ended::Over,
            Some(Ok(Ok(orders))) => orders,
            Some(Ok(Err(status))) => return Ended::NotOpened(status),
            Some(Err(_)) => {
                return Ended::NotOpened(Status::deadline_exceeded("no answer in time"));
            }
        };
        if self.said.take().is_some() || self.number == 1 {
            tracing::info!(tier = %self.name, address = %answered.attached.address(), "ready for actions");
        }
        self.channel.send_replace(Some(reports.clone()));
        self.serve(answered, orders, reports, token).await
    }

    async fn serve(
        &mut self,
        answered: &Answered,
        mut orders: Streaming<AttachResponse>,
        reports: mpsc::Sender<AttachRequest>,
        token: &CancellationToken,
    ) -> Ended {
        let mut reply: Option<AttachRequest> = None;
        let (mut heard, mut shown) = (Instant::now(), Instant::now());
        loop {
            let moved = |now: &Option<Answered>| answered.is_over(now.as_ref());
            // All arms are cancel safe: a message is taken whole or not at all. A reply that is lost with the channel is asked
            // for again on the next one.
            let order = tokio::select! {
                () = token.cancelled() => break,
                moved = self.answered.wait_for(moved) => return match moved {
                    Ok(_) => Ended::Moved,
                    Err(_) => Ended::Over,
                },
                sent = reports.reserve(), if reply.is_some() => match (sent, reply.take()) {
                    (Ok(room), Some(report)) => {
                        room.send(report);
                        continue;
                    }
                    _ => return Ended::Broke("the stream closed".to_owned()),
                },
                order = orders.message(), if reply.is_none() => order,
                () = sleep_until(heard.max(shown) + self.signs.every()) => {
                    shown = Instant::now();
                    // Where there is no room for it, there is more to be seen than that.
                    let _ = reports.try_send(AttachRequest { event: None });
                    continue;
                }
            };
            let quiet = heard.elapsed();
            heard = Instant::now();
            let order = match order {
                Ok(Some(order)) => order.order,
                Ok(None) => return Ended::Broke("the master closed it".to_owned()),
                Err(status) => {
                    let reason = answered_so(&answered.attached.channel(), &status);
                    let is_cut = status.source().is_some() || !is_of_a_master(status.code());
                    return if is_cut {
                        Ended::Cut(reason, quiet)
                    } else {
                        Ended::Broke(reason)
                    };
                }
            };
            // An order that is none is a sign of life, or of a newer master.
            let Some(order) = order else { continue };
            let trusted = answered.attached.channel().is_tls();
            let from = (self.tier, trusted);
            let event = self.executor.order(from, &answered.key, order).await;
            reply = event.map(|event| AttachRequest { event: Some(event) });
        }
        self.close(orders, reports).await;
        Ended::Over
    }

    /// Closes our end, and waits for the master to close its own, which it does once it has heard everything.
    async fn close(
        &self,
        mut orders: Streaming<AttachResponse>,
        reports: mpsc::Sender<AttachRequest>,
    ) {
        self.channel.send_replace(None);
        drop(reports);
        // Whatever it still orders, the commands have ended.
        let closed = async { while let Ok(Some(_)) = orders.message().await {} };
        let _ = timeout(CLOSE_LIMIT, closed).await;
    }
}
