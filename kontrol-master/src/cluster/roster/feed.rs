//! The feed: what changed, in batches, for whoever follows.
//!
//! Bounded twice: a follower that falls too many batches behind is told that it lagged, and only the last batches can be
//! resumed from.

use super::history::{History, Marks};
use crate::cluster::status::Run;
use kontrol_core::{
    kv::Revision,
    model::Digest,
    view::{Change, View},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// How many batches a follower may be behind.
const CAPACITY: usize = 1024;
/// How many batches can be resumed from.
const REMEMBERED: usize = 1024;

/// One thing that followers are told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The roster or the leader changed.
    Change(Change),
    /// The digest changed.
    Digest {
        /// The new digest.
        digest: Digest,
        /// How many pods there are.
        pods: usize,
    },
    /// The leader started the callback for this digest.
    CallbackStarted(Digest),
    /// The callback ended.
    CallbackFinished(Run),
    /// The store holds another history: what was told before says nothing any more, only a snapshot does.
    Restored,
}

/// Where a follower was: a revision, with its history where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The last revision of which everything was told.
    pub revision: Revision,
    /// The history that it belongs to.
    pub history: Option<History>,
}

/// Notices that belong to one revision.
#[derive(Debug)]
pub struct Notices {
    /// The revision that they follow from: a batch can span many revisions, and another master may cut them otherwise.
    pub behind: Revision,
    /// The revision.
    pub revision: Revision,
    /// What happened.
    pub notices: Vec<Notice>,
}

impl Notices {
    /// Whether they tell of the roster or the leader, which a snapshot of their revision shows as well.
    pub fn is_roster(&self) -> bool {
        matches!(self.notices.first(), Some(Notice::Change(_)))
    }
}

/// Where notices are published and followed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    sender: broadcast::Sender<Arc<Notices>>,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    /// Every batch behind this revision is in `batches`.
    complete_behind: Option<Revision>,
    /// What changed up to this revision was told.
    told: Revision,
    batches: VecDeque<Arc<Notices>>,
    /// Which history the revisions belong to.
    marks: Marks,
}

/// The follower was too slow: batches are lost to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged;

/// A follower's place in the feed.
#[derive(Debug)]
pub struct Followed {
    /// Batches behind the revision that was asked for, and those of that revision that follow from it (digest,
    /// callback), which the follower may have seen; `None` when they are no longer known.
    pub missed: Option<Vec<Arc<Notices>>>,
    receiver: broadcast::Receiver<Arc<Notices>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(CAPACITY).0,
            recent: Arc::default(),
        }
    }
}

impl Feed {
    /// Tells all followers what a revision changed, and remembers it for those who resume.
    pub fn publish(&self, notices: Notices) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.told = notices.revision;
        self.tell(recent, notices);
    }

    /// Tells all followers what belongs to no revision of its own. It takes the last one of which everything was told: the
    /// roster may be further, and who resumed from there would never hear of what lies between.
    pub fn announce(&self, notices: Vec<Notice>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (behind, revision) = (recent.told, recent.told);
        let notices = Notices {
            behind,
            revision,
            notices,
        };
        self.tell(recent, notices);
    }

    fn tell(&self, mut recent: MutexGuard<'_, Recent>, notices: Notices) {
        if notices.notices.is_empty() {
            return;
        }
        let notices = Arc::new(notices);
        recent.batches.push_back(Arc::clone(&notices));
        if recent.batches.len() > REMEMBERED
            && let Some(dropped) = recent.batches.pop_front()
        {
            recent.complete_behind = Some(dropped.revision);
        }
        // Sent under the lock, so that who resumes gets each batch either as missed or from the channel. An error only
        // says that nobody follows.
        let _ = self.sender.send(notices);
    }

    /// What came before is unknown: nobody can resume from before this revision.
    pub fn start_at(&self, revision: Revision) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.batches.clear();
        recent.complete_behind = Some(revision);
        recent.told = revision;
    }

    /// The store holds another history, and a snapshot of it was read: nobody can resume from before this revision, and
    /// who follows is told to begin anew.
    pub(super) fn restart_at(&self, revision: Revision, history: History) {
        self.start_at(revision);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.marks.forget();
        recent.marks.skip_to(revision, history);
        let _ = self.sender.send(Arc::new(Notices {
            behind: revision,
            revision,
            notices: vec![Notice::Restored],
        }));
    }

    /// Notes the history of a snapshot.
    pub(super) fn skip_to(&self, revision: Revision, history: History) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.marks.skip_to(revision, history);
    }

    /// Notes the history of what came without a gap, up to this revision.
    pub(super) fn go_on(&self, marks: Vec<(Revision, History)>, until: Revision) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.marks.go_on(marks, until);
    }

    /// The history that a revision belongs to; none when that is not known (any more).
    pub fn history(&self, revision: Revision) -> Option<History> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.marks.at(revision)
    }

    /// Follows from now on; with a place, also what came behind it.
    pub fn follow(&self, behind: Option<Place>) -> Followed {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.sender.subscribe();
        let missed = behind
            .filter(|place| {
                let from = recent.complete_behind;
                from.is_some_and(|from| from <= place.revision)
                    && recent.marks.has(place.revision, place.history)
            })
            .map(|place| {
                let behind = place.revision;
                let batches = recent.batches.iter();
                batches
                    .filter(|batch| {
                        batch.revision > behind || (batch.revision == behind && !batch.is_roster())
                    })
                    .cloned()
                    .collect()
            });
        Followed { missed, receiver }
    }
}

