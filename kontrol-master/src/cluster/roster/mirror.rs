//! The task that keeps the roster in step with the store: a snapshot, then the watch behind it, and again from a
//! snapshot whenever the watch breaks or its revision is compacted away.

use super::{
    complaint::Complaint,
    feed::{self, Feed, Notice, Notices},
    history::Entries,
};
use crate::cluster::store::{self, SharedStore, StoreError};
use arc_swap::ArcSwap;
use kontrol_core::{
    kv::Revision,
    view::{Change, View},
};
use kontrol_runtime::backoff::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The digest of a changing roster is published at most this often.
const DIGEST_PACE: Duration = Duration::from_millis(200);
/// How long a call of the store may take: why it can't be reached is told within two seconds.
const CALL_LIMIT: Duration = Duration::from_millis(1500);

/// Handle on the roster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Roster {
    view: Arc<ArcSwap<View>>,
    progress: watch::Receiver<Progress>,
    feed: Feed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    revision: Revision,
    /// False before the first snapshot.
    started: bool,
    /// Whether the store's watch is up.
    connected: bool,
    /// Why it is not.
    trouble: Option<Arc<str>>,
}

/// The task behind [`Roster`].
#[derive(Debug)]
pub struct Mirror {
    store: SharedStore,
    view: Arc<ArcSwap<View>>,
    progress: watch::Sender<Progress>,
    feed: Feed,
    /// What the store holds, for the history that its revisions belong to.
    entries: Entries,
    complaint: Complaint,
    /// The view whose digest followers know, and when the next digest is to be published.
    digested: Arc<View>,
    digest_due: Option<Instant>,
}

impl Roster {
    /// A roster and the task that keeps it.
    pub fn new(store: SharedStore) -> (Self, Mirror) {
        let view = Arc::new(ArcSwap::default());
        let feed = Feed::default();
        let (sender, progress) = watch::channel(Progress {
            revision: 0,
            started: false,
            connected: false,
            trouble: None,
        });
        let mirror = Mirror {
            store: store::serving(&store, CALL_LIMIT),
            entries: Entries::default(),
            complaint: Complaint::default(),
            digested: view.load_full(),
            view: Arc::clone(&view),
            progress: sender,
            feed: feed.clone(),
            digest_due: None,
        };
        let roster = Self {
            view,
            progress,
            feed,
        };
        (roster, mirror)
    }

    /// The ensemble as this master knows it.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The same without touching its reference count: for the hot path, not to be kept.
    pub fn peek(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// Whether a first snapshot was read, so that what the roster says means something.
    pub fn started(&self) -> bool {
        self.progress.borrow().started
    }

    /// Whether the store's watch is up.
    pub fn connected(&self) -> bool {
        self.progress.borrow().connected
    }

    /// Why the store can't be reached, where that is known.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.progress.borrow().trouble.clone()
    }

