//! The stream to the leader: batches out, acknowledgements in.

use super::{Counted, Item, Link, RelayTask, Sign, task::turned};
use crate::cluster::peers::reason;
use kontrol_core::{kv::Fence, view::Candidate};
use kontrol_proto::internal::v1::{
    Refresh, RelayRequest, RelayResponse, peer_service_client::PeerServiceClient,
};
use kontrol_runtime::backoff::Backoff;
use std::{collections::HashSet, fmt, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// Most refreshes in a batch: some 20 bytes each.
const MAX_BATCH: usize = 20_000;
/// An idle stream carries an empty batch this often.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(200);
/// A leader that doesn't answer a batch for this long is out of reach.
pub(super) const ACK_LIMIT: Duration = Duration::from_secs(1);

/// Why a stream to the leader ended.
pub(super) enum Ended {
    /// Another master leads now, or none.
    Moved,
    /// The callee was reached and says that it doesn't lead.
    NotLeading,
    /// The callee was reached and knows a later leader, which this master's roster doesn't show yet.
    Overtaken,
    /// Another master was reached.
    Stranger(String),
    /// It can't be reached, or doesn't answer.
    Broken(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved => f.write_str("another leads"),
            Self::NotLeading => f.write_str("it says that it doesn't lead"),
            Self::Overtaken => f.write_str("another leads since, and the store doesn't tell who"),
            Self::Stranger(who) => write!(f, "its address leads to {who}"),
            Self::Broken(cause) => f.write_str(cause),
        }
    }
}

impl From<&Status> for Ended {
    fn from(status: &Status) -> Self {
        // The codes that PeerService.Relay promises; all others are of the connection.
        if status.code() == Code::FailedPrecondition {
            Self::NotLeading
        } else if status.code() == Code::Aborted {
            Self::Overtaken
        } else if status.code() == Code::NotFound {
            Self::Stranger(status.message().to_owned())
        } else {
            Self::Broken(reason(status))
        }
    }
}

