//! The record of an action: when it is written, and what must wait for that.
//!
//! One write is under way at a time, in a task of its own: it goes on whatever this one waits for, and a later write never
//! overtakes it.

use super::Task;
use crate::{action::history::NotSaved, cluster::store::StoreError};
use kontrol_core::{
    kv::Revision,
    model::action::{Record, State},
    rollout::Order,
    view::View,
};
use kontrol_runtime::clock::now_ms;
use std::{future::pending, time::Duration};
use tokio::{task::JoinHandle, time::Instant};

/// The pause between two writes of an action that goes on and has news: the short one for few targets, or while an end
/// is held back; the long one for many targets. With few targets an end that waits for its record is written at once,
/// with all that came during the write before.
const SAVE_SOON: Duration = Duration::from_secs(1);
const SAVE_EVERY: Duration = Duration::from_secs(10);
const FEW: u32 = 100;
/// A write of the record under way.
pub(super) type Saving = JoinHandle<Result<Revision, NotSaved>>;

impl Task {
    fn record(&mut self, state: State) -> Record {
        self.head.state = state;
        self.head.summary = self.rollout.counts();
        if state == State::Finished {
            self.head.finished_ms.get_or_insert_with(now_ms);
        }
        Record {
            head: self.head.clone(),
            results: self.rollout.records(),
        }
    }

    /// Writes the record, behind the write that is under way.
    pub(super) async fn save(&mut self, state: State) -> Result<(), NotSaved> {
        self.finish_write().await?;
        self.begin(state)?;
        self.finish_write().await
    }

    /// Waits for the write that is under way. Cancel safe.
    pub(super) async fn finish_write(&mut self) -> Result<(), NotSaved> {
        if self.saving.is_none() {
            return Ok(());
        }
        let saved = written(self.saving.as_mut()).await;
        self.wrote(saved).await
    }

    /// Begins to write the record, if the store can be reached and no other write is under way.
    pub(super) fn begin(&mut self, state: State) -> Result<(), NotSaved> {
        self.saved = (Instant::now(), self.rollout.counts().ended());
        if self.saving.is_some() || !self.dispatches.roster.connected() {
            let cause = "the store's watch is down".to_owned();
            return Err(StoreError::Unavailable(cause).into());
        }
        let history = self.dispatches.history.clone();
        let seat = history.seat();
        self.head.lease = seat.map(|seat| seat.to_string()).unwrap_or_default();
        self.standing.write(seat);
        self.recorded.append(&mut self.forget);
        let (record, known) = (self.record(state), self.revision);
        let taking = self.taking.take();
        self.saving = Some(self.dispatches.tasks.spawn(async move {
            match taking {
                Some(taking) => history.take(record, taking).await,
                None => history.save(record, known).await,
            }
        }));
        Ok(())
    }

    /// The write ended: the record was written, or why it wasn't.
    pub(super) async fn wrote(
        &mut self,
        saved: Result<Revision, NotSaved>,
    ) -> Result<(), NotSaved> {
        self.saving = None;
        match saved {
            Ok(revision) => {
                self.revision = revision;
                self.written = true;
                for index in self.standing.written() {
                    self.tell_end(index);
                }
                let slaves = std::mem::take(&mut self.recorded);
                if !slaves.is_empty() {
                    self.order(Order::Forget, slaves).await;
                }
                Ok(())
            }
            Err(NotSaved::Gone) if !self.written => Err(NotSaved::Overtaken),
            Err(error) => {
                let gone = matches!(error, NotSaved::Gone);
                let never = !self.written && error.is_certain();
                self.standing.failed(gone || never);
                tracing::warn!(%error, "could not write the record of an action");
                if gone {
                    self.revision = 0;
                }
                Err(error)
            }
        }
    }

    /// Whether another master has written the record since.
    pub(super) fn is_overtaken(&self, view: &View) -> bool {
        view.action(&self.id).is_some_and(|known| {
            known.mod_revision > self.revision && known.head.instance != self.head.instance
        })
    }

    /// Whether its record is small enough to be written with each end.
    pub(super) fn has_few_targets(&self) -> bool {
        self.rollout.counts().targets <= FEW
    }

    pub(super) fn is_to_be_saved(&self, now: Instant) -> bool {
        let (at, ended) = self.saved;
        let counts = self.rollout.counts();
        let urgent = self.revision == 0
            || self.standing.holds_since().is_some()
            || self
                .standing
                .may_become_sure(self.dispatches.history.seat());
        let pause = if self.has_few_targets() && self.standing.waits() {
            Duration::ZERO
        } else if urgent || self.has_few_targets() {
            SAVE_SOON
        } else {
            SAVE_EVERY
        };
        // A record that is not written goes away with its lease.
        let refresh = self.dispatches.history.refresh();
        let news = urgent || ended != counts.ended();
        now - at >= refresh || (news && now - at >= pause)
    }
}

/// Waits for the end of a write, if there is one. Cancel safe.
pub(super) async fn written(saving: Option<&mut Saving>) -> Result<Revision, NotSaved> {
    match saving {
        Some(saving) => saving.await.unwrap_or_else(|error| {
            let cause = format!("the write broke off: {error}");
            Err(StoreError::Indeterminate(cause).into())
        }),
        None => pending().await,
    }
}
