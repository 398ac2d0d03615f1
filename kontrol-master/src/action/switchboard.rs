//! The switchboard: where slaves are attached, here and at other masters, and what goes to them and comes back.
//!
//! One task owns all of it and never waits for anybody: every queue that it writes to is bounded, and one that is full
//! has a consequence (an order that is told to have missed, a stream that is cut off and opened again, a dispatch that asks
//! its slaves anew). So a slow slave, dispatcher or peer holds up nobody else.
//!
//! ```text
//! session of a slave ─┐               ┌─▶ the slave's session, if it is attached here
//! dispatch ───────────┼─▶ one queue ──┼─▶ the peer that said that it is attached there
//! peer links ─────────┘               └─▶ the dispatch that the report is for, here or at a peer
//! ```
//!
//! What a slave reports goes to whoever gave it the last order about that action. Reports that nobody waits for,
//! because their master died, stay with the slave until the leader adopts the action. `orphans` ends the actions that
//! no master will adopt.

mod directory;
mod orphans;
mod task;
#[cfg(test)]
mod tests;

pub use task::SwitchboardTask;

use super::{attachment::Attachment, outlet::Outlet, wire};
use crate::{
    cluster::roster::Roster,
    metrics::{Metrics, Queue},
};
use kontrol_core::{
    liveness::Instance,
    model::{PodKey, action::ActionId},
    rollout::{Order, Slave},
};
use kontrol_proto::{
    internal::v1::{ExchangeRequest, ExchangeResponse, exchange_response},
    v1::{AttachResponse, attach_request},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How much may wait for the task: what is more waits with its sender.
const QUEUE: usize = 8192;
/// How many orders may wait for a slave.
pub const SESSION_QUEUE: usize = 1024;
/// How many of them are kept free of orders to run, which can wait, for those about actions that run.
const SESSION_RESERVE: usize = 256;

/// What a dispatch is told.
#[derive(Debug)]
pub enum Notice {
    /// A slave's channel is open.
    Attached(Slave),
    /// A slave's channel broke.
    Detached(Slave),
    /// An order did not reach its slave.
    Missed {
        /// The slave.
        slave: Slave,
        /// It is there, and has too many orders to take.
        busy: bool,
    },
    /// A slave says something of the action.
    Said(Slave, Box<attach_request::Event>),
}

/// A dispatch, as the switchboard knows it.
#[derive(Debug)]
pub struct Dispatch {
    /// The pods that it is about.
    pub pods: Vec<PodKey>,
    /// Where it is told what happens to their slaves.
    pub notices: mpsc::Sender<Notice>,
    /// Cancelled when somebody cancels the action.
    pub cancelled: CancellationToken,
    /// Set when there was no room for a notice.
    pub missed_some: Arc<AtomicBool>,
    /// Where that is counted.
    pub metrics: Arc<Metrics>,
}

impl Dispatch {
    /// Tells the dispatch something. There is room for all that slaves may send with their credit. If there is none
    /// nevertheless, the dispatch asks its slaves again.
    fn tell(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.metrics.turned_away(Queue::Notices);
            self.missed_some.store(true, Ordering::Relaxed);
        }
    }
}

/// What the task is told.
#[derive(Debug)]
enum Command {
    /// A slave attached here; `actions` are those whose end nobody took yet.
    Attach {
        attachment: Attachment,
        actions: Vec<ActionId>,
        session: Outlet<AttachResponse>,
    },
    /// The session of that attachment ended.
    Detach(Attachment),
    /// A slave that is attached here says something.
    Said(Attachment, attach_request::Event),
    /// A dispatch begins. It is told what happens to its pods' slaves; at once where they are attached, if it asks.
    Open {
        action: ActionId,
        dispatch: Dispatch,
        announce: bool,
    },
    /// A dispatch is over.
    Close(ActionId),
    /// Somebody cancels an action. Answers whether a dispatch of this master was told.
    Cancel(ActionId, oneshot::Sender<bool>),
    /// A dispatch orders slaves, wherever they are attached.
    Orders {
        action: ActionId,
        order: Box<AttachResponse>,
        to: Vec<Slave>,
    },
    /// The stream to a peer is open; orders to its slaves go there.
    PeerUp(Instance, mpsc::Sender<ExchangeRequest>),
    /// A peer says something on that stream.
    PeerSaid(Instance, exchange_response::Message),
    /// The stream to a peer broke.
    PeerDown(Instance),
    /// A peer opened its stream to this master; reports for its dispatches go there.
    CallerUp {
        master: Instance,
        stream: u64,
        replies: Outlet<ExchangeResponse>,
    },
    /// That stream broke.
    CallerDown { master: Instance, stream: u64 },
    /// A peer orders slaves that are attached here.
    CallerOrders {
        master: Instance,
        order: Box<AttachResponse>,
        to: Vec<Slave>,
    },
}