impl RelayTask {
    /// Holds a stream to this leader until it breaks or another leads.
    pub(super) async fn stream(
        &mut self,
        leader: &Candidate,
        backoff: &mut Backoff,
        lead: &mut watch::Receiver<Option<Fence>>,
    ) -> Ended {
        let (sender, receiver) = mpsc::channel(1);
        let open = async {
            let channel = self.dialer.dial(&leader.master, ACK_LIMIT / 2).await?;
            PeerServiceClient::new(channel)
                .max_decoding_message_size(1 << 20)
                .relay(ReceiverStream::new(receiver))
                .await
        };
        // Both arms are cancel safe: a stream that is not opened is dropped.
        let opened = tokio::select! {
            opened = timeout(ACK_LIMIT, open) => opened,
            () = turned(lead) => return Ended::Moved,
        };
        let mut answers = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::from(&status),
            Err(_) => return Ended::Broken("no answer in time".to_owned()),
        };
        // From here on keepalives go into the queue; `catch_up` sees all that took another way before.
        self.set(Link::Opening);
        self.catch_up();
        self.batches(leader, &sender, &mut answers, backoff, lead)
            .await
    }

    /// Whoever leads now hears of every pod that this master heard lately.
    fn catch_up(&mut self) {
        let view = self.roster.view();
        // What an earlier stream left of this is told anew.
        self.pending
            .retain(|item| item.answer.is_some() || item.detached);
        for pod in view.pods() {
            let Some(member) = view.member(pod.key()) else {
                continue;
            };
            if member.heard.master() == Some(self.me)
                && let Some(at) = member.heard.at()
                && at.elapsed() < self.ttl
            {
                self.pending.push(Item {
                    sign: Sign {
                        key: pod.key(),
                        revision: member.mod_revision,
                        beat: member.heard.beat(),
                        attachment: member.heard.attachment(),
                        at,
                    },
                    detached: false,
                    written: false,
                    answer: None,
                });
            }
        }
    }

    async fn batches(
        &mut self,
        leader: &Candidate,
        sender: &mpsc::Sender<RelayRequest>,
        answers: &mut Streaming<RelayResponse>,
        backoff: &mut Backoff,
        lead: &mut watch::Receiver<Option<Fence>>,
    ) -> Ended {
        let mut changes = self.roster.changes();
        let mut number = 0;
        let mut heartbeat = Instant::now() + HEARTBEAT;
        self.echo = None;
        loop {
            let mut due = number == 0 || !self.pending.is_empty();
            if !due {
                // All arms are cancel safe: `recv_many` takes nothing unless it completes, and an answer that comes
                // between two batches ends the stream anyway.
                tokio::select! {
                    taken = self.queue.recv_many(&mut self.pending, MAX_BATCH) => {
                        if taken == 0 {
                            return Ended::Moved;
                        }
                    }
                    more = changes.next() => {
                        let epoch = self.roster.peek().leader().map(|now| now.epoch);
                        if !more || epoch != Some(leader.epoch) {
                            return Ended::Moved;
                        }
                    }
                    () = turned(lead) => return Ended::Moved,
                    answer = answers.message() => return match answer {
                        Err(status) => Ended::from(&status),
                        Ok(_) => Ended::Broken("the stream closed".to_owned()),
                    },
                    () = sleep_until(heartbeat) => due = true,
                }
                // What nobody waits for any more is told all the same: it may have counted through the store, where it
                // stands only until the leader knows it.
            }
            if due {
                number += 1;
                heartbeat = Instant::now() + HEARTBEAT;
                // The first one only fetches a stamp: nobody can tell how long it is under way.
                let size = match self.echo {
                    Some(_) => self.pending.len().min(MAX_BATCH),
                    None => 0,
                };
                if sender.try_send(self.batch(leader, number, size)).is_err() {
                    return Ended::Broken("the stream closed".to_owned());
                }
                if let Some(ended) = self.answer(answers, number, size).await {
                    return ended;
                }
                backoff.reset();
                // Not before the leader knows all that was heard before.
                // A stream that was late for a moment is no news.
                let late = *self.link.borrow() == Link::Late;
                let known = self.pending.iter().all(|item| item.answer.is_some());
                if known {
                    self.told_down = None;
                }
                if known && self.set(Link::Up) && !late {
                    tracing::info!(epoch = leader.epoch, "following the leader");
                }
            }
        }
    }

    fn batch(&self, leader: &Candidate, number: u64, size: usize) -> RelayRequest {
        let refreshes = self.pending[..size].iter().map(|item| {
            let sign = &item.sign;
            let key = sign.key.as_u128();
            Refresh {
                key_high: u64::try_from(key >> 64).unwrap_or_default(),
                key_low: u64::try_from(key & u128::from(u64::MAX)).unwrap_or_default(),
                age_ms: u32::try_from(sign.at.elapsed().as_millis()).unwrap_or(u32::MAX),
                beat: sign.beat,
                revision: sign.revision,
                attachment: sign.attachment,
                detached: item.detached,
                written: item.written,
            }
        });
        RelayRequest {
            master: self.me.to_string(),
            epoch: leader.epoch,
            batch: number,
            refreshes: refreshes.collect(),
            leader: leader.master.instance.clone(),
            echo: self.echo.map_or(0, |(stamp, _)| stamp),
            echo_age_ms: self.echo.map_or(0, |(_, at)| {
                u32::try_from(at.elapsed().as_millis()).unwrap_or(u32::MAX)
            }),
        }
    }

    /// Waits for the leader's answer to a batch, and answers the keepalives in it.
    async fn answer(
        &mut self,
        answers: &mut Streaming<RelayResponse>,
        number: u64,
        size: usize,
    ) -> Option<Ended> {
        let end = Instant::now() + ACK_LIMIT;
        let mut message = std::pin::pin!(answers.message());
        let in_time = match timeout(self.limits.patience, &mut message).await {
            Ok(answer) => Ok(answer),
            Err(_) => {
                if *self.link.borrow() == Link::Up {
                    self.set(Link::Late);
                }
                tokio::time::timeout_at(end, message).await
            }
        };
        let response = match in_time {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return Some(Ended::Broken("the stream closed".to_owned())),
            Ok(Err(status)) => return Some(Ended::from(&status)),
            Err(_) => return Some(Ended::Broken("no answer in time".to_owned())),
        };
        if response.batch != number {
            return Some(Ended::Broken(format!(
                "it answered batch {} instead of {number}",
                response.batch
            )));
        }
        self.echo = Some((response.stamp, Instant::now()));
        let again: HashSet<u32> = response.again.into_iter().collect();
        for (position, item) in (0..).zip(self.pending.drain(..size)) {
            item.settle(if again.contains(&position) {
                Counted::Again(response.revision)
            } else {
                Counted::Yes
            });
        }
        if let Some(callback) = response.callback {
            self.status.set(callback.into());
        }
        None
    }
}
