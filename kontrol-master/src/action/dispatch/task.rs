//! The task of one action.

mod ending;
mod recording;

use super::{
    Dispatches, Notices, Share,
    client::{Client, Piece, Progress},
    standing::Standing,
};
use crate::{
    action::{
        history::{NotSaved, Taking},
        switchboard::{Dispatch, Notice},
        wire,
    },
    cluster::error::Error,
};
use kontrol_core::{
    kv::Revision,
    model::action::{ActionId, Head, Outcome, State},
    rollout::{Effect, Event, Order, Rollout, Slave},
    view::View,
};
use kontrol_proto::v1::{
    attach_response::Run,
    dispatch_response::{Accepted, Event as Told, Output, Started, Target},
};
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

/// How long the dispatcher waits for a master that is not sure that it carries the action, before it is told to look
/// elsewhere: from the first end that is held back, or from when the command must have ended on a slave that says
/// nothing.
const UNSURE_LIMIT: Duration = Duration::from_secs(15);
/// How long the end of one of few targets waits to be recorded before it is told.
const RECORD_LIMIT: Duration = Duration::from_secs(1);

/// Where an action comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A dispatcher, with what is to run.
    Dispatched(Run),
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
        client: Option<Client>,
        notices: mpsc::Receiver<Notice>,
        share: Share,
    ) -> Self {
        let (run, taking) = match origin {
            Origin::Dispatched(run) => (Some(run), None),
            Origin::Adopted(taking) => (None, Some(taking)),
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
    pub(super) async fn run(mut self, sender: Notices) {
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

    fn accept(&mut self) {
        let targets = self.rollout.targets();
        let accepted = Accepted {
            action_id: self.id.to_string(),
            targets: targets
                .map(|target| Target {
                    key: target.key.clone(),
                    id: target.id.clone(),
                })
                .collect(),
        };
        tracing::info!(
            targets = accepted.targets.len(),
            dispatcher = self.head.dispatcher,
            detach = self.head.detach,
            "action accepted"
        );
        if let Some(client) = &mut self.client {
            client.tell(Told::Accepted(accepted), None);
        }
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

    fn on_client(&mut self, progress: Progress) {
        match progress {
            Progress::Took(piece) => self.taken(piece),
            Progress::Gone => {
                if let Some(mut client) = self.client.take() {
                    let unread = client.left_over();
                    unread.into_iter().for_each(|piece| self.taken(Some(piece)));
                }
                if !self.head.detach {
                    tracing::info!("the dispatcher went away; cancelling");
                    self.rollout.cancel(Instant::now());
                }
            }
        }
    }

    fn taken(&mut self, piece: Option<Piece>) {
        if let Some((target, stream, bytes)) = piece {
            self.rollout.taken(target, stream, bytes);
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

    /// Until when the dispatcher waits while this master is not sure that it carries the action: the slaves may talk to
    /// another master that took it over.
    fn unsure_until(&self) -> Instant {
        let silence = self.heard + Duration::from_millis(self.head.timeout_ms) + UNSURE_LIMIT;
        let held = self.standing.holds_since();
        held.map_or(silence, |since| silence.min(since + UNSURE_LIMIT))
    }

    /// Tells the dispatcher to look elsewhere. What runs is ended, unless it is detached: a master that took the action
    /// over does the same.
    fn lose_sight(&mut self, now: Instant) {
        let Some(mut client) = self.client.take() else {
            return;
        };
        let unread = client.left_over();
        unread.into_iter().for_each(|piece| self.taken(Some(piece)));
        let why = if self.standing.is_sure(self.dispatches.history.seat()) {
            "this master can't write down how the action ended"
        } else {
            "this master is out of touch with the store, and can't tell whether another one took the action over"
        };
        tracing::warn!("{why}: its dispatcher is told to look into the history");
        client.end(
            Error::Unavailable(format!(
                "{why}: what became of {0} is in the history; to look: kontrol-master actions show {0}",
                self.id
            ))
            .into(),
        );
        if !self.head.detach {
            self.rollout.cancel(now);
        }
    }

    fn tell_end(&mut self, index: usize) {
        let Some(ended) = self.rollout.ended(index) else {
            return;
        };
        self.dispatches.metrics.action_ended(ended);
        let result = wire::result(self.rollout.target(index), ended);
        if let Some(client) = &mut self.client {
            client.tell(Told::Finished(result), None);
        }
    }

    async fn order(&self, order: Order, to: Vec<Slave>) {
        let order = wire::order(order, &self.id, self.run.as_ref());
        let switchboard = &self.dispatches.switchboard;
        switchboard.order(self.id.clone(), order, to).await;
    }

    fn tell(&mut self, event: Event) {
        let (told, piece) = match event {
            Event::Started(index) => {
                let target = self.rollout.target(index);
                let started = Started {
                    key: target.key.clone(),
                    id: target.id.clone(),
                };
                (Told::Started(started), None)
            }
            Event::Output {
                target,
                stream,
                data,
                truncated,
            } => {
                let piece = (target, stream, data.len());
                let output = Output {
                    key: self.rollout.target(target).key.clone(),
                    stream: wire::stream(stream).into(),
                    data,
                    truncated,
                };
                (Told::Output(output), Some(piece))
            }
            Event::Finished(index) => {
                // The slave keeps such an end, so a master that takes the action over hears the same, if it knows which
                // slave to ask.
                let lasts = self.rollout.ended(index).is_some_and(|ended| {
                    matches!(ended.outcome, Outcome::Exited | Outcome::TimedOut)
                }) && self.rollout.is_as_accepted(index);
                let now = Instant::now();
                let wait = if self.has_few_targets() {
                    RECORD_LIMIT
                } else {
                    Duration::ZERO
                };
                return self.standing.hold(index, lasts.then_some(now + wait), now);
            }
        };
        match &mut self.client {
            Some(client) => client.tell(told, piece),
            None => self.taken(piece),
        }
    }
}
