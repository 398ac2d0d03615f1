//! The channel of a slave that is attached to this master: orders go out, what it says comes in, and its end is judged.
//!
//! ```text
//! hello ── the leader counts it ── welcome ══ orders, reports ══ the slave ends it ── 0.3 s ── told to the leader: LOST?
//!                                                            ══ a time-out, a shutdown, a pause of ours: says nothing
//! ```
//!
//! When the process of a slave dies, its connection is closed. When its network breaks there is only silence, and its
//! TTL decides. When this master itself stood still, its slaves leave for other masters, which proves nothing.

use super::{
    attachment::Attachment,
    outlet::Outlet,
    switchboard::{SESSION_QUEUE, Switchboard},
};
use crate::cluster::{
    attention::Wakefulness,
    error::Error,
    relay::{Counted, Relay, Sign},
    roster::Roster,
};
use kontrol_core::{
    liveness::Instance,
    model::{Invalid, invalid::key},
    rollout::Slave,
    view::Member,
};
use kontrol_proto::v1::{
    AttachRequest, AttachResponse,
    attach_request::{Event, Hello},
};
use kontrol_runtime::{
    connection::Ending,
    supervise::{Children, Failure},
};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// How long a slave may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait before an end is judged: by then it is known who ended the connection, whether this process stood
/// still, and most slaves are back.
const HOLD: Duration = Duration::from_millis(300);
/// A pause that ended this long before the channel did may be why it ended.
const AFTER_PAUSE: Duration = Duration::from_secs(2);
/// How often the leader is told of an attachment again when the pod's record turned out to be another one.
const MAX_COUNTS: usize = 4;
/// How long it waits for this master's roster to show the other record.
const COUNT_LIMIT: Duration = Duration::from_millis(500);
/// Most actions that a slave may say it holds.
const MAX_ACTIONS: usize = 16_384;

/// The channels of the slaves that are attached here.
#[derive(Debug, Clone)]
pub struct Sessions {
    me: Instance,
    roster: Roster,
    relay: Relay,
    switchboard: Switchboard,
    wakefulness: Wakefulness,
    tasks: Children,
    token: CancellationToken,
}

/// The orders that go to a slave.
pub type Orders = ReceiverStream<Result<AttachResponse, Status>>;

impl Sessions {
    /// The channels of this master. They end with the token.
    pub fn new(
        me: Instance,
        roster: Roster,
        relay: Relay,
        switchboard: Switchboard,
        wakefulness: Wakefulness,
        token: CancellationToken,
    ) -> Self {
        Self {
            me,
            roster,
            relay,
            switchboard,
            wakefulness,
            tasks: Children::new("a slave's channel"),
            token,
        }
    }

    /// Waits for the end of every channel, once the token is cancelled.
    pub async fn joined(self) -> Result<(), Failure> {
        self.tasks.joined(self.token).await
    }

    /// Opens the channel of a slave, once the leader knows of it. `may` says whether its caller speaks for a pod's id; it ends once
    /// `lapsed` is cancelled: its caller is not known any more.
    pub async fn open(
        &self,
        mut requests: Streaming<AttachRequest>,
        ending: Ending,
        may: impl Fn(&str) -> Result<(), Status>,
        lapsed: CancellationToken,
    ) -> Result<Orders, Status> {
        let first = timeout(HELLO_LIMIT, requests.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("the slave did not say hello"))??;
        let Some(Event::Hello(hello)) = first.and_then(|first| first.event) else {
            return Err(Error::from(Invalid::new("hello", "must come first")).into());
        };
        if self.token.is_cancelled() {
            return Err(stopping());
        }
        let slave = self.count(&hello, may).await?;
        let actions = hello.actions.iter().take(MAX_ACTIONS);
        let actions = actions.filter_map(|id| id.parse().ok()).collect();
        let attachment = Attachment {
            slave,
            number: hello.attachment,
        };
        let (sender, orders) = mpsc::channel(SESSION_QUEUE);
        let (outlet, cut) = Outlet::new(sender.clone());
        self.switchboard
            .attach(attachment.clone(), actions, outlet)
            .await;
        let session = Session {
            sessions: self.clone(),
            attachment,
            ending,
            cut,
            lapsed,
        };
        // Joined with the others at the end.
        drop(self.tasks.spawn(session.run(requests, sender)));
        Ok(ReceiverStream::new(orders))
    }

