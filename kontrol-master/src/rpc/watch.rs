//! The stream of Watch: a snapshot, or what was missed, and then the feed.

use super::convert;
use crate::{
    error::Error,
    roster::{Candidate, Change, Followed, Notice, Notices, Roster, View},
};
use futures::{Stream, StreamExt, stream};
use kontrol_proto::v1::{
    WatchResponse,
    watch_response::{
        CallbackFinished, CallbackStarted, DigestChanged, Event, LeaderChanged, PodChanged,
        PodJoined, PodLeft, Snapshot,
    },
};
use std::{collections::VecDeque, sync::Arc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Follows a roster from behind a revision, or from a snapshot where that is 0 or forgotten. Ends with the token.
pub(super) fn stream(
    roster: &Roster,
    behind: i64,
    token: CancellationToken,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + use<> {
    // Followed first and looked at second: nothing between the two is lost, and what the snapshot shows already is
    // passed over by its revision.
    let mut followed = roster.feed().follow((behind > 0).then_some(behind));
    let mut waiting = VecDeque::new();
    let mut shown = 0;
    match followed.missed.take() {
        Some(missed) => missed
            .into_iter()
            .for_each(|notices| waiting.extend(messages(&notices))),
        None => {
            let view = roster.view();
            shown = view.revision();
            waiting.push_back(snapshot(&view));
        }
    }
    let watcher = Watcher {
        followed,
        waiting,
        shown,
        over: false,
    };
    let messages = stream::unfold(watcher, async |mut watcher| {
        let message = watcher.next().await?;
        Some((message, watcher))
    });
    messages.take_until(token.cancelled_owned())
}

struct Watcher {
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
            match self.followed.next().await? {
                Ok(notices) => {
                    let known = notices.revision <= self.shown;
                    self.waiting
                        .extend(messages(&notices).filter(|message| !known || !is_roster(message)));
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

/// Whether a message tells of the roster or the leader, which a snapshot of its revision shows as well.
fn is_roster(message: &WatchResponse) -> bool {
    matches!(
        message.event,
        Some(
            Event::PodJoined(_)
                | Event::PodChanged(_)
                | Event::PodLeft(_)
                | Event::LeaderChanged(_)
        )
    )
}

fn snapshot(view: &View) -> WatchResponse {
    let members = view.pods().filter_map(|pod| view.member(pod.key()));
    let leader = view.leader();
    WatchResponse {
        revision: view.revision(),
        event: Some(Event::Snapshot(Snapshot {
            pods: members.map(convert::member).collect(),
            leader: leader.map(|leader| convert::master(&leader.master)),
            epoch: leader.map_or(0, |leader| leader.epoch),
            digest: view.digest().to_string(),
        })),
    }
}

fn messages(notices: &Arc<Notices>) -> impl Iterator<Item = WatchResponse> + use<> {
    let notices = Arc::clone(notices);
    (0..notices.notices.len()).map(move |index| WatchResponse {
        revision: notices.revision,
        event: Some(event(&notices.notices[index])),
    })
}

fn event(notice: &Notice) -> Event {
    match notice {
        Notice::Change(Change::Joined(member)) => Event::PodJoined(PodJoined {
            pod: Some(convert::member(member)),
        }),
        Notice::Change(Change::Changed { before, after }) => Event::PodChanged(PodChanged {
            pod: Some(convert::member(after)),
            restarted: before.nonce() != after.pod.nonce(),
        }),
        Notice::Change(Change::Left(removal)) => Event::PodLeft(PodLeft {
            pod: Some(convert::pod(&removal.pod)),
            reason: convert::reason(removal.reason).into(),
        }),
        Notice::Change(Change::Leader(leader)) => {
            Event::LeaderChanged(leader_changed(leader.as_ref()))
        }
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