/// Handle on the switchboard. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Switchboard(mpsc::Sender<Command>);

impl Switchboard {
    /// A switchboard and its task.
    pub fn new(roster: Roster, metrics: Arc<Metrics>) -> (Self, SwitchboardTask) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Self(sender), SwitchboardTask::new(queue, roster, metrics))
    }

    /// The task ends only at shutdown, when nobody needs it any more.
    async fn tell(&self, command: Command) {
        let _ = self.0.send(command).await;
    }

    /// A slave attached here.
    pub async fn attach(
        &self,
        attachment: Attachment,
        actions: Vec<ActionId>,
        session: Outlet<AttachResponse>,
    ) {
        self.tell(Command::Attach {
            attachment,
            actions,
            session,
        })
        .await;
    }

    /// A session ended.
    pub async fn detach(&self, attachment: Attachment) {
        self.tell(Command::Detach(attachment)).await;
    }

    /// A slave that is attached here says something.
    pub async fn said(&self, attachment: Attachment, event: attach_request::Event) {
        self.tell(Command::Said(attachment, event)).await;
    }

    /// A dispatch begins: it will be told what happens to the slaves of its pods. With `announce` it is also told which of
    /// them are attached now.
    pub async fn open(&self, action: ActionId, dispatch: Dispatch, announce: bool) {
        self.tell(Command::Open {
            action,
            dispatch,
            announce,
        })
        .await;
    }

    /// A dispatch is over.
    pub async fn close(&self, action: ActionId) {
        self.tell(Command::Close(action)).await;
    }

    /// Cancels an action that this master carries; false when it carries none with that id.
    pub async fn cancel(&self, action: ActionId) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Cancel(action, reply)).await;
        answer.await.unwrap_or(false)
    }

    /// Orders slaves, wherever they are attached. Each order that does not get there is told as missed.
    pub async fn order(&self, action: ActionId, order: AttachResponse, to: Vec<Slave>) {
        let order = Box::new(order);
        self.tell(Command::Orders { action, order, to }).await;
    }

    /// The stream to a peer is open.
    pub async fn peer_up(&self, master: Instance, orders: mpsc::Sender<ExchangeRequest>) {
        self.tell(Command::PeerUp(master, orders)).await;
    }

    /// A peer says something.
    pub async fn peer_said(&self, master: Instance, said: exchange_response::Message) {
        self.tell(Command::PeerSaid(master, said)).await;
    }

    /// The stream to a peer broke.
    pub async fn peer_down(&self, master: Instance) {
        self.tell(Command::PeerDown(master)).await;
    }

    /// A peer opened its stream to this master. `stream` tells it from its earlier ones.
    pub async fn caller_up(
        &self,
        master: Instance,
        stream: u64,
        replies: Outlet<ExchangeResponse>,
    ) {
        self.tell(Command::CallerUp {
            master,
            stream,
            replies,
        })
        .await;
    }

    /// That stream broke.
    pub async fn caller_down(&self, master: Instance, stream: u64) {
        self.tell(Command::CallerDown { master, stream }).await;
    }

    /// A peer orders slaves that are attached here.
    pub async fn caller_orders(&self, master: Instance, order: AttachResponse, to: Vec<Slave>) {
        let order = Box::new(order);
        self.tell(Command::CallerOrders { master, order, to }).await;
    }
}

/// An order to forget or cancel an action, which needs nothing but its id.
fn plain(order: Order, action: &ActionId) -> AttachResponse {
    wire::order(order, action, None)
}
