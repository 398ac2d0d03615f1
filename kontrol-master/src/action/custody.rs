//! Custody: the leader takes over the actions whose master died.
//!
//! What is detached goes on, and what is not is cancelled: its dispatcher went away with the connection to that master.
//! Nobody new gets the order, for what was to run is not in the store. A master that is alive after all, and was only gone
//! from the store for a while, finds its record overtaken and lets go.

use super::dispatch::Dispatches;
use super::history::History;
use crate::{
    election::Election,
    model::action::{ActionId, State},
    roster::Roster,
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often the leader looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long a master may be gone from the store before its actions are taken over.
const GRACE: Duration = Duration::from_secs(2);

/// Takes over actions, while this master leads.
#[derive(Debug)]
pub struct Custody {
    roster: Roster,
    election: Election,
    history: History,
    dispatches: Dispatches,
    /// Actions without a master, and since when.
    orphans: HashMap<ActionId, Instant>,
    /// Those that were taken over here and go on, whatever their record says as yet.
    adopted: HashMap<ActionId, JoinHandle<()>>,
}

impl Custody {
    /// The custody of this master.
    pub fn new(
        roster: Roster,
        election: Election,
        history: History,
        dispatches: Dispatches,
    ) -> Self {
        Self {
            roster,
            election,
            history,
            dispatches,
            orphans: HashMap::new(),
            adopted: HashMap::new(),
        }
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(looks.tick()).await.is_some() {
            if self.election.leads().is_none() || !self.roster.connected() {
                self.orphans.clear();
                continue;
            }
            for action in self.due(Instant::now()) {
                self.adopt(&action).await;
            }
        }
    }

    /// The actions that have been without a master for long enough.
    fn due(&mut self, now: Instant) -> Vec<ActionId> {
        let view = self.roster.view();
        let masters: HashSet<&str> = view
            .masters()
            .map(|master| master.instance.as_str())
            .collect();
        let orphans: HashSet<&ActionId> = view
            .actions()
            .values()
            .filter(|known| known.head.state == State::Running)
            .filter(|known| !masters.contains(known.head.instance.as_str()))
            .map(|known| &known.head.id)
            .collect();
        self.orphans.retain(|action, _| orphans.contains(action));
        self.adopted.retain(|_, task| !task.is_finished());
        for action in orphans {
            self.orphans.entry(action.clone()).or_insert(now);
        }
        let due = self.orphans.iter();
        due.filter(|(_, since)| now - **since >= GRACE)
            .filter(|(action, _)| !self.adopted.contains_key(*action))
            .map(|(action, _)| action.clone())
            .collect()
    }

    async fn adopt(&mut self, action: &ActionId) {
        match self.history.read(action).await {
            Ok(Some((record, revision))) if record.head.state == State::Running => {
                match self.dispatches.adopt(record, revision) {
                    Ok(task) => drop(self.adopted.insert(action.clone(), task)),
                    Err(error) => {
                        tracing::debug!(%action, %error, "could not take over an action yet")
                    }
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%action, %error, "could not read an action to take over"),
        }
    }
}
