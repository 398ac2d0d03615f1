//! The task of the switchboard: slaves that are attached here, and dispatches of this master.

mod peers;

use super::{
    Command, Dispatch, Notice, SESSION_RESERVE,
    directory::{Directory, Place},
    orphans::Orphans,
    plain,
};
use crate::{
    action::{
        attachment::Attachment,
        outlet::{Outlet, Unsent},
        wire,
    },
    cluster::roster::Roster,
    metrics::{Metrics, Queue},
};
use kontrol_core::{
    liveness::Instance,
    model::{
        PodKey,
        action::{ActionId, State},
    },
    rollout::{Order, Slave},
    view::KnownAction,
};
use kontrol_proto::{
    internal::v1::{
        ExchangeRequest, ExchangeResponse, exchange_request,
        exchange_response::{self, Report},
    },
    v1::{AttachRequest, AttachResponse, attach_request, attach_response},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How often the actions are looked through that nobody asks for.
const SWEEP: Duration = Duration::from_secs(1);
/// Most slaves in one message to a peer, so that it stays within the size of a message.
const MAX_SLAVES: usize = 4096;

/// On whose behalf a slave runs an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Here,
    Peer(Instance),
}

/// A slave that is attached here.
#[derive(Debug)]
struct Session {
    attachment: Attachment,
    orders: Outlet<AttachResponse>,
    owners: HashMap<ActionId, Owner>,
    orphans: Orphans,
}

/// The stream of a peer to this master.
#[derive(Debug)]
struct Caller {
    stream: u64,
    replies: Outlet<ExchangeResponse>,
}

/// Why an order did not reach its slave.
enum Failed {
    Absent,
    Busy,
}

/// The task behind [`Switchboard`](super::Switchboard).
#[derive(Debug)]
pub struct SwitchboardTask {
    queue: mpsc::Receiver<Command>,
    roster: Roster,
    sessions: HashMap<PodKey, Session>,
    directory: Directory,
    dispatches: HashMap<ActionId, Dispatch>,
    /// Which dispatches are about a pod.
    interest: HashMap<PodKey, Vec<ActionId>>,
    peers: HashMap<Instance, mpsc::Sender<ExchangeRequest>>,
    callers: HashMap<Instance, Caller>,
    metrics: Arc<Metrics>,
}

impl SwitchboardTask {
    pub(super) fn new(
        queue: mpsc::Receiver<Command>,
        roster: Roster,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            queue,
            roster,
            metrics,
            sessions: HashMap::new(),
            directory: Directory::default(),
            dispatches: HashMap::new(),
            interest: HashMap::new(),
            peers: HashMap::new(),
            callers: HashMap::new(),
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All arms are cancel safe.
            tokio::select! {
                () = token.cancelled() => return,
                command = self.queue.recv() => match command {
                    Some(command) => {
                        self.take(command);
                        let attached = i64::try_from(self.sessions.len()).unwrap_or(i64::MAX);
                        self.metrics.attached.set(attached);
                    }
                    None => return,
                },
                _ = sweep.tick() => self.sweep(Instant::now()),
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Attach {
                attachment,
                actions,
                session,
            } => self.attach(attachment, actions, session),
            Command::Detach(attachment) => self.detach(&attachment),
            Command::Said(attachment, event) => self.report(&attachment, event),
            Command::Open {
                action,
                dispatch,
                announce,
            } => self.open(action, dispatch, announce),
            Command::Close(action) => self.close(&action),
            Command::Cancel(action, reply) => {
                let dispatch = self.dispatches.get(&action);
                let told = dispatch.map(|dispatch| dispatch.cancelled.cancel());
                // Whoever asked may have gone away.
                let _ = reply.send(told.is_some());
            }
            Command::Orders { action, order, to } => self.orders(&action, *order, to),
            Command::PeerUp(master, orders) => {
                self.peers.insert(master, orders);
            }
            Command::PeerSaid(master, said) => self.peer_said(master, said),
            Command::PeerDown(master) => self.peer_down(master),
            Command::CallerUp {
                master,
                stream,
                replies,
            } => self.caller_up(master, stream, replies),
            Command::CallerDown { master, stream } => self.caller_down(master, stream),
            Command::CallerOrders { master, order, to } => {
                self.caller_orders(master, &order, to);
            }
        }
    }

