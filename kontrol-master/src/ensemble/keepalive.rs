//! The intake of keepalives, the same on every master.
//!
//! A keepalive that says nothing new costs no store work: it is answered from the roster once the leader counts it. All
//! others go through the committer, and are answered once this master's own roster shows what they changed.
//!
//! The roster of this master may be behind the store, and so may the leader's. So a master that writes a record tells
//! the leader before it answers the keepalive, and a master that writes nothing first hears from the leader that no
//! later record is known. If there is a later one, the store decides. It always decides about goodbyes and refusals.

pub mod committer;
#[cfg(test)]
mod tests;
mod transaction;

pub use committer::{Committer, CommitterTask};

use crate::{
    cluster::{
        error::Error,
        relay::{Counted, Relay, Sign},
        roster::Roster,
    },
    metrics::Metrics,
};
use kontrol_core::{
    kv::Revision,
    limits::Limits,
    liveness::{Instance, Writing},
    model::{Invalid, Pod, PodKey, Report},
    plan::{Known, Plan, plan},
    view::Member,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an answer waits for this master's own roster to show the change. Missing it does no harm: the change is
/// stored.
const CATCH_UP_LIMIT: Duration = Duration::from_millis(500);
/// How long an answer waits for the leader to know of a record, if the pod had none before or has none any more: then
/// no keepalive can be compared with a wrong one.
const TOLD_LIMIT: Duration = Duration::from_millis(100);
/// How often a keepalive is decided when its pod's record turns out to be another one, before its sender is told to try
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

/// What a keepalive left in the roster, so that a later one can say that it still holds.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The very record: whatever is written since, even with the same words, is another.
    pod: Arc<Pod>,
}

/// What became of a keepalive.
enum Decided {
    Accepted(Accepted),
    /// It was compared with a record that may not be the one in the store, because this master's view was behind.
    Again,
}

