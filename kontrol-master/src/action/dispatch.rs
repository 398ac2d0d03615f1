//! Dispatches: each action that this master carries is one task, which owns its rollout, tells its dispatcher, and writes
//! its record.
//!
//! ```text
//! rollout ── events ──▶ out ──▶ the dispatcher, as fast as it reads     what it has read gives the slaves credit for more
//!    ▲                          (or nobody: then it is thrown away)
//!    └── notices ◀── switchboard;  roster, clock;  cancel;  shutdown
//! ```
//!
//! The record is written before the first order goes out, now and then, and at the end before the summary is told. While
//! the store can't be reached actions run all the same, without a record until it is back: they may be what repairs it.
//!
//! Another master takes an action over when this one's candidacy is gone from the store. Two masters must never tell
//! different ends: so a master tells an end only while it surely carries the action (see `standing`). A master that
//! can't be sure says so, and where to look.

mod budget;
mod client;
mod standing;
mod task;
#[cfg(test)]
mod tests;

use super::{
    history::{History, Taking},
    request::Request,
    switchboard::Switchboard,
    targets::targets,
};
use crate::{
    cluster::{error::Error, roster::Roster},
    metrics::{Metrics, Queue},
};
use budget::{Budget, Load, Place, Share, WINDOW_KIB};
use client::Client;
use kontrol_core::{
    limits::Limits,
    model::action::{ActionId, Counts, Head, Record, State},
    rollout::{self, Adopted, Rollout, Target},
    settings::Settings,
    view::PeerMaster,
};
use kontrol_proto::v1::{DispatchRequest, DispatchResponse, attach_response::Run};
use kontrol_runtime::{
    clock::now_ms,
    supervise::{Children, Failure},
};
use prost::Message;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use task::{Origin, Task};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;

/// How many KiB of commands are handed to slaves at a time, see `rollout::Limits::batch`.
const BATCH_KIB: usize = 64 * 1024;
/// How much of the end of each stream the history keeps, for one target and for all.
const TAIL_BYTES: usize = 4096;
const TAILS_BYTES: usize = 256 * 1024;
/// How many notices may wait for an action: for each target that is at work, those that a slave can send without credit,
/// and some.
const NOTICES_EACH: usize = 48;
const MOST_NOTICES: usize = 1 << 20;

/// Carries actions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatches {
    myself: PeerMaster,
    roster: Roster,
    switchboard: Switchboard,
    history: History,
    metrics: Arc<Metrics>,
    /// How long a slave may take to attach that never got the order.
    attach: Duration,
    limits: Limits,
    budget: Budget,
    carried: Arc<Carried>,
    tasks: Children,
    token: CancellationToken,
}

/// The actions that this master carries.
#[derive(Debug, Default)]
struct Carried(Mutex<HashSet<ActionId>>);

impl Carried {
    fn with<T>(&self, act: impl FnOnce(&mut HashSet<ActionId>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Marks one action as carried until this is dropped.
struct Carrying {
    carried: Arc<Carried>,
    action: ActionId,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.carried.with(|carried| carried.remove(&self.action));
    }
}

/// What a dispatcher is told, as it comes.
pub type Told = ReceiverStream<Result<DispatchResponse, Status>>;

impl Dispatches {
    /// The dispatches of this master. They end with the token.
    pub fn new(
        myself: PeerMaster,
        roster: Roster,
        switchboard: Switchboard,
        history: History,
        metrics: Arc<Metrics>,
        settings: &Settings,
        token: CancellationToken,
    ) -> Self {
        Self {
            myself,
            roster,
            switchboard,
            history,
            metrics,
            attach: settings.attach_limit(),
            limits: settings.limits.clone(),
            budget: Budget::new(settings.limits.dispatches),
            carried: Arc::default(),
            tasks: Children::new("an action's dispatch"),
            token,
        }
    }

    /// Waits for the end of every dispatch, once the token is cancelled. A dispatch that panics stops this master: else
    /// the record of its action would say for ever that it runs.
    pub async fn joined(self) -> Result<(), Failure> {
        self.tasks.joined(self.token).await
    }

    /// Whether this master carries that action.
    pub(super) fn carries(&self, action: &ActionId) -> bool {
        self.carried.with(|carried| carried.contains(action))
    }

    /// Runs a command on slaves. `dispatcher`: who asks; it counts as gone once `lapsed` is cancelled.
    pub fn dispatch(
        &self,
        request: DispatchRequest,
        dispatcher: String,
        lapsed: CancellationToken,
    ) -> Result<Told, Error> {
        let request = Request::new(request)?;
        request.check_depth(&self.limits)?;
        if !self.roster.started() {
            return Err(Error::Unavailable(
                "this master has not read the roster yet; try another master".to_owned(),
            ));
        }
        let place = self.counted(self.place())?;
        let targets = targets(
            &self.roster.view(),
            &request.selection,
            &request.keys,
            &request.labels,
        );
        let load = Load {
            targets: targets.len(),
            command_kib: request.command.encoded_len() / 1024 + 1,
            concurrency: request.concurrency,
        };
        let (share, window_kib) = self.counted(self.budget.share(place, &load))?;
        let limits = self.limits(&load, window_kib, request.max_failures);
        let created_ms = now_ms();
        let id = ActionId::new(created_ms, rand::random());
        let head = Head {
            id: id.clone(),
            state: State::Running,
            dispatcher,
            master: self.myself.id.clone(),
            instance: self.myself.instance.clone(),
            lease: String::new(),
            created_ms,
            finished_ms: None,
            timeout_ms: u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX),
            detach: request.detach,
            command: request.record(),
            selector: request.selection,
            summary: Counts::default(),
        };
        let run = Run {
            action_id: id.to_string(),
            command: Some(request.command),
            timeout: request.timeout.try_into().ok(),
            max_output: request.max_output,
            window: u32::try_from(limits.window).unwrap_or(u32::MAX),
        };
        let (client, told) = Client::new(lapsed);
        let rollout = Rollout::new(targets, limits);
        self.start(
            head,
            rollout,
            Origin::Dispatched(Box::new(run), client),
            share,
        );
        Ok(told)
    }

    fn counted<T>(&self, room: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Exhausted(_)) = &room {
            self.metrics.turned_away(Queue::Actions);
        }
        room
    }

