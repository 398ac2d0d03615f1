//! Custody: the leader takes over the actions whose master died.
//!
//! A detached action goes on. Any other is cancelled, because its dispatcher lost the connection to that master. No
//! further slave gets the order, because the store does not hold the command. One transaction takes an action over. It
//! compares that this master still leads, and that neither the presence nor the candidacy of the former carrier is in
//! the store: a deposed leader takes nothing, and a master whose lease stands loses nothing. A former carrier that is
//! alive, and was only gone from the store for a while, finds its record overtaken and lets go.
//!
//! Every master also takes up records that name itself though it does not carry them: it had given up writing their
//! end, or had taken them over without learning that.

use super::{
    dispatch::Dispatches,
    history::{History, Taking},
};
use crate::cluster::{election::Election, roster::Roster, store::StoreError};
use kontrol_core::{
    kv::Fence,
    model::action::{ActionId, State},
    view::{KnownAction, LEADER, View},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often this master looks for such actions.
const LOOK: Duration = Duration::from_millis(500);
/// How long a master may be gone from the store before its actions are taken over.
const GRACE: Duration = Duration::from_secs(2);

/// Takes over actions: those that name this master, and while it leads those of every master.
#[derive(Debug)]
pub struct Custody {
    instance: String,
    roster: Roster,
    election: Election,
    history: History,
    dispatches: Dispatches,
    /// Actions without a master, and since when.
    orphans: HashMap<ActionId, Instant>,
}

impl Custody {
    /// The custody of this master; `instance` is which start of it this is.
    pub fn new(
        instance: String,
        roster: Roster,
        election: Election,
        history: History,
        dispatches: Dispatches,
    ) -> Self {
        Self {
            instance,
            roster,
            election,
            history,
            dispatches,
            orphans: HashMap::new(),
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(looks.tick()).await.is_some() {
            if !self.roster.connected() {
                self.orphans.clear();
                continue;
            }
            let fence = self.election.leads();
            for action in self.due(fence.is_some(), Instant::now()) {
                if let Err(error) = self.take(&action, fence.as_ref()).await {
                    let id = &action.head.id;
                    tracing::debug!(action = %id, %error, "could not read an action to take over");
                }
            }
        }
    }

    /// The actions that have been without a master for long enough.
    fn due(&mut self, leads: bool, now: Instant) -> Vec<Arc<KnownAction>> {
        let view = self.roster.view();
        let there: HashSet<&str> = view
            .masters()
            .map(|master| master.instance.as_str())
            .collect();
        let actions = view.actions().values();
        let orphans: Vec<&Arc<KnownAction>> = actions
            .filter(|known| known.head.state == State::Running)
            .filter(|known| !self.dispatches.carries(&known.head.id))
            .filter(|known| {
                let mine = known.head.instance == self.instance;
                let gone =
                    !there.contains(known.head.instance.as_str()) && !is_candidate(&view, known);
                mine || (leads && gone)
            })
            .collect();
        let ids: HashSet<&ActionId> = orphans.iter().map(|known| &known.head.id).collect();
        self.orphans.retain(|action, _| ids.contains(action));
        orphans
            .into_iter()
            .filter(|known| {
                let since = self.orphans.entry(known.head.id.clone()).or_insert(now);
                now - *since >= GRACE
            })
            .cloned()
            .collect()
    }

    async fn take(&self, action: &KnownAction, fence: Option<&Fence>) -> Result<(), StoreError> {
        let (record, taking) = if action.head.instance == self.instance {
            match self.history.read(&action.head.id).await? {
                Some((record, revision)) if record.head.state == State::Running => {
                    let taking = Taking {
                        revision,
                        fence: None,
                        absence: Vec::new(),
                    };
                    (record, taking)
                }
                Some(_) | None => return Ok(()),
            }
        } else {
            let Some(orphan) = self.history.orphan(action).await? else {
                return Ok(());
            };
            let taking = Taking {
                revision: orphan.revision,
                fence: fence.cloned(),
                absence: orphan.absence,
            };
            (orphan.record, taking)
        };
        if let Err(error) = self.dispatches.adopt(record, taking) {
            let id = &action.head.id;
            tracing::debug!(action = %id, %error, "could not take over an action yet");
        }
        Ok(())
    }
}

/// Whether the master that carries an action still stands for election.
fn is_candidate(view: &View, known: &KnownAction) -> bool {
    let candidate = view.candidate(&format!("{LEADER}{}", known.head.lease));
    candidate.is_some_and(|candidate| candidate.master.instance == known.head.instance)
}
