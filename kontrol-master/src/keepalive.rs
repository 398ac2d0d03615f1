//! The intake of keepalives, the same on every master.
//!
//! A keepalive that says nothing new costs no store work: it is answered from the roster once the leader counts it. All
//! others go through the committer, and are answered once this master's own roster shows what they changed.

pub mod committer;
mod draft;
pub mod plan;

pub use committer::{Committer, CommitterTask};

use crate::{
    error::Error,
    liveness::Instance,
    metrics::Metrics,
    model::{PodKey, Report},
    relay::{Counted, Relay, Sign},
    roster::Roster,
    store::Revision,
};
use plan::{Known, Plan, plan};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an answer waits for this master's own roster to show the change. Missing it does no harm: the change is
/// stored.
const CATCH_UP_LIMIT: Duration = Duration::from_millis(500);
/// How often a keepalive is decided about whose record turned out to be another one, before its sender is told to try
/// again.
const MAX_DECISIONS: usize = 4;

/// What an accepted keepalive is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The pod's key.
    pub key: PodKey,
    /// Its seq; 0 after a goodbye of a pod that wasn't there.
    pub seq: u64,
}

/// What became of a keepalive.
enum Decided {
    Accepted(Accepted),
    /// It is to be decided about again, with the roster at this revision or behind it.
    Again(Revision),
}

/// The intake. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keepalives {
    me: Instance,
    roster: Roster,
    committer: Committer,
    relay: Relay,
    metrics: Arc<Metrics>,
}

impl Keepalives {
    /// The intake of this master.
    pub fn new(
        me: Instance,
        roster: Roster,
        committer: Committer,
        relay: Relay,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            me,
            roster,
            committer,
            relay,
            metrics,
        }
    }

    /// Takes one keepalive. `key` is what the reporter believes its key to be, or empty.
    pub async fn accept(&self, report: Report, key: &str) -> Result<Accepted, Error> {
        let result = self.take(report, key).await;
        self.metrics.keepalive(result.as_ref().err());
        result
    }

    async fn take(&self, report: Report, key: &str) -> Result<Accepted, Error> {
        report.check(key)?;
        if !self.roster.started() {
            return Err(Error::Unavailable(
                "this master has not read the roster yet; try another master".to_owned(),
            ));
        }
        let now = Instant::now();
        for _ in 0..MAX_DECISIONS {
            match self.decide(&report, now).await? {
                Decided::Accepted(accepted) => return Ok(accepted),
                // Held against a record that is no longer the one in the store: this master's view was behind.
                Decided::Again(revision) => {
                    self.roster.caught_up(revision, CATCH_UP_LIMIT).await;
                }
            }
        }
        Err(Error::Unavailable(
            "the pod's record keeps changing; try again".to_owned(),
        ))
    }

    /// Decides about a keepalive as this master's view is now.
    async fn decide(&self, report: &Report, now: Instant) -> Result<Decided, Error> {
        let key = report.key();
        let (plan, seq, sign) = self.plan(report, now);
        let accepted = match plan {
            // A keepalive that was overtaken proves as well that the pod lives; it just has nothing to say any more.
            Plan::Refresh | Plan::Stale if sign.revision > 0 => {
                if let Counted::Again(revision) = self.relay.count(sign).await? {
                    return Ok(Decided::Again(revision));
                }
                Ok(Accepted { key, seq })
            }
            Plan::Refresh | Plan::Stale | Plan::Nothing => Ok(Accepted { key, seq }),
            Plan::Superseded => {
                let view = self.roster.view();
                let pod = view.member(key).map(|member| member.pod.as_ref());
                Err(draft::superseded(report, pod))
            }
            Plan::Remove => {
                let written = self.write(report.clone(), now).await;
                written.map(|(accepted, _)| accepted)
            }
            Plan::Join | Plan::Update | Plan::Replace => {
                self.relay.check()?;
                let written = self.write(report.clone(), now).await;
                if plan == Plan::Update && matches!(written, Err(Error::Unavailable(_))) {
                    // What it has to say must be said again; that the pod lives is heard all the same.
                    if let Some(member) = self.roster.peek().member(key) {
                        member.heard.touch(now, 0, Some(self.me));
                    }
                    self.relay.count(Sign { beat: 0, ..sign }).await?;
                }
                let (accepted, unchanged) = written?;
                if let Some(revision) = unchanged {
                    // The store had it already, so that no record tells the leader of this one.
                    let sign = Sign {
                        revision,
                        attachment: 0,
                        ..sign
                    };
                    if let Counted::Again(revision) = self.relay.count(sign).await? {
                        return Ok(Decided::Again(revision));
                    }
                }
                Ok(accepted)
            }
        };
        accepted.map(Decided::Accepted)
    }

    /// Has a report written, and waits until the roster shows it. Also tells the revision when nothing had to be written.
    async fn write(
        &self,
        report: Report,
        now: Instant,
    ) -> Result<(Accepted, Option<Revision>), Error> {
        let (key, beat, down) = (report.key(), report.beat, report.down);
        let nonce = report.nonce.clone();
        let committed = self.committer.commit(report).await?;
        let shown = self.roster.caught_up(committed.revision, CATCH_UP_LIMIT);
        if shown.await
            && !down
            && let Some(member) = self.roster.peek().member(key)
            // A newer incarnation may have come in between, and counts its own beats.
            && member.pod.nonce() == nonce
        {
            member.heard.touch(now, beat, Some(self.me));
        }
        let accepted = Accepted {
            key,
            seq: committed.seq,
        };
        Ok((accepted, committed.unchanged.then_some(committed.revision)))
    }

    /// Decides against the roster as it is; a refresh is noted at once. Also tells the pod's seq, and what the leader is
    /// to count.
    fn plan(&self, report: &Report, at: Instant) -> (Plan, u64, Sign) {
        let (key, beat) = (report.key(), report.beat);
        let view = self.roster.peek();
        let member = view.member(key);
        let plan = plan(
            report,
            Known {
                pod: member.map(|member| member.pod.as_ref()),
                beat: member.map_or(0, |member| member.heard.beat()),
                departed: draft::departed(&view, key),
            },
        );
        if let (Plan::Refresh | Plan::Stale, Some(member)) = (plan, member) {
            member.heard.touch(at, beat, Some(self.me));
        }
        let sign = Sign {
            key,
            revision: member.map_or(0, |member| member.mod_revision),
            beat,
            // Told with each keepalive: the leader's record may have been newer when the channel was opened.
            attachment: member.map_or(0, |member| member.heard.attachment()),
            at,
        };
        (plan, member.map_or(0, |member| member.pod.seq()), sign)
    }
}
