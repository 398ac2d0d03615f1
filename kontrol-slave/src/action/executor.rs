//! The executor: takes the orders of all tiers, lets each action run at most once, and bounds how many there are.
//!
//! One task owns the journal and knows which actions are at hand; each of those is a task of its own.

use super::{
    Settings,
    command::{self, Pod},
    journal::{Journal, Past, number},
    outbox::Outbox,
    run::{Action, Channel, Told},
};
use crate::identity::Identity;
use kontrol_proto::v1::{
    attach_request::{Event, Unknown},
    attach_response::{Order, Run},
};
use std::{collections::HashMap, env, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::{Id, JoinSet},
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
/// How many words may wait for an action. One that has more is told them when it is asked again.
const TOLD: usize = 256;
/// How long a command may run that says nothing about it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of each stream is passed on when the order says nothing about it, and how much may be on its way.
const DEFAULT_OUTPUT: u64 = 1024 * 1024;
const DEFAULT_WINDOW: u32 = 64 * 1024;
/// How long running commands get when the slave stops: to end, and to be told of.
const STOP: Duration = Duration::from_millis(900);

/// An order, from the session of a tier.
struct Ordered {
    tier: usize,
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
    /// The channel of each tier.
    channels: Vec<watch::Receiver<Channel>>,
    messages: mpsc::Receiver<Message>,
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    waiting_kib: Arc<Semaphore>,
    journal: Journal,
    actions: HashMap<String, AtHand>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, String>,
}

/// An action that waits, runs, or was not forgotten yet.
struct AtHand {
    tier: usize,
    told: mpsc::Sender<Told>,
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
        let actions = self.actions.len();
        f.debug_struct("ExecutorTask")
            .field("actions", &actions)
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
        let task = ExecutorTask {
            settings,
            identity,
            channels,
            messages,
            slots: Arc::new(Semaphore::new(at_once)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            waiting_kib: Arc::new(Semaphore::new(MAX_WAITING_KIB)),
            journal: Journal::default(),
            actions: HashMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
        };
        (Self(sender), task)
    }

    /// Takes an order; the answer is to be sent at once. Nothing answers when the slave stops.
    pub(crate) async fn order(&self, tier: usize, key: &str, order: Order) -> Option<Event> {
        let (reply, answer) = oneshot::channel();
        let ordered = Ordered {
            tier,
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

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => {
                tracing::error!(%error, "the task of an action failed; this is a bug");
                error.id()
            }
        };
        if let Some(action) = self.ids.remove(&id) {
            self.actions.remove(&action);
            if let Some(number) = number(&action) {
                self.journal.add(number, Past::Ended);
            }
        }
    }

    fn take(&mut self, message: Message, stopping: &CancellationToken) {
        match message {
            Message::List(tier, reply) => {
                let of_tier = self.actions.iter().filter(|(_, at)| at.tier == tier);
                // Whoever asked may be gone.
                let _ = reply.send(of_tier.map(|(id, _)| id.clone()).collect());
            }
            Message::Ordered(ordered) => {
                let Ordered {
                    tier,
                    key,
                    order,
                    reply,
                } = *ordered;
                let answer = self.order(tier, key, order, stopping);
                let _ = reply.send(answer);
            }
        }
    }

    /// Passes an order on to its action, or sees to one that is not at hand.
    fn order(
        &mut self,
        tier: usize,
        key: String,
        order: Order,
        stopping: &CancellationToken,
    ) -> Option<Event> {
        let (id, told) = match order {
            Order::Welcome(_) => return None,
            Order::Run(run) if self.actions.contains_key(&run.action_id) => {
                (run.action_id, Told::Again)
            }
            Order::Run(run) => {
                self.begin(tier, key, run, stopping);
                return None;
            }
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
        match self.actions.get(&id) {
            Some(action) => {
                // An action takes words at once; one that is stuck for so long is told again by who asks it.
                let _ = action.told.try_send(told);
                None
            }
            None => self.absent(id, told),
        }
    }

    /// An order about an action that is not at hand.
    fn absent(&mut self, id: String, told: Told) -> Option<Event> {
        match told {
            Told::Cancel => {
                if let Some(number) = number(&id) {
                    self.journal.add(number, Past::Cancelled);
                }
            }
            Told::Resume { .. } | Told::Again => {}
            Told::Credit { .. } | Told::Forget => return None,
        }
        Some(Event::Unknown(Unknown { action_id: id }))
    }

    /// Takes an action that is new; or says what became of it, or why it will not run.
    fn begin(&mut self, tier: usize, key: String, run: Run, stopping: &CancellationToken) {
        let Some(mut channel) = self.channels.get(tier).cloned() else {
            return;
        };
        // The order came over the channel of now.
        channel.mark_unchanged();
        let admitted = self.admit(&run, key);
        let timeout = run
            .timeout
            .and_then(|timeout| Duration::try_from(timeout).ok());
        let timeout = timeout.filter(|timeout| !timeout.is_zero());
        let window = match run.window {
            0 => DEFAULT_WINDOW,
            window => window,
        };
        let max_output = match run.max_output {
            0 => DEFAULT_OUTPUT,
            some => some,
        };
        let (told, words) = mpsc::channel(TOLD);
        let action = Action::new(
            Outbox::new(&run.action_id, window, max_output),
            timeout.unwrap_or(DEFAULT_TIMEOUT),
            words,
            channel,
            Arc::clone(&self.slots),
            stopping.clone(),
        );
        let (command, waits) = match admitted {
            Ok((spec, waits)) => (Ok(spec), Some(waits)),
            Err(reason) => (Err(reason), None),
        };
        match &command {
            Ok(spec) => {
                tracing::info!(action = run.action_id, program = ?spec.argv.first(), "action accepted")
            }
            Err(reason) => tracing::warn!(action = run.action_id, reason, "action refused"),
        }
        let task = self.tasks.spawn(action.run(command, waits));
        self.ids.insert(task.id(), run.action_id.clone());
        self.actions.insert(run.action_id, AtHand { tier, told });
    }

    fn admit(&self, run: &Run, key: String) -> Result<(crate::process::Spec, Waits), String> {
        let settings = self.settings.as_ref();
        let settings = settings.ok_or("this pod runs no actions")?;
        let id = number(&run.action_id).ok_or("its id is none")?;
        match self.journal.past(id) {
            Some(Past::Cancelled) => return Err("it was cancelled before it came".to_owned()),
            Some(Past::Ended) => return Err("it ran here before, and its end was taken".to_owned()),
            Some(Past::Forgotten) => {
                return Err("it is so old that it may have run here before".to_owned());
            }
            None => {}
        }
        let full = || "too many actions wait on this slave; try again later".to_owned();
        if self.actions.len() >= MAX_ACTIONS {
            return Err(full());
        }
        let pod = Pod {
            key,
            id: self.identity.borrow().id.clone(),
        };
        let spec = command::spec(run, &pod, settings, env::vars_os())?;
        let bytes = spec.argv.iter().map(|word| word.len()).sum::<usize>();
        let bytes = bytes + spec.input.as_ref().map_or(0, Vec::len);
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        let room = Arc::clone(&self.waiting_kib).try_acquire_many_owned(kib);
        match (place, room) {
            (Ok(place), Ok(room)) => Ok((spec, (place, room))),
            _ => Err(full()),
        }
    }
}