/// How far a keepalive must go, once it turned out that it was compared with another record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    /// As far as its plan says.
    None,
    /// To the store.
    Settle,
    /// To a record of its own, though it says nothing new.
    Write,
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
    pub async fn accept(&self, report: &Report, key: &str) -> Result<Accepted, Error> {
        let result = self.take(report, key).await;
        self.tally(result.as_ref().map(|_| "accepted"));
        result
    }

    /// What this keepalive left, where the roster says now what it said.
    pub fn standing(&self, report: &Report) -> Option<Standing> {
        let view = self.roster.peek();
        let member = view.member(report.key());
        let member = member.filter(|member| !report.down && member.pod.says(report))?;
        let pod = member.pod.clone();
        Some(Standing { pod })
    }

    /// Takes a keepalive that says again what stands. `None`: it does not stand any more, as far as this master can tell.
    pub async fn confirm(&self, standing: &Standing, beat: u64) -> Result<Option<Accepted>, Error> {
        let result = self.refresh(&standing.pod, beat).await;
        self.tally(result.as_ref().map(|accepted| match accepted {
            Some(_) => "accepted",
            None => "again",
        }));
        result
    }

    fn tally(&self, result: Result<&'static str, &Error>) {
        self.metrics.keepalive(match result {
            Ok(result) => result,
            Err(Error::Invalid(_)) => "invalid",
            Err(Error::Superseded(_)) => "superseded",
            Err(Error::Unavailable(_) | Error::Exhausted(_)) => "unavailable",
            Err(Error::NotFound(_) | Error::Internal(_)) => "failed",
        });
    }

    fn check_started(&self) -> Result<(), Error> {
        if self.roster.started() {
            return Ok(());
        }
        Err(Error::Unavailable(
            "this master has not read the roster yet; try another master".to_owned(),
        ))
    }

    async fn refresh(&self, pod: &Arc<Pod>, beat: u64) -> Result<Option<Accepted>, Error> {
        self.check_started()?;
        let (key, at) = (pod.key(), Instant::now());
        let sign = {
            let view = self.roster.peek();
            let member = view.member(key);
            let Some(member) = member.filter(|member| Arc::ptr_eq(&member.pod, pod)) else {
                return Ok(None);
            };
            // Noted first: whoever is about to remove the pod marks it, and then looks for what was noted.
            member.heard.touch(at, beat, Some(self.me));
            if !member.is_latest(member.mod_revision) {
                return Ok(None);
            }
            sign(key, beat, at, Some(member))
        };
        Ok(match self.relay.count(sign).await? {
            Counted::Yes => Some(Accepted {
                key,
                seq: pod.seq(),
            }),
            Counted::Again(_) => None,
        })
    }

    async fn take(&self, report: &Report, key: &str) -> Result<Accepted, Error> {
        self.check(report, key)?;
        self.check_started()?;
        let now = Instant::now();
        let mut force = Force::None;
        for _ in 0..MAX_DECISIONS {
            match self.decide(report, now, force).await? {
                Decided::Accepted(accepted) => return Ok(accepted),
                Decided::Again if force == Force::None => force = Force::Settle,
                // The leader may be about to remove the pod, and must find another record.
                Decided::Again => force = Force::Write,
            }
        }
        Err(Error::Unavailable(
            "the pod's record keeps changing; try again".to_owned(),
        ))
    }

    /// Checks what a report says. What was taken once counts on, whatever this master was told to take since: lower limits
    /// must not empty a roster. A goodbye is always obeyed.
    fn check(&self, report: &Report, key: &str) -> Result<(), Invalid> {
        let checked = report.check(key, self.committer.limits());
        if checked.is_err() && (report.down || self.is_said(report)) {
            return report.check(key, &Limits::default());
        }
        checked
    }

    /// Whether the record of the pod says all of this already.
    pub fn is_said(&self, report: &Report) -> bool {
        let view = self.roster.peek();
        let member = view.member(report.key());
        member.is_some_and(|member| member.pod.says(report))
    }

    /// Decides about a keepalive as this master's view is now; where it is to be settled, as the store is.
    async fn decide(&self, report: &Report, now: Instant, force: Force) -> Result<Decided, Error> {
        let key = report.key();
        let (plan, seq, sign, latest) = self.plan(report, now);
        let accepted = Decided::Accepted(Accepted { key, seq });
        match plan {
            // A goodbye, of a pod that is there or not: only the store can tell.
            Plan::Remove | Plan::Bury | Plan::Nothing => {
                let (accepted, _) = self.write(report.clone(), now, force).await?;
                Ok(Decided::Accepted(accepted))
            }
            // Another pod or incarnation has the place. If the store does not agree, the keepalive counts.
            Plan::Superseded | Plan::Kept => {
                let (accepted, unchanged) = self.write(report.clone(), now, force).await?;
                self.counted(accepted, unchanged, sign).await
            }
            Plan::Stale if sign.revision == 0 => Ok(accepted),
            // A keepalive that was overtaken has nothing new to say, but proves that the pod lives.
            Plan::Refresh | Plan::Stale if latest && force == Force::None => {
                Ok(match self.relay.count(sign).await? {
                    Counted::Yes => accepted,
                    Counted::Again(_) => Decided::Again,
                })
            }
            Plan::Refresh | Plan::Stale | Plan::Join | Plan::Update | Plan::Replace => {
                self.relay.check()?;
                let written = self.write(report.clone(), now, force).await;
                if plan == Plan::Update && matches!(written, Err(Error::Unavailable(_))) {
                    // The news could not be stored and must be sent again, but the pod is alive, and that counts.
                    if let Some(member) = self.roster.peek().member(key) {
                        member.heard.touch(now, 0, Some(self.me));
                    }
                    self.relay.count(Sign { beat: 0, ..sign }).await?;
                }
                let (accepted, unchanged) = written?;
                self.counted(accepted, unchanged, sign).await
            }
        }
    }

    /// Counts a keepalive for which nothing was written, because the store had this record already: the leader sees no
    /// new record, so it must be told.
    async fn counted(
        &self,
        accepted: Accepted,
        unchanged: Option<Revision>,
        sign: Sign,
    ) -> Result<Decided, Error> {
        if let Some(revision) = unchanged.filter(|revision| *revision > 0) {
            let sign = Sign {
                revision,
                attachment: 0,
                ..sign
            };
            if let Counted::Again(_) = self.relay.count(sign).await? {
                return Ok(Decided::Again);
            }
        }
        Ok(Decided::Accepted(accepted))
    }

    /// Has a report decided against the store and written, tells the leader of that, and waits until the roster shows it. Also
    /// tells the revision of the record where nothing had to be written.
    async fn write(
        &self,
        report: Report,
        now: Instant,
        force: Force,
    ) -> Result<(Accepted, Option<Revision>), Error> {
        let (key, beat, down) = (report.key(), report.beat, report.down);
        let nonce = report.nonce.clone();
        // Until the report is decided, no other keepalive of the pod is compared with the present record.
        let member = self.roster.peek().member(key).cloned();
        let changes = member.is_some() && !down;
        let _writing = member.map(|member| Writing::begin(&member.heard));
        let committed = self.committer.commit(report, force == Force::Write).await?;
        let revision = committed.revision;
        let shown = self.roster.caught_up(revision, CATCH_UP_LIMIT);
        let (shown, told) = if committed.unchanged {
            (shown.await, true)
        } else {
            // Until the leader knows of this record, it takes an older keepalive of the pod for the latest word.
            let limit = if changes { Duration::MAX } else { TOLD_LIMIT };
            tokio::join!(shown, self.relay.written(key, revision, limit))
        };
        if shown
            && !down
            && let Some(member) = self.roster.peek().member(key)
            // A newer incarnation may have come in between, and counts its own beats.
            && member.pod.nonce() == nonce
        {
            member.heard.touch(now, beat, Some(self.me));
        }
        if changes && !told {
            return Err(Error::Unavailable(
                "the leader did not hear of this write in time; say it again".to_owned(),
            ));
        }
        let accepted = Accepted {
            key,
            seq: committed.seq,
        };
        Ok((accepted, committed.unchanged.then_some(revision)))
    }

    /// Decides against the roster as it is; a refresh is noted at once. Also tells the pod's seq, what the leader is to
    /// count, and whether the roster shows the latest record that this master knows of.
    fn plan(&self, report: &Report, at: Instant) -> (Plan, u64, Sign, bool) {
        let (key, beat) = (report.key(), report.beat);
        let view = self.roster.peek();
        let member = view.member(key);
        let plan = plan(
            report,
            Known {
                pod: member.map(|member| member.pod.as_ref()),
                beat: member.map_or(0, |member| member.heard.beat()),
                departed: view
                    .tombstone(key)
                    .and_then(|tombstone| tombstone.record.as_deref())
                    .map(transaction::departed),
                ..Known::default()
            },
        );
        if let (Plan::Refresh | Plan::Stale, Some(member)) = (plan, member) {
            member.heard.touch(at, beat, Some(self.me));
        }
        let sign = sign(key, beat, at, member);
        let latest = member.is_none_or(|member| member.is_latest(sign.revision));
        (
            plan,
            member.map_or(0, |member| member.pod.seq()),
            sign,
            latest,
        )
    }
}

/// What the leader is to count of a keepalive.
fn sign(key: PodKey, beat: u64, at: Instant, member: Option<&Member>) -> Sign {
    Sign {
        key,
        revision: member.map_or(0, |member| member.mod_revision),
        beat,
        // Told with each keepalive: the leader's record may have been newer when the channel was opened.
        attachment: member.map_or(0, |member| member.heard.attachment()),
        at,
    }
}
