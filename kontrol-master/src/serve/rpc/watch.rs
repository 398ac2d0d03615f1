//! The stream of Watch: a snapshot, or what was missed, and then the feed.

use super::{convert, page::page};
use crate::{
    action::wire,
    cluster::{
        error::Error,
        roster::{Feed, Followed, Notice, Notices, Place, Roster},
    },
    metrics::{Metrics, Queue},
};
use futures::{Stream, stream};
use kontrol_core::view::{Candidate, Change, View};
use kontrol_proto::v1::{
    WatchRequest, WatchResponse,
    watch_response::{
        ActionFinished, ActionStarted, CallbackFinished, CallbackStarted, DigestChanged, Event,
        HoldChanged, LeaderChanged, PodChanged, PodJoined, PodLeft, SafeguardChanged, Snapshot,
    },
};
use std::{collections::VecDeque, sync::Arc};
use tonic::Status;

/// Follows a roster from behind a revision, or from a snapshot where that is 0, forgotten, or of another history.
pub(super) fn stream(
    roster: &Roster,
    metrics: Arc<Metrics>,
    request: WatchRequest,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + use<> {
    // Followed first and looked at second: nothing between the two is lost, and what the snapshot shows already is
    // passed over by its revision.
    let mut followed = roster.feed().follow(place(&request));
    let missed = followed.missed.take();
    let teller = Teller {
        tells_history: request.history.is_some(),
        feed: roster.feed().clone(),
    };
    let showing = missed.is_none().then(|| Showing::of(roster.view()));
    let watcher = Watcher {
        roster: roster.clone(),
        metrics,
        teller,
        showing,
        missed: missed.unwrap_or_default().into(),
        followed,
        waiting: VecDeque::new(),
        shown: 0,
        over: false,
    };
    stream::unfold(watcher, async |mut watcher| {
        let message = watcher.next().await?;
        Some((message, watcher))
    })
}

/// Where a caller was; none where it begins, or names a history that no master tells.
fn place(request: &WatchRequest) -> Option<Place> {
    let history = match request.history.as_deref() {
        None | Some("") => None,
        Some(text) => Some(text.parse().ok()?),
    };
    let revision = request.revision;
    (revision > 0).then_some(Place { revision, history })
}

struct Watcher {
    roster: Roster,
    metrics: Arc<Metrics>,
    teller: Teller,
    /// A snapshot that was not told to its end.
    showing: Option<Showing>,
    /// Batches to be told before those that follow.
    missed: VecDeque<Arc<Notices>>,
    followed: Followed,
    waiting: VecDeque<WatchResponse>,
    /// The snapshot's revision: roster changes up to it are in the snapshot.
    shown: i64,
    over: bool,
}

/// A snapshot that is told in pieces: one that nobody takes yet costs nothing but its view.
struct Showing {
    view: Arc<View>,
    /// The last seq that was told.
    behind: Option<u64>,
}

impl Showing {
    fn of(view: Arc<View>) -> Self {
        Self { view, behind: None }
    }
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
            if let Some(showing) = self.showing.take() {
                return Some(Ok(self.show(showing)));
            }
            if let Some(notices) = self.missed.pop_front() {
                self.waiting = self
                    .teller
                    .messages(&self.roster.view(), &notices, self.shown);
                continue;
            }
            match self.followed.next().await? {
                Ok(notices) if matches!(notices.notices[..], [Notice::Restored]) => {
                    self.showing = Some(Showing::of(self.roster.view()));
                }
                Ok(notices) => {
                    if notices.revision > self.shown || !notices.is_roster() {
                        self.waiting =
                            self.teller
                                .messages(&self.roster.view(), &notices, self.shown);
                    }
                }
                Err(_) => {
                    self.over = true;
                    self.metrics.turned_away(Queue::Watches);
                    let error = Error::Exhausted(
                        "this watch reads too slowly and was cut off; watch again from the last revision you saw".to_owned(),
                    );
                    return Some(Err(error.into()));
                }
            }
        }
    }

    /// The next piece of a snapshot.
    fn show(&mut self, Showing { view, behind }: Showing) -> WatchResponse {
        let page = page(&view, behind, usize::MAX, |_| true);
        let leader = view.leader();
        let snapshot = Snapshot {
            pods: page.pods,
            leader: leader.map(|leader| convert::master(&leader.master)),
            epoch: leader.map_or(0, |leader| leader.epoch),
            digest: view.digest().to_string(),
            more: page.next.is_some(),
        };
        let mut revision = 0;
        if page.next.is_some() {
            self.showing = Some(Showing {
                view,
                behind: page.next,
            });
        } else {
            revision = view.revision();
            self.shown = revision;
        }
        self.teller
            .message(revision, Some(Event::Snapshot(snapshot)))
    }
}

/// Puts into words what a watch is told.
struct Teller {
    /// Whether each message says which history its revision belongs to.
    tells_history: bool,
    feed: Feed,
}

impl Teller {
    fn message(&self, revision: i64, event: Option<Event>) -> WatchResponse {
        let history = self.tells_history.then(|| self.feed.history(revision));
        WatchResponse {
            revision,
            history: history.flatten().map(|history| history.to_string()),
            event,
        }
    }

    /// The messages of a batch. Each carries the revision to go on from: only the last one of a batch carries its
    /// revision, so that who is cut off before it is told all of it again, by whichever master. What the snapshot has
    /// `shown` is told already: a callback notice may follow from less.
    fn messages(&self, view: &View, notices: &Notices, shown: i64) -> VecDeque<WatchResponse> {
        let last = notices.notices.len().saturating_sub(1);
        let message = |(index, notice): (usize, &Notice)| {
            let revision = if index < last {
                notices.behind
            } else {
                notices.revision
            };
            self.message(revision.max(shown), event(view, notice))
        };
        notices.notices.iter().enumerate().map(message).collect()
    }
}

fn event(view: &View, notice: &Notice) -> Option<Event> {
    Some(match notice {
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
        Notice::Change(Change::Hold(hold)) => Event::HoldChanged(HoldChanged {
            hold: hold.as_ref().map(convert::hold),
        }),
        Notice::Change(Change::Safeguard(freeze)) => Event::SafeguardChanged(SafeguardChanged {
            safeguard: freeze.as_ref().map(convert::safeguard),
        }),
        Notice::Digest { digest, pods } => Event::DigestChanged(DigestChanged {
            digest: digest.to_string(),
            pod_count: u32::try_from(*pods).unwrap_or(u32::MAX),
        }),
        Notice::CallbackStarted(digest) => Event::CallbackStarted(CallbackStarted {
            digest: digest.to_string(),
        }),
        Notice::CallbackFinished(run) => Event::CallbackFinished(CallbackFinished {
            run: Some(run.clone().into()),
        }),
        // Comes alone, and is told by a snapshot.
        Notice::Restored => return None,
    })
}

fn leader_changed(leader: Option<&Candidate>) -> LeaderChanged {
    LeaderChanged {
        leader: leader.map(|leader| convert::master(&leader.master)),
        epoch: leader.map_or(0, |leader| leader.epoch),
    }
}

#[cfg(test)]
mod tests;