    /// Checks who the slave is, and has the leader count that it is attached: a sign of life, like a keepalive.
    async fn count(
        &self,
        hello: &Hello,
        may: impl Fn(&str) -> Result<(), Status>,
    ) -> Result<Slave, Status> {
        let slave = Slave {
            key: key("key", &hello.key).map_err(Error::from)?,
            nonce: hello.nonce.as_str().into(),
        };
        if hello.attachment == 0 {
            return Err(Error::from(Invalid::new("attachment", "counts from 1")).into());
        }
        self.relay.check()?;
        for _ in 0..MAX_COUNTS {
            let sign = self.sign(&slave, hello.attachment, &may)?;
            match self.relay.count(sign).await? {
                Counted::Yes => return Ok(slave),
                Counted::Again(revision) => {
                    self.roster.caught_up(revision, COUNT_LIMIT).await;
                }
            }
        }
        Err(Error::Unavailable("the pod's record keeps changing; try again".to_owned()).into())
    }

    fn sign(
        &self,
        slave: &Slave,
        attachment: u64,
        may: impl Fn(&str) -> Result<(), Status>,
    ) -> Result<Sign, Status> {
        let now = Instant::now();
        let view = self.roster.peek();
        let member = view.member(slave.key).filter(|member| is(member, slave));
        let member = member.ok_or_else(|| {
            Error::Superseded(format!(
                "no live pod has the key {} and this nonce: report a keepalive first",
                slave.key
            ))
        })?;
        may(member.pod.id())?;
        member.heard.touch(now, 0, Some(self.me));
        member.heard.attach(attachment);
        Ok(Sign {
            key: slave.key,
            revision: member.mod_revision,
            beat: 0,
            attachment,
            at: now,
        })
    }
}

fn is(member: &Member, slave: &Slave) -> bool {
    member.pod.nonce() == &*slave.nonce
}

fn stopping() -> Status {
    Error::Unavailable("this master stops; attach to the next one".to_owned()).into()
}

/// The channel of one slave.
struct Session {
    sessions: Sessions,
    attachment: Attachment,
    ending: Ending,
    /// Cancelled when the switchboard has done with it: the slave attached again, or takes no orders any more.
    cut: CancellationToken,
    /// Cancelled when the slave's token or certificate does not count any more. That is no death: its TTL decides.
    lapsed: CancellationToken,
}

/// The orders on their way to the slave.
type Sender = mpsc::Sender<Result<AttachResponse, Status>>;

impl Session {
    async fn run(self, requests: Streaming<AttachRequest>, orders: Sender) {
        let by_slave = self.listen(requests, &orders).await;
        let ended = Instant::now();
        let sessions = &self.sessions;
        sessions.switchboard.detach(self.attachment.clone()).await;
        // A slave that stops waits for this, and knows then that everything was heard.
        drop(orders);
        tracing::debug!(key = %self.attachment.slave.key, by_slave, "a slave's channel ended");
        if by_slave {
            let judged = self.judge(ended);
            sessions.token.run_until_cancelled(judged).await;
        }
    }

    /// Passes on what the slave says until the channel ends; true when the slave or its connection ended it.
    async fn listen(&self, mut requests: Streaming<AttachRequest>, orders: &Sender) -> bool {
        loop {
            // All arms are cancel safe: a message is taken whole or not at all.
            tokio::select! {
                () = self.sessions.token.cancelled() => {
                    let _ = orders.try_send(Err(stopping()));
                    return false;
                }
                () = self.cut.cancelled() => return false,
                () = self.lapsed.cancelled() => return false,
                () = orders.closed() => return !self.lapsed.is_cancelled(),
                message = requests.message() => match message {
                    Ok(Some(AttachRequest { event: Some(event) })) => {
                        self.sessions.switchboard.said(self.attachment.clone(), event).await;
                    }
                    // A sign of life, or of a newer slave. What waits to be sent is one as well.
                    Ok(Some(AttachRequest { event: None })) => {
                        if orders.capacity() == orders.max_capacity() {
                            let _ = orders.try_send(Ok(AttachResponse { order: None }));
                        }
                    }
                    Ok(None) | Err(_) => return !self.lapsed.is_cancelled(),
                },
            }
        }
    }

    /// Tells the leader of an end that may be the death of the slave's process.
    async fn judge(&self, ended: Instant) {
        sleep(HOLD).await;
        let before = ended.checked_sub(AFTER_PAUSE).unwrap_or(ended);
        let paused = self.sessions.wakefulness.stood_still_since(before);
        if self.ending.is_by_us() || paused {
            return;
        }
        let slave = &self.attachment.slave;
        let sign = {
            let view = self.sessions.roster.peek();
            let member = view.member(slave.key).filter(|member| is(member, slave));
            // It said goodbye, restarted, or is attached here again.
            let Some(member) =
                member.filter(|member| member.heard.attachment() == self.attachment.number)
            else {
                return;
            };
            Sign {
                key: slave.key,
                revision: member.mod_revision,
                beat: 0,
                attachment: self.attachment.number,
                at: ended,
            }
        };
        self.sessions.relay.detached(sign);
    }
}
