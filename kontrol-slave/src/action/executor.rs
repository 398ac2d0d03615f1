//! The executor: takes the orders of all tiers, lets each action run at most once, and bounds how many there are.
//!
//! One task owns the journals and knows which actions are at hand; each of those is a task of its own. No tier can touch
//! the actions of another.

#[cfg(test)]
mod tests;

use super::{
    Settings,
    call::Call,
    command::{self, Pod},
    journal::{Journal, Past, number},
    outbox::Outbox,
    outcome::NotRun,
    run::{Action, Channel, Room, Work},
    running::What,
    told::{self, Teller, Told},
};
use crate::identity::Identity;
use kontrol_proto::v1::{
    AttachRequest, Outcome,
    attach_request::{Event, Unknown},
    attach_response::{Order, Run},
};
use std::{collections::HashMap, env, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many orders may wait for the executor.
const QUEUE: usize = 256;
/// How many actions may wait for a slot, and how many KiB their commands may have together.
const MAX_WAITING: usize = 4096;
const MAX_WAITING_KIB: usize = 32 * 1024;
/// How many actions may be at hand, with those whose end was not taken.
const MAX_ACTIONS: usize = MAX_WAITING + 1024;
/// How many KiB of output may be left of actions that have ended.
const MAX_LEFT_KIB: usize = 16 * 1024;
/// How long a command may run that says nothing about it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of each stream is passed on when the order says nothing about it, and how much may be on its way.
const DEFAULT_OUTPUT: u64 = 1024 * 1024;
const DEFAULT_WINDOW: u32 = 64 * 1024;
/// Most of these that an order can ask for: the contract's limits, kept here too, for a master may have a bug.
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
const MAX_OUTPUT: u64 = 1024 * 1024 * 1024;
const MAX_WINDOW: u32 = 256 * 1024;
/// How long running commands get when the slave stops: to end, and to be told of.
const STOP: Duration = Duration::from_millis(900);

/// An order, from the session of a tier.
struct Ordered {
    tier: usize,
    /// Whether its master proved who it is.
    proved: bool,
    /// The pod's key in that tier.
    key: String,
    order: Order,
    reply: oneshot::Sender<Option<Event>>,
}

enum Message {
    Ordered(Box<Ordered>),
    /// Which actions of a tier are at hand?
    List(usize, oneshot::Sender<Vec<String>>),
}

/// Handle on the executor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor(mpsc::Sender<Message>);

/// The task behind [`Executor`].
pub(crate) struct ExecutorTask {
    settings: Option<Settings>,
    identity: watch::Receiver<Identity>,
    messages: mpsc::Receiver<Message>,
    room: Room,
    waiting: Arc<Semaphore>,
    waiting_kib: Arc<Semaphore>,
    tiers: Vec<Tier>,
    tasks: JoinSet<()>,
    /// Whose task each is: the tier and the action.
    ids: HashMap<Id, (usize, String)>,
}

/// What there is of one tier.
struct Tier {
    channel: watch::Receiver<Channel>,
    journal: Journal,
    /// Those that wait, run, or were not forgotten yet, and how to tell them something.
    actions: HashMap<String, Teller>,
}

/// The room that an action takes while it waits.
type Waits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Executor")
    }
}

impl std::fmt::Debug for ExecutorTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorTask")
            .field("actions", &self.ids.len())
            .finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor and its task. Without settings everything is refused. `channels`: one for each tier.
    pub(crate) fn new(
        settings: Option<Settings>,
        identity: watch::Receiver<Identity>,
        channels: Vec<watch::Receiver<Channel>>,
    ) -> (Self, ExecutorTask) {
        let (sender, messages) = mpsc::channel(QUEUE);
        let at_once = settings.as_ref().map_or(1, |settings| settings.at_once);
        let tiers = channels.into_iter().map(|channel| Tier {
            channel,
            journal: Journal::default(),
            actions: HashMap::new(),
        });
        let task = ExecutorTask {
            settings,
            identity,
            messages,
            room: Room {
                slots: Arc::new(Semaphore::new(at_once)),
                left_kib: Arc::new(Semaphore::new(MAX_LEFT_KIB)),
            },
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            waiting_kib: Arc::new(Semaphore::new(MAX_WAITING_KIB)),
            tiers: tiers.collect(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
        };
        (Self(sender), task)
    }

    /// Takes an order; the answer is to be sent at once. Nothing answers when the slave stops.
    /// `proved`: whether the master proved who it is.
    pub(crate) async fn order(
        &self,
        (tier, proved): (usize, bool),
        key: &str,
        order: Order,
    ) -> Option<Event> {
        let (reply, answer) = oneshot::channel();
        let ordered = Ordered {
            tier,
            proved,
            key: key.to_owned(),
            order,
            reply,
        };
        let message = Message::Ordered(Box::new(ordered));
        self.0.send(message).await.ok()?;
        answer.await.ok()?
    }

    /// The actions of a tier that are at hand.
    pub(crate) async fn at_hand(&self, tier: usize) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        // A closed executor has none.
        let _ = self.0.send(Message::List(tier, reply)).await;
        answer.await.unwrap_or_default()
    }
}

