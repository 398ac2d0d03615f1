//! The task of the relay: finds out how keepalives count, and keeps the stream to the leader.

use super::{ACK_LIMIT, HEARTBEAT, Item, Link, MAX_BATCH, Sign};
use crate::{
    backoff::Backoff,
    election::Election,
    liveness::Instance,
    roster::{Candidate, Roster},
    status::Status,
};
use futures::future::join_all;
use kontrol_proto::internal::v1::{
    Refresh, RelayRequest, RelayResponse, SightRequest, peer_service_client::PeerServiceClient,
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status as RpcStatus, Streaming, transport::Endpoint};

/// The task behind [`Relay`](super::Relay).
#[derive(Debug)]
pub struct RelayTask {
    pub(super) me: Instance,
    pub(super) roster: Roster,
    pub(super) election: Election,
    pub(super) status: Status,
    pub(super) ttl: Duration,
    pub(super) queue: mpsc::Receiver<Item>,
    pub(super) link: watch::Sender<Link>,
    /// Taken from the queue and not yet counted.
    pub(super) pending: Vec<Item>,
}

/// Why a stream to the leader ended.
enum Ended {
    /// Another master leads now, or none.
    Moved,
    /// The callee was reached and says that it doesn't lead.
    NotLeading,
    /// The callee was reached and knows a later leader, which this master's roster doesn't show yet.
    Overtaken,
    /// It can't be reached, or doesn't answer.
    Broken(String),
}

