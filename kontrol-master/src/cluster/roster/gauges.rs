//! The metrics that follow the roster.

use super::{Notice, Roster};
use crate::metrics::Metrics;
use kontrol_core::view::Change;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Keeps the gauges in step with the roster, until the token is cancelled.
pub async fn observe(metrics: Arc<Metrics>, roster: Roster, token: CancellationToken) {
    let mut changes = roster.changes();
    let mut feed = roster.feed().follow(None);
    loop {
        let view = roster.view();
        metrics
            .pods
            .set(i64::try_from(view.len()).unwrap_or(i64::MAX));
        metrics
            .epoch
            .set(view.leader().map_or(0, |leader| leader.epoch));
        metrics.store_up.set(i64::from(roster.connected()));
        let (operate, _) = view.operate();
        let frozen = operate.safeguard.as_ref();
        metrics.held.set(i64::from(operate.hold.is_some()));
        metrics.frozen.set(i64::from(frozen.is_some()));
        let silent = frozen.map_or(0, |freeze| freeze.silent);
        metrics
            .silent
            .set(i64::try_from(silent).unwrap_or(i64::MAX));
        // All arms are cancel safe.
        tokio::select! {
            () = token.cancelled() => return,
            more = changes.next() => if !more { return },
            notices = feed.next() => match notices {
                Some(Ok(notices)) => notices.notices.iter().for_each(|notice| count(&metrics, notice)),
                // Some were missed: counters may do that, and go on.
                Some(Err(_)) => {}
                None => return,
            },
        }
    }
}

fn count(metrics: &Metrics, notice: &Notice) {
    let result = match notice {
        Notice::Change(Change::Joined(_)) => "joined",
        Notice::Change(Change::Changed { .. }) => "changed",
        Notice::Change(Change::Left(_)) => "left",
        Notice::Digest { .. } => {
            metrics.digest_changes.inc();
            return;
        }
        Notice::Change(
            Change::Leader(_)
            | Change::ActionStarted(_)
            | Change::ActionFinished(_)
            | Change::Hold(_)
            | Change::Safeguard(_),
        )
        | Notice::CallbackStarted(_)
        | Notice::CallbackFinished(_)
        | Notice::Restored => return,
    };
    metrics.roster_change(result);
}
