//! What operators asked for, as the leader carries it out; and what it writes back: a hold that is over, a run that has
//! started, and the safeguard.

use super::{Deposed, Term};
use crate::{cluster::error::Error, ensemble::operate::update};
use kontrol_core::{
    kv::Revision,
    schedule::Demand,
    view::{
        OperateRecord,
        operate::{Freeze, Hold},
    },
};
use kontrol_runtime::clock::now_ms;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// When a write is tried again that the store did not take.
const RETRY: Duration = Duration::from_millis(500);

/// What the leader knows of that.
#[derive(Default)]
pub(super) struct Orders {
    /// The hold that stands, and when it ends by the clock of this process.
    hold: Option<(Hold, Instant)>,
    /// The run that was asked for last.
    demanded: Option<String>,
    /// The revision that this leader wrote last: a view from before it is out of date.
    wrote: Revision,
    retry_at: Option<Instant>,
}

impl Term {
    /// Takes in what operators asked for.
    pub(super) fn heed(&mut self, now: Instant) {
        if self.seen.revision() < self.orders.wrote {
            return;
        }
        let (record, _) = self.seen.operate();
        let known = self.orders.hold.as_ref().map(|(hold, _)| hold);
        if known != record.hold.as_ref() {
            self.orders.hold = record.hold.clone().map(|hold| {
                let left = Duration::from_millis(hold.left_ms(now_ms()));
                (hold, now + left)
            });
        }
        let until = self.orders.hold.as_ref().map(|(_, until)| *until);
        self.schedule.hold(until.filter(|until| *until > now));
        if let Some(run) = &record.run
            && self.orders.demanded.as_ref() != Some(&run.id)
        {
            self.orders.demanded = Some(run.id.clone());
            self.schedule.demand(Demand { again: run.again });
        }
        // The release of a freeze before, whose end is not written yet, does not end the one of now.
        let since_ms = self.frozen_ms.0;
        let releases = |freeze: &Freeze| freeze.released.is_some() && freeze.since_ms == since_ms;
        if record.safeguard.as_ref().is_some_and(releases) {
            self.safeguard.release();
        }
    }

    /// Writes back what was done.
    pub(super) async fn settle_orders(&mut self, now: Instant) -> Result<(), Deposed> {
        let view = Arc::clone(&self.seen);
        if view.revision() < self.orders.wrote || self.orders.retry_at.is_some_and(|at| at > now) {
            return Ok(());
        }
        let (record, _) = view.operate();
        let over = self.orders.hold.as_ref();
        let over = over.filter(|(_, until)| *until <= now);
        let over = over.map(|(hold, _)| hold.clone());
        let done = self.orders.demanded.clone();
        let done = done.filter(|_| !self.schedule.is_demanded());
        let frozen = self.freeze();
        let change = |record: &mut OperateRecord| {
            if over.is_some() && record.hold == over {
                record.hold = None;
            }
            if record.run.as_ref().map(|run| &run.id) == done.as_ref() {
                record.run = None;
            }
            let before = record.safeguard.take();
            record.safeguard = frozen.clone().map(|freeze| {
                let before = before.filter(|before| before.since_ms == freeze.since_ms);
                Freeze {
                    released: before.and_then(|before| before.released),
                    ..freeze
                }
            });
        };
        let mut wanted = OperateRecord::clone(record);
        change(&mut wanted);
        if wanted == **record {
            return Ok(());
        }
        let store = self.context.store.clone();
        let fence = self.fence.clone();
        let write = async move {
            update(&store, &view, Some(&fence), |record| {
                change(record);
                Ok(())
            })
            .await
        };
        match self.attending(write).await {
            Ok(((), revision)) => {
                self.orders.wrote = revision;
                self.orders.retry_at = None;
                if over.is_some() {
                    tracing::info!("the hold of the callback is over");
                }
                Ok(())
            }
            Err(Error::Superseded(_)) => Err(Deposed),
            Err(error) => {
                tracing::debug!(%error, "could not write back what operators asked for yet");
                self.orders.retry_at = Some(now + RETRY);
                Ok(())
            }
        }
    }
}