    fn attach(
        &mut self,
        attachment: Attachment,
        actions: Vec<ActionId>,
        orders: Outlet<AttachResponse>,
    ) {
        let key = attachment.slave.key;
        if let Some(before) = self.sessions.remove(&key) {
            let same = before.attachment.slave == attachment.slave;
            if same && before.attachment.number > attachment.number {
                self.sessions.insert(key, before);
                return orders.end(again());
            }
            before.orders.end(again());
        }
        let mut session = Session {
            attachment: attachment.clone(),
            orders,
            owners: HashMap::new(),
            orphans: Orphans::default(),
        };
        let welcome = AttachResponse {
            order: Some(attach_response::Order::Welcome(attach_response::Welcome {})),
        };
        // The queue is new and empty.
        let _ = session.orders.send(welcome);
        let now = Instant::now();
        for action in actions {
            session.orphans.add(action, now);
        }
        self.sessions.insert(key, session);
        self.tell_callers(std::slice::from_ref(&attachment), &[]);
        self.arrived(attachment, Place::Here);
    }

    fn detach(&mut self, attachment: &Attachment) {
        let key = attachment.slave.key;
        let is_current = |session: &Session| {
            session.attachment.slave == attachment.slave
                && session.attachment.number == attachment.number
        };
        if !self.sessions.get(&key).is_some_and(is_current) {
            return;
        }
        self.sessions.remove(&key);
        self.tell_callers(&[], std::slice::from_ref(attachment));
        self.left(attachment, Place::Here);
    }

    /// Passes on what a slave says, to whoever gave it the last order about that action.
    fn report(&mut self, attachment: &Attachment, event: attach_request::Event) {
        let slave = &attachment.slave;
        let Some(session) = self.sessions.get_mut(&slave.key) else {
            return;
        };
        if session.attachment.slave != *slave || session.attachment.number != attachment.number {
            return;
        }
        let Some(action) = wire::action_of(&event) else {
            return;
        };
        match session.owners.get(&action).copied() {
            Some(Owner::Here) => self.deliver(&action, slave.clone(), event),
            Some(Owner::Peer(master)) => {
                let report = exchange_response::Message::Report(Report {
                    slave: Some(wire::incarnation(slave)),
                    report: Some(AttachRequest { event: Some(event) }),
                });
                self.reply(master, report);
            }
            None => {}
        }
    }

    /// Passes on what a slave says to the dispatch of this master that it is about.
    fn deliver(&mut self, action: &ActionId, slave: Slave, event: attach_request::Event) {
        if let Some(dispatch) = self.dispatches.get(action) {
            return dispatch.tell(Notice::Said(slave, Box::new(event)));
        }
        // Another master may have taken it over: then this one has no say in it.
        let view = self.roster.view();
        let runs = |known: &Arc<KnownAction>| known.head.state == State::Running;
        if !view.action(action).is_some_and(runs)
            && !matches!(event, attach_request::Event::Unknown(_))
        {
            self.abandon(action, slave);
        }
    }

    /// Gives an order to a slave that is attached here.
    fn give(&mut self, slave: &Slave, order: &AttachResponse, owner: Owner) -> Result<(), Failed> {
        let session = self.sessions.get_mut(&slave.key);
        let session = session.filter(|session| session.attachment.slave == *slave);
        let session = session.ok_or(Failed::Absent)?;
        let can_wait = matches!(order.order, Some(attach_response::Order::Run(_)));
        if can_wait && session.orders.capacity() < SESSION_RESERVE {
            self.metrics.turned_away(Queue::Orders);
            return Err(Failed::Busy);
        }
        let Some(action) = wire::action_of_order(order) else {
            return Err(Failed::Absent);
        };
        if let Err(unsent) = session.orders.send(order.clone()) {
            if unsent == Unsent::Full {
                self.metrics.turned_away(Queue::Orders);
            }
            // The slave reads no orders any more. It is cut off, attaches again, and is told what it missed.
            let attachment = session.attachment.clone();
            self.detach(&attachment);
            return Err(Failed::Absent);
        }
        session.orphans.claim(&action);
        if matches!(order.order, Some(attach_response::Order::Forget(_))) {
            session.owners.remove(&action);
        } else {
            session.owners.insert(action, owner);
        }
        Ok(())
    }