impl Followed {
    /// Waits for the next batch; `None` once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Arc<Notices>, Lagged>> {
        match self.receiver.recv().await {
            Ok(notices) => Some(Ok(notices)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Err(Lagged)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The notices of a step from one view to the next.
pub fn notices(before: &View, view: &View, changes: Vec<Change>) -> Notices {
    Notices {
        behind: before.revision(),
        revision: view.revision(),
        notices: changes.into_iter().map(Notice::Change).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(revision: Revision) -> Notices {
        Notices {
            behind: revision - 1,
            revision,
            notices: vec![Notice::Change(Change::Leader(None))],
        }
    }

    fn at(revision: Revision) -> Option<Place> {
        Some(Place {
            revision,
            history: None,
        })
    }

    /// A feed that knows these revisions of one history.
    fn feed(from: Revision, until: Revision) -> Feed {
        let feed = Feed::default();
        feed.start_at(from);
        feed.go_on(Vec::new(), until);
        feed
    }

    #[test]
    fn what_follows_from_a_revision_is_told_again_after_it() {
        let feed = feed(1, 2);
        feed.publish(batch(2));
        feed.publish(Notices {
            behind: 2,
            revision: 2,
            notices: vec![Notice::CallbackStarted(Digest::of_nothing())],
        });
        let missed = feed.follow(at(2)).missed.unwrap();
        assert!(matches!(
            missed[0].notices[..],
            [Notice::CallbackStarted(_)]
        ));
    }

    #[test]
    fn an_announcement_claims_no_revision_of_which_not_everything_was_told() {
        let feed = feed(1, 3);
        feed.publish(batch(2));
        // The roster is at revision 3 by now, and its followers don't know.
        feed.announce(vec![Notice::CallbackStarted(Digest::of_nothing())]);
        feed.publish(batch(3));
        let claimed = feed.follow(at(1)).missed.unwrap()[1].revision;
        assert_eq!(claimed, 2);
        let missed = feed.follow(at(claimed)).missed.unwrap();
        assert!(missed.iter().any(|batch| batch.revision == 3));
    }

    #[tokio::test]
    async fn a_follower_resumes_without_gap_or_repeat() {
        let feed = feed(1, 6);
        for revision in 2..6 {
            feed.publish(batch(revision));
        }
        let mut followed = feed.follow(at(3));
        feed.publish(batch(6));
        let missed: Vec<_> = followed.missed.take().unwrap();
        assert_eq!(
            missed
                .iter()
                .map(|batch| batch.revision)
                .collect::<Vec<_>>(),
            [4, 5]
        );
        assert_eq!(followed.next().await.unwrap().unwrap().revision, 6);
    }

    #[tokio::test]
    async fn what_is_forgotten_can_not_be_resumed_and_a_slow_follower_is_told() {
        let feed = Feed::default();
        assert!(feed.follow(at(0)).missed.is_none());
        let last = Revision::try_from(REMEMBERED.max(CAPACITY) + 10).unwrap();
        feed.start_at(0);
        feed.go_on(Vec::new(), last);
        let mut slow = feed.follow(at(0));
        for revision in 1..=last {
            feed.publish(batch(revision));
        }
        assert!(feed.follow(at(5)).missed.is_none());
        assert_eq!(feed.follow(at(last - 1)).missed.unwrap().len(), 1);
        assert_eq!(slow.next().await.unwrap().unwrap_err(), Lagged);
    }
}
