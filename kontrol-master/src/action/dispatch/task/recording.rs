//! The record of an action: when it is written, and what must wait for that.

use super::Task;
use crate::{
    action::{history::NotSaved, rollout::Order},
    model::action::{Record, State},
    roster::View,
    status::now_ms,
    store::{Revision, StoreError},
};
use std::{future::pending, pin::Pin, time::Duration};
use tokio::time::Instant;

/// How often an action that goes on is written down, if it went on: one of few targets, and one of many.
const SAVE_SOON: Duration = Duration::from_secs(1);
const SAVE_EVERY: Duration = Duration::from_secs(10);
const FEW: u32 = 100;
/// A write of the record under way.
pub(super) type Saving = Pin<Box<dyn Future<Output = Result<Revision, NotSaved>> + Send>>;

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

    /// Writes the record.
    pub(super) async fn save(&mut self, state: State) -> Result<(), NotSaved> {
        let saved = match self.saving(state) {
            Ok(saving) => saving.await,
            Err(error) => Err(error),
        };
        self.wrote(saved).await
    }

    /// Begins to write the record, if the store can be reached.
    pub(super) fn saving(&mut self, state: State) -> Result<Saving, NotSaved> {
        self.saved = (Instant::now(), self.rollout.counts().ended());
        if !self.dispatches.roster.connected() {
            let cause = "the store's watch is down".to_owned();
            return Err(StoreError::Unavailable(cause).into());
        }
        self.recorded.append(&mut self.forget);
        let (record, known) = (self.record(state), self.revision);
        let history = self.dispatches.history.clone();
        Ok(Box::pin(async move { history.save(record, known).await }))
    }

    /// The record was written, or why it wasn't.
    pub(super) async fn wrote(
        &mut self,
        saved: Result<Revision, NotSaved>,
    ) -> Result<(), NotSaved> {
        match saved {
            Ok(revision) => {
                self.revision = revision;
                self.written = true;
                let slaves = std::mem::take(&mut self.recorded);
                if !slaves.is_empty() {
                    self.order(Order::Forget, slaves).await;
                }
                Ok(())
            }
            Err(NotSaved::Gone) if !self.written => Err(NotSaved::Overtaken),
            Err(error) => {
                tracing::warn!(action = %self.id, %error, "could not write the record of an action");
                if matches!(error, NotSaved::Gone) {
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

    pub(super) fn is_to_be_saved(&self, now: Instant) -> bool {
        let (at, ended) = self.saved;
        let counts = self.rollout.counts();
        let pause = if counts.targets <= FEW {
            SAVE_SOON
        } else {
            SAVE_EVERY
        };
        // A record that is not written goes away with its lease.
        let refresh = self.dispatches.history.refresh();
        let news = self.revision == 0 || ended != counts.ended();
        now - at >= refresh || (news && now - at >= pause)
    }
}

/// Waits for the end of a write, if there is one.
pub(super) async fn written(saving: Option<&mut Saving>) -> Result<Revision, NotSaved> {
    match saving {
        Some(saving) => saving.await,
        None => pending().await,
    }
}