    /// Ends an action whose end nobody will take, and lets the slave forget it. Whatever the slave answers is ignored.
    fn abandon(&mut self, action: &ActionId, slave: Slave) {
        for order in [Order::Cancel, Order::Forget] {
            self.orders(action, plain(order, action), vec![slave.clone()]);
        }
    }

    fn sweep(&mut self, now: Instant) {
        let view = self.roster.view();
        let blind = !self.roster.connected();
        let mut abandoned = Vec::new();
        for session in self.sessions.values_mut() {
            let known = |action: &ActionId| view.action(action).map(|known| known.head.state);
            let actions = session.orphans.abandoned(now, blind, known);
            let slave = &session.attachment.slave;
            abandoned.extend(actions.into_iter().map(|action| (action, slave.clone())));
        }
        for (action, slave) in abandoned {
            tracing::info!(key = %slave.key, %action, "ending an action that nobody asks for any more");
            self.abandon(&action, slave);
        }
    }

    fn open(&mut self, action: ActionId, dispatch: Dispatch, announce: bool) {
        for pod in &dispatch.pods {
            self.interest.entry(*pod).or_default().push(action.clone());
            if announce {
                for slave in self.directory.slaves(*pod) {
                    dispatch.tell(Notice::Attached(slave.clone()));
                }
            }
        }
        self.dispatches.insert(action, dispatch);
    }

    fn close(&mut self, action: &ActionId) {
        let Some(dispatch) = self.dispatches.remove(action) else {
            return;
        };
        for pod in dispatch.pods {
            if let Some(actions) = self.interest.get_mut(&pod) {
                actions.retain(|other| other != action);
                if actions.is_empty() {
                    self.interest.remove(&pod);
                }
            }
        }
    }

    fn orders(&mut self, action: &ActionId, order: AttachResponse, to: Vec<Slave>) {
        let mut at_peers: HashMap<Instance, Vec<Slave>> = HashMap::new();
        for slave in to {
            match self.directory.find(&slave) {
                Some((Place::Here, _)) => match self.give(&slave, &order, Owner::Here) {
                    Ok(()) => {}
                    Err(Failed::Absent) => self.missed(action, slave, false),
                    Err(Failed::Busy) => self.missed(action, slave, true),
                },
                Some((Place::Peer(master), _)) => at_peers.entry(master).or_default().push(slave),
                None => self.missed(action, slave, false),
            }
        }
        for (master, slaves) in at_peers {
            for slaves in slaves.chunks(MAX_SLAVES) {
                let message = exchange_request::Message::Orders(exchange_request::Orders {
                    targets: slaves.iter().map(wire::incarnation).collect(),
                    order: Some(order.clone()),
                });
                let request = ExchangeRequest {
                    message: Some(message),
                };
                let peer = self.peers.get(&master);
                let room = peer.map(mpsc::Sender::try_reserve);
                if let Some(Err(TrySendError::Full(()))) = room {
                    self.metrics.turned_away(Queue::Links);
                }
                if let Some(Ok(room)) = room {
                    room.send(request);
                } else {
                    drop(room);
                    // Its stream is opened again, and then each slave is asked what it missed.
                    self.peer_down(master);
                    for slave in slaves {
                        self.missed(action, slave.clone(), false);
                    }
                }
            }
        }
    }

    fn missed(&self, action: &ActionId, slave: Slave, busy: bool) {
        if let Some(dispatch) = self.dispatches.get(action) {
            dispatch.tell(Notice::Missed { slave, busy });
        }
    }

    /// A slave is attached there now. Dispatches to its pod are told, unless it is known to be elsewhere by now.
    fn arrived(&mut self, attachment: Attachment, place: Place) {
        let slave = attachment.slave.clone();
        if self.directory.insert(attachment, place) {
            self.notify(&slave, Notice::Attached);
        }
    }

    fn left(&mut self, attachment: &Attachment, place: Place) {
        if self.directory.remove(attachment, place) {
            self.notify(&attachment.slave, Notice::Detached);
        }
    }

    fn notify(&self, slave: &Slave, notice: fn(Slave) -> Notice) {
        for action in self.interest.get(&slave.key).into_iter().flatten() {
            if let Some(dispatch) = self.dispatches.get(action) {
                dispatch.tell(notice(slave.clone()));
            }
        }
    }
}

fn again() -> Status {
    Status::aborted("the same slave attached again")
}
