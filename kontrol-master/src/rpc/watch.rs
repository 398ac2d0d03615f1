//! The stream of Watch: a snapshot, or what was missed, and then the feed.

use super::convert;
use crate::{
    action::wire,
    error::Error,
    roster::{Candidate, Change, Followed, Notice, Notices, Roster, View},
};
use futures::{Stream, stream};
use kontrol_proto::v1::{
    WatchResponse,
    watch_response::{
        ActionFinished, ActionStarted, CallbackFinished, CallbackStarted, DigestChanged, Event,
        LeaderChanged, PodChanged, PodJoined, PodLeft, Snapshot,
    },
};
use std::{collections::VecDeque, sync::Arc};
use tonic::Status;

/// Follows a roster from behind a revision, or from a snapshot where that is 0 or forgotten.
pub(super) fn stream(
    roster: &Roster,
    behind: i64,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + use<> {
    // Followed first and looked at second: nothing between the two is lost, and what the snapshot shows already is
    // passed over by its revision.
    let known = roster.peek().revision();
    let mut followed = roster
        .feed()
        .follow((1..=known).contains(&behind).then_some(behind));
    let mut waiting = VecDeque::new();
    let mut shown = 0;
    let missed = followed.missed.take();
    if missed.is_none() {
        let view = roster.view();
        shown = view.revision();
        waiting.push_back(snapshot(&view));
    }
    let watcher = Watcher {
        roster: roster.clone(),
        missed: missed.unwrap_or_default().into(),
        followed,
        waiting,
        shown,
        over: false,
    };
    stream::unfold(watcher, async |mut watcher| {
        let message = watcher.next().await?;
        Some((message, watcher))
    })
}

struct Watcher {
    roster: Roster,
    /// Batches to be told before those that follow.
    missed: VecDeque<Arc<Notices>>,
    followed: Followed,
    waiting: VecDeque<WatchResponse>,
    /// The snapshot's revision: roster changes up to it are in the snapshot.
    shown: i64,
    over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Some(Ok(message));
            }
            if self.over {
                return None;
            }
            if let Some(notices) = self.missed.pop_front() {
                self.waiting = messages(&self.roster.view(), &notices);
                continue;
            }
            match self.followed.next().await? {
                Ok(notices) => {
                    if notices.revision > self.shown || !notices.is_roster() {
                        self.waiting = messages(&self.roster.view(), &notices);
                    }
                }
                Err(_) => {
                    self.over = true;
                    let error = Error::Exhausted(
                        "this watch reads too slowly and was cut off; watch again from the last revision you saw".to_owned(),
                    );
                    return Some(Err(error.into()));
                }
            }
        }
    }
}

fn snapshot(view: &View) -> WatchResponse {
    let members = view.pods().filter_map(|pod| view.member(pod.key()));
    let leader = view.leader();
    WatchResponse {
        revision: view.revision(),
        event: Some(Event::Snapshot(Snapshot {
            pods: members
                .map(|member| convert::member(view, member))
                .collect(),
            leader: leader.map(|leader| convert::master(&leader.master)),
            epoch: leader.map_or(0, |leader| leader.epoch),
            digest: view.digest().to_string(),
        })),
    }
}

/// The messages of a batch. Each carries the revision to go on from: only the last one of a batch carries its revision,
/// so that who is cut off before it is told all of it again, by whichever master.
fn messages(view: &View, notices: &Notices) -> VecDeque<WatchResponse> {
    let last = notices.notices.len().saturating_sub(1);
    let message = |(index, notice): (usize, &Notice)| WatchResponse {
        revision: if index < last {
            notices.behind
        } else {
            notices.revision
        },
        event: Some(event(view, notice)),
    };
    notices.notices.iter().enumerate().map(message).collect()
}

fn event(view: &View, notice: &Notice) -> Event {
    match notice {
        Notice::Change(Change::Joined(member)) => Event::PodJoined(PodJoined {
            pod: Some(convert::member(view, member)),
        }),
        Notice::Change(Change::Changed { before, after }) => Event::PodChanged(PodChanged {
            pod: Some(convert::member(view, after)),
            restarted: before.nonce() != after.pod.nonce(),
        }),
        Notice::Change(Change::Left(removal)) => Event::PodLeft(PodLeft {
            pod: Some(convert::pod(&removal.pod)),
            reason: convert::reason(removal.reason).into(),
        }),
        Notice::Change(Change::Leader(leader)) => {
            Event::LeaderChanged(leader_changed(leader.as_ref()))
        }
        Notice::Change(Change::ActionStarted(action)) => Event::ActionStarted(ActionStarted {
            action: Some(wire::head(&action.head)),
        }),
        Notice::Change(Change::ActionFinished(action)) => Event::ActionFinished(ActionFinished {
            action: Some(wire::head(&action.head)),
        }),
        Notice::Digest { digest, pods } => Event::DigestChanged(DigestChanged {
            digest: digest.to_string(),
            pod_count: u32::try_from(*pods).unwrap_or(u32::MAX),
        }),
        Notice::CallbackStarted(digest) => Event::CallbackStarted(CallbackStarted {
            digest: digest.clone(),
        }),
        Notice::CallbackFinished(run) => Event::CallbackFinished(CallbackFinished {
            run: Some(run.clone()),
        }),
    }
}

fn leader_changed(leader: Option<&Candidate>) -> LeaderChanged {
    LeaderChanged {
        leader: leader.map(|leader| convert::master(&leader.master)),
        epoch: leader.map_or(0, |leader| leader.epoch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_cut_off_within_a_batch_goes_on_from_before_all_of_it() {
        let batch = |behind, revision| Notices {
            behind,
            revision,
            notices: vec![Notice::Change(Change::Leader(None)); 3],
        };
        let revisions = |batch: Notices| -> Vec<i64> {
            let messages = messages(&View::default(), &batch);
            messages.iter().map(|message| message.revision).collect()
        };
        assert_eq!(revisions(batch(6, 7)), [6, 6, 7]);
        assert_eq!(
            revisions(batch(4, 9)),
            [4, 4, 9],
            "of revisions 5 to 9, the first may be of any"
        );
    }
}