impl RelayTask {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        token.run_until_cancelled(self.relay()).await;
    }

    async fn relay(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let mut overtaken: Option<Instant> = None;
        let mut changes = self.roster.changes();
        let mut lead = self.election.changes();
        loop {
            let leader = self.roster.peek().leader().cloned();
            let ended = match leader {
                _ if self.election.leads().is_some() => {
                    self.count_alone(Link::Leading);
                    None
                }
                Some(leader) if !leader.master.is(self.me) => {
                    Some(self.stream(&leader, &mut backoff).await)
                }
                // Nobody leads; or we will in a moment, or did until just now.
                Some(_) | None => {
                    self.forget_run();
                    self.count_leaderless().await;
                    None
                }
            };
            let ended = match (ended, overtaken) {
                // As a rule the roster shows it in a moment. Cut off from the store, it never does.
                (Some(Ended::Overtaken), Some(since)) if since.elapsed() > ACK_LIMIT => Some(
                    Ended::Broken("another leads since, and the store doesn't tell who".to_owned()),
                ),
                (Some(Ended::Overtaken), since) => {
                    overtaken = since.or_else(|| Some(Instant::now()));
                    sleep(HEARTBEAT / 4).await;
                    continue;
                }
                (ended, _) => {
                    overtaken = None;
                    ended
                }
            };
            match ended {
                Some(Ended::Moved | Ended::Overtaken) => continue,
                Some(Ended::NotLeading) => {
                    self.count_leaderless().await;
                    sleep(HEARTBEAT).await;
                }
                Some(Ended::Broken(cause)) => {
                    let before = self.link.send_replace(Link::Down);
                    if before != Link::Down {
                        tracing::warn!(
                            cause,
                            "can't reach the leader; refusing keepalives until it is back or another leads"
                        );
                    }
                    self.drop_late();
                    sleep(backoff.failed()).await;
                }
                None => {
                    // All arms are cancel safe; a lost wake-up costs at most a heart-beat.
                    tokio::select! {
                        _ = changes.next() => {}
                        _ = lead.changed() => {}
                        () = sleep(HEARTBEAT) => {}
                    }
                }
            }
        }
    }

    /// Keepalives count until somebody leads, unless somebody may lead unseen: this master is cut off from the store, and
    /// another one is not, or can't be asked.
    async fn count_leaderless(&mut self) {
        let sees_store = self.roster.connected() && self.election.in_touch();
        if sees_store || self.nobody_sees_the_store().await {
            self.count_alone(Link::NoLeader);
            return;
        }
        let before = self.link.send_replace(Link::Blind);
        // Before the first snapshot there is nothing to lose sight of.
        if before != Link::Blind && self.roster.started() {
            tracing::warn!(
                "can't reach the store to see who leads, and other masters may; refusing keepalives until it is back"
            );
        }
        self.drop_late();
    }

    /// Asks every other master that was alive when the store was last seen.
    async fn nobody_sees_the_store(&self) -> bool {
        let view = self.roster.view();
        let others = view.masters().filter(|master| !master.is(self.me));
        let sights = join_all(others.map(|master| timeout(ACK_LIMIT / 2, sight(&master.address))));
        let sights = sights.await;
        sights.iter().all(|sight| matches!(sight, Ok(Some(false))))
    }

    /// Keepalives count without anybody else.
    fn count_alone(&mut self, link: Link) {
        self.link
            .send_if_modified(|now| std::mem::replace(now, link) != link);
        let mut waiting = std::mem::take(&mut self.pending);
        while let Ok(item) = self.queue.try_recv() {
            waiting.push(item);
        }
        waiting.into_iter().for_each(Item::count);
    }

    /// Answers no to keepalives that waited too long, by dropping them.
    fn drop_late(&mut self) {
        while let Ok(item) = self.queue.try_recv() {
            self.pending.push(item);
        }
        self.pending
            .retain(|item| item.sign.at.elapsed() < ACK_LIMIT / 2);
    }

    /// The leader is gone, and with it what its callback was doing.
    fn forget_run(&self) {
        self.status.update(|status| {
            status.running_since = None;
            status.running_digest.clear();
            status.pending_since = None;
            status.retry_at = None;
        });
    }

    async fn stream(&mut self, leader: &Candidate, backoff: &mut Backoff) -> Ended {
        let uri = format!("http://{}", leader.master.address);
        let endpoint = match Endpoint::from_shared(uri) {
            Ok(endpoint) => endpoint.connect_timeout(ACK_LIMIT / 2).tcp_nodelay(true),
            Err(error) => {
                return Ended::Broken(format!("its address {:?}: {error}", leader.master.address));
            }
        };
        let (sender, receiver) = mpsc::channel(1);
        let open = async {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| RpcStatus::unavailable(source(&error)))?;
            PeerServiceClient::new(channel)
                .max_decoding_message_size(1 << 20)
                .relay(ReceiverStream::new(receiver))
                .await
        };
        let mut answers = match timeout(ACK_LIMIT, open).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::from(&status),
            Err(_) => return Ended::Broken("no answer in time".to_owned()),
        };
        // From here on keepalives go into the queue; `catch_up` sees those that counted alone before.
        self.link.send_if_modified(|now| {
            let alone = matches!(now, Link::Leading | Link::NoLeader);
            if alone {
                *now = Link::Opening;
            }
            alone
        });
        self.catch_up();
        // What was on its way when it ends may or may not count; it goes to whoever leads next, which can do no harm.
        self.batches(leader, &sender, &mut answers, backoff).await
    }

    /// Whoever leads now hears of every pod that this master heard lately.
    fn catch_up(&mut self) {
        let view = self.roster.view();
        // What an earlier stream left of this is told anew.
        self.pending.retain(|item| item.counted.is_some());
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
                    counted: None,
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
    ) -> Ended {
        let mut changes = self.roster.changes();
        let mut number = 0;
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
                    answer = answers.message() => return match answer {
                        Err(status) => Ended::from(&status),
                        Ok(_) => Ended::Broken("the stream closed".to_owned()),
                    },
                    () = sleep(HEARTBEAT) => due = true,
                }
            }
            if due {
                number += 1;
                let size = self.pending.len().min(MAX_BATCH);
                if sender.try_send(self.batch(leader, number, size)).is_err() {
                    return Ended::Broken("the stream closed".to_owned());
                }
                if let Some(ended) = self.answer(answers, number, size).await {
                    return ended;
                }
                backoff.reset();
                if self.link.send_replace(Link::Up) != Link::Up {
                    tracing::info!(
                        leader = leader.master.address,
                        epoch = leader.epoch,
                        "following the leader"
                    );
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
            }
        });
        RelayRequest {
            master: self.me.to_string(),
            epoch: leader.epoch,
            batch: number,
            refreshes: refreshes.collect(),
        }
    }

    /// Waits for the leader's answer to a batch, and answers the keepalives in it.
    async fn answer(
        &mut self,
        answers: &mut Streaming<RelayResponse>,
        number: u64,
        size: usize,
    ) -> Option<Ended> {
        let response = match timeout(ACK_LIMIT, answers.message()).await {
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
        self.pending.drain(..size).for_each(Item::count);
        if let Some(callback) = response.callback {
            self.status.set(callback);
        }
        None
    }
}

/// Whether the master at this address can reach the store; nothing when it can't be asked.
async fn sight(address: &str) -> Option<bool> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let channel = endpoint.connect().await.ok()?;
    let answer = PeerServiceClient::new(channel).sight(SightRequest {}).await;
    Some(answer.ok()?.into_inner().sees_store)
}

impl From<&RpcStatus> for Ended {
    fn from(status: &RpcStatus) -> Self {
        if status.code() == Code::FailedPrecondition {
            Self::NotLeading
        } else if status.code() == Code::Aborted {
            Self::Overtaken
        } else {
            Self::Broken(status.message().to_owned())
        }
    }
}

/// The innermost cause of an error: the only part that says what happened.
fn source(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}
