//! The task of one action.

mod ending;
mod recording;
mod telling;

use super::{Dispatches, Share, client::Client, standing::Standing};
use crate::action::{
    history::{NotSaved, Taking},
    switchboard::{Dispatch, Notice},
    wire,
};
use kontrol_core::{
    kv::Revision,
    model::action::{ActionId, Head, State},
    rollout::{Effect, Order, Rollout, Slave},
    view::View,
};
use kontrol_proto::v1::attach_response::Run;
use recording::{Saving, written};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the task looks after the targets that it waits for.
const TICK: Duration = Duration::from_millis(250);
/// How many notices are taken in before their effects are seen to.
const BATCH: usize = 64;
/// How long an action may take to end once this master stops, and its dispatcher to be told.
const STOP: Duration = Duration::from_secs(2);

/// Where an action comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A dispatcher, with what is to run.
    Dispatched(Box<Run>, Client),
    /// A master that died.
    Adopted(Taking),
}

/// How it came to an end here.
enum End {
    /// Every target has ended.
    Over,
    /// Another master carries it now.
    Overtaken,
    /// This master stops.
    Stopping,
}

/// One action.
pub(super) struct Task {
    dispatches: Dispatches,
    id: ActionId,
    head: Head,
    run: Option<Run>,
    /// How the record of another master is to be taken over.
    taking: Option<Taking>,
    rollout: Rollout,
    /// The revision of the record; 0: it is not written yet.
    revision: Revision,
    standing: Standing,
    /// The write of the record under way.
    saving: Option<Saving>,
    /// When a slave last said something, or this master was sure to carry the action.
    heard: Instant,
    /// Whether it was sure then.
    sure: bool,
    client: Option<Client>,
    notices: mpsc::Receiver<Notice>,
    cancelled: CancellationToken,
    began: Instant,
    /// When the record was last written, and how many targets had ended then.
    saved: (Instant, u32),
    /// Whether this task wrote it.
    written: bool,
    /// Slaves whose end is here: they keep it until it is in the record, should this master die.
    forget: Vec<Slave>,
    /// Those whose end is in the record that is being written.
    recorded: Vec<Slave>,
    /// Set when there was no room for a notice.
    missed_some: Arc<AtomicBool>,
    share: Share,
}

impl Task {
    pub(super) fn new(
        dispatches: Dispatches,
        head: Head,
        rollout: Rollout,
        origin: Origin,
        notices: mpsc::Receiver<Notice>,
        share: Share,
    ) -> Self {
        let (run, client, taking) = match origin {
            Origin::Dispatched(run, client) => (Some(*run), Some(client), None),
            Origin::Adopted(taking) => (None, None, Some(taking)),
        };
        let now = Instant::now();
        Self {
            dispatches,
            id: head.id.clone(),
            head,
            run,
            revision: taking.as_ref().map_or(0, |taking| taking.revision),
            taking,
            rollout,
            standing: Standing::new(),
            saving: None,
            heard: now,
            sure: true,
            client,
            notices,
            cancelled: CancellationToken::new(),
            began: now,
            saved: (now, 0),
            written: false,
            forget: Vec::new(),
            recorded: Vec::new(),
            missed_some: Arc::default(),
            share,
        }
    }

    /// Carries the action to its end.
    pub(super) async fn run(mut self, sender: mpsc::Sender<Notice>) {
        let adopted = self.run.is_none();
        let dispatch = Dispatch {
            pods: self.rollout.pods().collect(),
            notices: sender,
            cancelled: self.cancelled.clone(),
            missed_some: Arc::clone(&self.missed_some),
            metrics: Arc::clone(&self.dispatches.metrics),
        };
        let switchboard = self.dispatches.switchboard.clone();
        // Before it is recorded, so that whoever reads of it can cancel it.
        switchboard.open(self.id.clone(), dispatch, adopted).await;
        let end = match self.save(State::Running).await {
            // The leader tries again at its next look.
            Err(error) if adopted => {
                tracing::debug!(%error, "could not take over an action yet");
                return switchboard.close(self.id.clone()).await;
            }
            Err(NotSaved::Overtaken) => End::Overtaken,
            Ok(()) | Err(NotSaved::Gone | NotSaved::Store(_)) => {
                self.accept();
                if self.is_unwanted() {
                    self.rollout.cancel(Instant::now());
                }
                self.carry().await
            }
        };
        switchboard.close(self.id.clone()).await;
        self.finish(end).await;
    }

    /// Whether nobody should start: the dispatcher left while the record was written, the action was cancelled, or this
    /// master stops.
    fn is_unwanted(&self) -> bool {
        let left = self.client.as_ref().is_some_and(Client::is_gone) && !self.head.detach;
        let stops = self.dispatches.token.is_cancelled() && self.run.is_some();
        left || stops || self.cancelled.is_cancelled()
    }