    /// Waits until the roster is at this revision or behind it; false when it isn't within `limit`.
    pub async fn caught_up(&self, revision: Revision, limit: Duration) -> bool {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|now| now.started && now.revision >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Wakes at each new view.
    pub fn changes(&self) -> Changes {
        Changes(self.progress.clone())
    }

    /// The feed of what changes.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }
}

/// Wakes at each new view of a roster.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Progress>);

impl Changes {
    /// Waits for the next view, or for the store's watch to come or go. False once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl Mirror {
    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        while let Some(error) = token.run_until_cancelled(self.follow(&mut backoff)).await {
            self.failed(&error);
            if token
                .run_until_cancelled(sleep(backoff.failed()))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    fn failed(&mut self, error: &StoreError) {
        let text = error.to_string();
        self.progress.send_if_modified(|progress| {
            let was_connected = std::mem::replace(&mut progress.connected, false);
            if was_connected {
                tracing::warn!(%error, "lost the store's watch; the roster stays as it is until it is back");
            } else if self.complaint.is_due(Instant::now(), &text) {
                tracing::warn!(%error, "can't reach the store: this master does nothing new until it can");
            }
            let known = progress.trouble.as_deref() == Some(&text);
            progress.trouble = Some(text.into());
            was_connected || !known
        });
    }

    /// One snapshot and the watch behind it, until that breaks.
    async fn follow(&mut self, backoff: &mut Backoff) -> StoreError {
        let snapshot = match self.store.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return error,
        };
        let mut watch = match self.store.watch(snapshot.revision).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        let before = self.view.load_full();
        let first = !self.progress.borrow().started;
        let restored = !first
            && self
                .entries
                .are_contradicted_by(&snapshot, before.revision());
        if restored {
            tracing::error!(
                known = before.revision(),
                found = snapshot.revision,
                "the store went back in time (restored from a backup?); following it"
            );
        }
        let history = self.entries.replace(&snapshot);
        let (view, changes) = if restored {
            // What was noted of the pods belongs to revisions that are no more.
            before.restart(&snapshot, Instant::now())
        } else {
            before.replace(&snapshot, Instant::now())
        };
        tell_troubles(&view);
        if first {
            tracing::info!(
                pods = view.len(),
                revision = view.revision(),
                "read the roster"
            );
        }
        if self.complaint.is_over() {
            tracing::info!("reached the store");
        }
        if restored {
            let revision = view.revision();
            // Told by snapshots of this view, not by changes from one history to another.
            self.publish(view, Vec::new(), true);
            self.feed.restart_at(revision, history);
            self.digest_due = Some(Instant::now() + DIGEST_PACE);
        } else {
            if first {
                self.feed.start_at(view.revision());
            }
            // Noted before anybody sees the view, who could ask for its history.
            self.feed.skip_to(view.revision(), history);
            self.publish(view, changes, true);
        }
        backoff.reset();
        loop {
            let digest_due = self.digest_due;
            let pace = async {
                match digest_due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            // Both arms are cancel safe: `Watch::next` promises it, and a sleep loses nothing.
            tokio::select! {
                events = watch.next() => match events {
                    Ok(events) => {
                        let marks = self.entries.apply(&events);
                        self.feed.go_on(marks, events.revision);
                        let (view, changes) = self.view.load().apply(&events, Instant::now());
                        tell_troubles(&view);
                        self.publish(view, changes, true);
                    }
                    Err(error) => return error,
                },
                () = pace => self.publish_digest(),
            }
        }
    }

    fn publish(&mut self, view: View, changes: Vec<Change>, connected: bool) {
        let pods_changed = changes.iter().any(|change| match change {
            Change::Joined(_) | Change::Changed { .. } | Change::Left(_) => true,
            Change::Leader(_)
            | Change::ActionStarted(_)
            | Change::ActionFinished(_)
            | Change::Hold(_)
            | Change::Safeguard(_) => false,
        });
        let notices = feed::notices(&self.view.load(), &view, changes);
        let progress = Progress {
            revision: view.revision(),
            started: true,
            connected,
            trouble: None,
        };
        self.view.store(Arc::new(view));
        self.progress.send_replace(progress);
        self.feed.publish(notices);
        if pods_changed && self.digest_due.is_none() {
            self.digest_due = Some(Instant::now() + DIGEST_PACE);
        }
    }

    fn publish_digest(&mut self) {
        self.digest_due = None;
        let view = self.view.load_full();
        let digest = view.digest();
        if digest != self.digested.digest() {
            self.feed.publish(Notices {
                behind: view.revision(),
                revision: view.revision(),
                notices: vec![Notice::Digest {
                    digest,
                    pods: view.len(),
                }],
            });
        }
        self.digested = view;
    }
}

fn tell_troubles(view: &View) {
    for trouble in view.troubles() {
        if trouble.grave {
            tracing::error!("{}", trouble.what);
        } else {
            tracing::warn!("{}", trouble.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::{EtcdOptions, etcd::EtcdStore};

    #[tokio::test]
    async fn why_a_store_was_never_reached_is_known_within_two_seconds() {
        // Nobody listens behind the first; the second accepts and says nothing.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap().to_string();
        drop(closed);
        for (address, why) in [
            (address, "refused"),
            (deaf.local_addr().unwrap().to_string(), "in time"),
        ] {
            let store = EtcdStore::new(std::slice::from_ref(&address), "/", EtcdOptions::default());
            let (roster, mirror) = Roster::new(Arc::new(store.unwrap()));
            let token = CancellationToken::new();
            let task = tokio::spawn(mirror.run(token.clone()));
            let mut changes = roster.changes();
            let told = tokio::time::timeout(Duration::from_secs(2), async {
                while roster.trouble().is_none() {
                    assert!(changes.next().await);
                }
            });
            told.await.expect("it is told within two seconds");
            let trouble = roster.trouble().unwrap();
            assert!(
                trouble.contains(why) && trouble.contains(&address),
                "{trouble}"
            );
            assert!(!roster.started() && !roster.connected());
            token.cancel();
            task.await.unwrap();
        }
    }
}
