//! The task of one action.

mod ending;
mod recording;

use super::{
    Dispatches, Notices, Permits,
    client::{Client, Piece, Progress},
};
use crate::{
    action::{
        history::NotSaved,
        rollout::{Effect, Event, Incarnations, Order, Rollout, Slave},
        switchboard::{Dispatch, Notice},
        wire,
    },
    model::{
        PodKey,
        action::{ActionId, Head, State},
    },
    roster::View,
    store::Revision,
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

/// How often the targets are looked after that are waited for.
const TICK: Duration = Duration::from_millis(250);
/// How many notices are taken in before their effects are seen to.
const BATCH: usize = 64;
/// How long an action may take to end once this master stops, and its dispatcher to be told.
const STOP: Duration = Duration::from_secs(2);

/// Where an action comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A dispatcher, with what is to run.
    Dispatched(Run),
    /// A master that died; the revision of its record.
    Adopted(Revision),
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
    rollout: Rollout,
    /// The revision of the record; 0: it is not written yet.
    revision: Revision,
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
    permits: Permits,
}

impl Incarnations for View {
    fn nonce(&self, key: PodKey) -> Option<&str> {
        self.member(key).map(|member| member.pod.nonce())
    }
}

impl Task {
    pub(super) fn new(
        dispatches: Dispatches,
        head: Head,
        rollout: Rollout,
        origin: Origin,
        client: Option<Client>,
        notices: mpsc::Receiver<Notice>,
        permits: Permits,
    ) -> Self {
        let (run, revision) = match origin {
            Origin::Dispatched(run) => (Some(run), 0),
            Origin::Adopted(revision) => (None, revision),
        };
        let now = Instant::now();
        Self {
            dispatches,
            id: head.id.clone(),
            head,
            run,
            rollout,
            revision,
            client,
            notices,
            cancelled: CancellationToken::new(),
            began: now,
            saved: (now, 0),
            written: false,
            forget: Vec::new(),
            recorded: Vec::new(),
            missed_some: Arc::default(),
            permits,
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
        };
        let switchboard = self.dispatches.switchboard.clone();
        // Before it is recorded, so that whoever reads of it can cancel it.
        switchboard.open(self.id.clone(), dispatch, adopted).await;
        let end = match self.save(State::Running).await {
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
            action = %self.id, targets = accepted.targets.len(), dispatcher = self.head.dispatcher,
            detach = self.head.detach, "action accepted"
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
        let mut saving: Option<Saving> = None;
        loop {
            self.settle().await;
            if self.rollout.is_over() {
                return End::Over;
            }
            // All arms are cancel safe. A write that is given up at the end is noticed by the next one.
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
                saved = written(saving.as_mut()) => {
                    saving = None;
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
                    self.rollout.tick(now, &*view);
                    if saving.is_none() && self.is_to_be_saved(now) {
                        saving = self.saving(State::Running).ok();
                    }
                }
                () = cancelled.cancelled(), if !cancelling => {
                    cancelling = true;
                    tracing::info!(action = %self.id, "cancelling, as somebody asked for");
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
                }
            }
        };
        match timeout(STOP / 2, over).await {
            Ok(()) => {
                self.settle().await;
                End::Over
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
                let left_over = self.client.take().map(Client::left_over);
                left_over
                    .into_iter()
                    .flatten()
                    .for_each(|piece| self.taken(Some(piece)));
                if !self.head.detach {
                    tracing::info!(action = %self.id, "the dispatcher went away; cancelling");
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
                let Some(ended) = self.rollout.ended(index) else {
                    return;
                };
                self.dispatches.metrics.action_ended(ended);
                let result = wire::result(self.rollout.target(index), ended);
                (Told::Finished(result), None)
            }
        };
        match &mut self.client {
            Some(client) => client.tell(told, piece),
            None => self.taken(piece),
        }
    }
}