    async fn carry(&mut self) -> End {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.dispatches.token.clone();
        let cancelled = self.cancelled.clone();
        let mut cancelling = false;
        loop {
            self.settle().await;
            if self.rollout.is_over() {
                return End::Over;
            }
            if self.saving.is_none() && self.is_to_be_saved(Instant::now()) {
                // If the store can't be reached, the next pass tries again.
                let _ = self.begin(State::Running);
            }
            // All arms are cancel safe. The write is a task of its own: it holds up nobody, whatever is awaited here.
            tokio::select! {
                notice = self.notices.recv() => match notice {
                    Some(notice) => {
                        self.take(notice);
                        for _ in 1..BATCH {
                            match self.notices.try_recv() {
                                Ok(notice) => self.take(notice),
                                Err(_) => break,
                            }
                        }
                    }
                    // The switchboard has ended, or knows another dispatch by this id.
                    None => return End::Stopping,
                },
                saved = written(self.saving.as_mut()) => {
                    if let Err(NotSaved::Overtaken) = self.wrote(saved).await {
                        return End::Overtaken;
                    }
                }
                progress = Client::progress(self.client.as_mut()) => self.on_client(progress),
                _ = ticks.tick() => {
                    let (now, view) = (Instant::now(), self.dispatches.roster.view());
                    if self.is_overtaken(&view) {
                        return End::Overtaken;
                    }
                    if self.missed_some.swap(false, Ordering::Relaxed) {
                        self.rollout.missed_some(now);
                    }
                    self.look(now, &view);
                }
                () = cancelled.cancelled(), if !cancelling => {
                    cancelling = true;
                    tracing::info!("cancelling, as somebody asked for");
                    self.rollout.cancel(Instant::now());
                }
                () = stop.cancelled() => return self.stop().await,
            }
        }
    }

    /// This master stops: what is not detached is cancelled, as far as there is time.
    async fn stop(&mut self) -> End {
        if self.head.detach {
            return End::Stopping;
        }
        self.rollout.cancel(Instant::now());
        let over = async {
            while !self.rollout.is_over() {
                self.settle().await;
                tokio::select! {
                    Some(notice) = self.notices.recv() => self.take(notice),
                    progress = Client::progress(self.client.as_mut()) => self.on_client(progress),
                    saved = written(self.saving.as_mut()) => {
                        if let Err(NotSaved::Overtaken) = self.wrote(saved).await {
                            return End::Overtaken;
                        }
                    }
                }
            }
            End::Over
        };
        match timeout(STOP / 2, over).await {
            Ok(end) => {
                self.settle().await;
                end
            }
            Err(_) => End::Stopping,
        }
    }

    fn take(&mut self, notice: Notice) {
        let now = Instant::now();
        match notice {
            Notice::Attached(slave) => self.rollout.attached(&slave, now),
            Notice::Detached(slave) => self.rollout.detached(&slave, now),
            Notice::Missed { slave, busy } => self.rollout.missed(&slave, busy, now),
            Notice::Said(slave, event) => {
                self.heard = now;
                if let Some(said) = wire::said(*event) {
                    self.rollout.said(&slave, said);
                }
            }
        }
    }

    /// Sees to everything that is to be done.
    async fn settle(&mut self) {
        self.rollout
            .advance(Instant::now(), &*self.dispatches.roster.view());
        while let Some(effect) = self.rollout.effect() {
            match effect {
                Effect::Tell(event) => self.tell(event),
                Effect::Order(Order::Forget, to) => self.forget.extend(to),
                Effect::Order(order, to) => self.order(order, to).await,
            }
        }
        let (now, seat) = (Instant::now(), self.dispatches.history.seat());
        for index in self.standing.release(seat, now) {
            self.tell_end(index);
        }
    }

    /// Looks after the targets that the task waits for.
    fn look(&mut self, now: Instant, view: &View) {
        let sure = self.standing.is_sure(self.dispatches.history.seat());
        let was_sure = std::mem::replace(&mut self.sure, sure);
        if !sure {
            self.rollout.tick_unsure(now);
            if now >= self.unsure_until() {
                self.lose_sight(now);
            }
            return;
        }
        if !was_sure {
            // This master missed what happened meanwhile, so no slave is given up for that.
            self.rollout.missed_some(now);
        }
        self.heard = now;
        self.rollout.tick(now, view);
    }

    async fn order(&self, order: Order, to: Vec<Slave>) {
        let order = wire::order(order, &self.id, self.run.as_ref());
        let switchboard = &self.dispatches.switchboard;
        switchboard.order(self.id.clone(), order, to).await;
    }
}