impl ExecutorTask {
    /// Runs until the token is cancelled, and then until every command has ended and that was told, within a second.
    pub(crate) async fn run(mut self, token: CancellationToken) {
        let stopping = token.child_token();
        loop {
            // All arms are cancel safe.
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message, &stopping),
                    None => {
                        token.cancelled().await;
                        break;
                    }
                },
            }
        }
        let over = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        if timeout(STOP, over).await.is_err() {
            // Their guards see to the commands; what was not told by now is not.
            self.tasks.shutdown().await;
        }
    }

    /// The task of an action has ended. After a bug its end is not kept; what is known of it is told at once, for its master
    /// waits for that.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some((tier, action)) = self.ids.remove(&id) else {
            return;
        };
        let Some(of) = self.tiers.get_mut(tier) else {
            return;
        };
        of.forget(&action);
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(
                action,
                "the command was ended and counts as LOST: its task failed, which is a bug"
            );
            let event = of.absent(action, Told::Again);
            self.tell(tier, event);
        }
    }

    /// Tells the master of a tier what it did not ask for, as soon as there is room. Should the channel break meanwhile, it
    /// asks on the next one.
    fn tell(&mut self, tier: usize, event: Option<Event>) {
        let channel = self.tiers.get(tier).map(|of| of.channel.borrow().clone());
        if let Some(channel) = channel.flatten()
            && event.is_some()
        {
            self.tasks.spawn(async move {
                // Closed, there is nobody to tell.
                let _ = channel.send(AttachRequest { event }).await;
            });
        }
    }

    fn take(&mut self, message: Message, stopping: &CancellationToken) {
        match message {
            Message::List(tier, reply) => {
                let actions = self.tiers.get(tier).map(|tier| tier.actions.keys());
                // Whoever asked may be gone.
                let _ = reply.send(actions.into_iter().flatten().cloned().collect());
            }
            Message::Ordered(ordered) => {
                let Ordered {
                    tier,
                    proved,
                    key,
                    order,
                    reply,
                } = *ordered;
                let answer = self.order((tier, proved), &key, order, stopping);
                let _ = reply.send(answer);
            }
        }
    }

    /// Passes an order on to its action, or sees to one that is not at hand.
    fn order(
        &mut self,
        (tier, proved): (usize, bool),
        key: &str,
        order: Order,
        stopping: &CancellationToken,
    ) -> Option<Event> {
        let of = self.tiers.get_mut(tier)?;
        let (id, told) = match order {
            Order::Welcome(_) => return None,
            Order::Run(run) if of.actions.contains_key(&run.action_id) => {
                (run.action_id, Told::Again)
            }
            Order::Run(run) => return self.begin((tier, proved), key, run, stopping),
            Order::Resume(resume) => {
                let (stdout, stderr) = (resume.stdout_offset, resume.stderr_offset);
                (resume.action_id, Told::Resume { stdout, stderr })
            }
            Order::Credit(credit) => {
                let (stdout, stderr) = (credit.stdout_offset, credit.stderr_offset);
                (credit.action_id, Told::Credit { stdout, stderr })
            }
            Order::Cancel(cancel) => (cancel.action_id, Told::Cancel),
            Order::Forget(forget) => (forget.action_id, Told::Forget),
        };
        // Forgotten at once, so that no later order goes to a task that answers none.
        let action = match told {
            Told::Forget => of.forget(&id),
            Told::Resume { .. } | Told::Again | Told::Credit { .. } | Told::Cancel => {
                of.actions.get(&id).cloned()
            }
        };
        match action {
            Some(action) => {
                action.tell(told);
                None
            }
            None => of.absent(id, told),
        }
    }

    /// Takes an action that is new; or tells what became of it, or why it will not run.
    fn begin(
        &mut self,
        (tier, proved): (usize, bool),
        key: &str,
        run: Run,
        stopping: &CancellationToken,
    ) -> Option<Event> {
        let of = self.tiers.get(tier)?;
        let (work, waits) = match of.allows(&run).and_then(|()| self.admit(&run, key, proved)) {
            Ok(admitted) => admitted,
            // Not kept: whoever did not get this answer orders again, and gets one as good.
            Err(not_run) => {
                let (id, reason) = (&run.action_id, &not_run.reason);
                tracing::warn!(action = id, reason, "action not run");
                return Some(not_run.told(run.action_id));
            }
        };
        let (id, program) = (&run.action_id, work.argv.first());
        tracing::info!(action = id, ?program, "action accepted");
        let mut channel = of.channel.clone();
        // The order came over the channel of now.
        channel.mark_unchanged();
        let timeout = run
            .timeout
            .and_then(|timeout| Duration::try_from(timeout).ok());
        let timeout = timeout.filter(|timeout| !timeout.is_zero());
        let window = match run.window {
            0 => DEFAULT_WINDOW,
            window => window.min(MAX_WINDOW),
        };
        let max_output = match run.max_output {
            0 => DEFAULT_OUTPUT,
            some => some.min(MAX_OUTPUT),
        };
        let (told, words) = told::channel();
        let action = Action::new(
            Outbox::new(&run.action_id, window, max_output),
            timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.min(MAX_TIMEOUT)),
            words,
            channel,
            self.room.clone(),
            stopping.clone(),
        );
        let task = self.tasks.spawn(action.run(work, waits));
        self.ids.insert(task.id(), (tier, run.action_id.clone()));
        if let Some(of) = self.tiers.get_mut(tier) {
            of.actions.insert(run.action_id, told);
        }
        None
    }

    /// What is to run, and its place among those that wait; or how it ends at once.
    fn admit(&self, run: &Run, key: &str, proved: bool) -> Result<(Work, Waits), NotRun> {
        let settings = self.settings.as_ref();
        let settings = settings.ok_or_else(|| NotRun::refused("this pod runs no actions"))?;
        let full = || NotRun::refused("too many actions wait on this slave; try again later");
        if self.ids.len() >= MAX_ACTIONS {
            return Err(full());
        }
        let pod = Pod {
            key: key.to_owned(),
            id: self.identity.borrow().id.clone(),
        };
        if !settings.trusted && !proved {
            let or = match settings.handler {
                Some(_) => "insecure(true), if everybody who reaches them may act here",
                None => "--insecure, if everybody who reaches them may run commands here",
            };
            return Err(NotRun::refused(format!(
                "this slave runs actions only over a link where its master proves who it is: give it its masters as https:// (or {or})"
            )));
        }
        let what = match &settings.handler {
            Some(handler) => Call::new(handler, run, &pod).map(|call| What::Call(Box::new(call))),
            None => command::spec(run, &pod, settings, env::vars_os())
                .map(|spec| What::Command(Box::new(spec))),
        };
        let command = run.command.clone().unwrap_or_default();
        let work = Work {
            argv: command::words(&command).map_err(NotRun::refused)?,
            variables: command.env,
            policy: settings.policy.clone(),
            what: what.map_err(NotRun::refused)?,
        };
        let kib = u32::try_from(work.what.bytes() / 1024 + 1).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        let room = Arc::clone(&self.waiting_kib).try_acquire_many_owned(kib);
        match (place, room) {
            (Ok(place), Ok(room)) => Ok((work, (place, room))),
            _ => Err(full()),
        }
    }
}