    /// Carries on with an action whose master died, if it can be taken over.
    pub(super) fn adopt(&self, record: Record, taking: Taking) -> Result<(), Error> {
        let place = self.place()?;
        let Record { mut head, results } = record;
        tracing::info!(action = %head.id, from = head.master, "taking over an action whose master is gone");
        head.master.clone_from(&self.myself.id);
        head.instance.clone_from(&self.myself.instance);
        let targets: Vec<Adopted> = results
            .into_iter()
            .map(|result| Adopted {
                ended: result.ended(),
                target: Target {
                    pod: result.key.parse().map_err(|_| String::new()),
                    key: result.key,
                    id: result.id,
                    nonce: result.nonce,
                },
                tails: [result.stdout_tail, result.stderr_tail],
            })
            .collect();
        let load = Load {
            targets: targets.len(),
            command_kib: 0,
            concurrency: usize::MAX,
        };
        let (share, _) = self.budget.share(place, &load)?;
        // The slaves keep the window that the master before gave them, which may be the smallest. So credit must not
        // wait for more.
        let limits = self.limits(&load, *WINDOW_KIB.start(), 0);
        let (counts, now) = (head.summary, Instant::now());
        let rollout = Rollout::adopt(targets, counts, head.detach, limits, now);
        self.start(head, rollout, Origin::Adopted(taking), share);
        Ok(())
    }

    /// Whether this start of this master carries an action, or carried it last.
    pub fn is_mine(&self, head: &Head) -> bool {
        head.instance == self.myself.instance
    }

    /// Cancels an action that this master carries. False when it carries none with that id.
    pub async fn cancel(&self, id: &ActionId) -> bool {
        self.switchboard.cancel(id.clone()).await
    }

    fn place(&self) -> Result<Place, Error> {
        if self.token.is_cancelled() {
            return Err(Error::Unavailable(
                "this master stops; try another master".to_owned(),
            ));
        }
        self.budget.place()
    }

    fn limits(&self, load: &Load, window_kib: usize, max_failures: u32) -> rollout::Limits {
        rollout::Limits {
            concurrency: load.concurrency,
            batch: (BATCH_KIB / load.command_kib.max(1)).max(1),
            max_failures,
            attach: self.attach,
            window: (window_kib * 1024) as u64,
            tail: TAIL_BYTES.min(TAILS_BYTES / 2 / load.targets.max(1)),
        }
    }

    fn start(&self, head: Head, rollout: Rollout, origin: Origin, share: Share) {
        let action = head.id.clone();
        self.carried.with(|carried| carried.insert(action.clone()));
        let span = tracing::info_span!("dispatch", %action);
        let carrying = Carrying {
            carried: Arc::clone(&self.carried),
            action,
        };
        let room = rollout.pods().count().saturating_mul(NOTICES_EACH);
        let (sender, notices) = mpsc::channel(room.clamp(NOTICES_EACH, MOST_NOTICES));
        let task = Task::new(self.clone(), head, rollout, origin, notices, share);
        // Joined with the others at the end.
        let carried = async move {
            let _carrying = carrying;
            task.run(sender).await;
        };
        drop(self.tasks.spawn(carried.instrument(span)));
    }
}