impl Tier {
    /// From now on the action is one that ran before.
    fn forget(&mut self, id: &str) -> Option<Teller> {
        let action = self.actions.remove(id)?;
        if let Some(number) = number(id) {
            self.journal.add(number, Past::Ended);
        }
        Some(action)
    }

    /// An order about an action that is not at hand.
    fn absent(&mut self, id: String, told: Told) -> Option<Event> {
        if matches!(told, Told::Credit { .. } | Told::Forget) {
            return None;
        }
        let number = number(&id);
        let past = number.and_then(|number| self.journal.past(number));
        if let Some(over) = past.and_then(over) {
            return Some(over.told(id));
        }
        if let (Told::Cancel, Some(number)) = (told, number) {
            self.journal.add(number, Past::Cancelled);
        }
        Some(Event::Unknown(Unknown { action_id: id }))
    }

    /// Whether an action may run that is not at hand.
    fn allows(&self, run: &Run) -> Result<(), NotRun> {
        let number = number(&run.action_id).ok_or_else(|| NotRun::refused("its id is none"))?;
        match self.journal.past(number) {
            Some(Past::Cancelled) => {
                let reason = "it was cancelled before it came";
                Err(NotRun::new(Outcome::Cancelled, reason))
            }
            past => past.and_then(over).map_or(Ok(()), Err),
        }
    }
}

/// The end of an action that is over, as far as it is known.
fn over(past: Past) -> Option<NotRun> {
    let reason = match past {
        Past::Ended => "it ran here before, and how it ended is not kept any more",
        Past::Forgotten => "it is so old that it may have run here before",
        Past::Cancelled => return None,
    };
    Some(NotRun::new(Outcome::Lost, reason))
}
