//! Actions that a slave holds and nobody asks for. PURE.
//!
//! A slave keeps the end of an action until it is taken. When the master that carried the action died, the leader adopts
//! it and takes the end. An action that is over, and one that the store does not know and no master claims for a while,
//! are ended at the slave: whoever dispatched them is gone, and nobody will ever ask.

use kontrol_core::model::action::{ActionId, State};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// How long an action that is unknown may stay unclaimed: a master that carries it hears of the slave long before.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

/// The actions of one slave that nobody has asked for, and since when.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashMap<ActionId, Instant>);

impl Orphans {
    /// Nobody asks for this action at present.
    pub(super) fn add(&mut self, action: ActionId, now: Instant) {
        self.0.entry(action).or_insert(now);
    }

    /// Somebody asked for it.
    pub(super) fn claim(&mut self, action: &ActionId) {
        self.0.remove(action);
    }

    /// Takes out those that nobody will ask for. `known` tells what the history says of an action; `blind`: it may not
    /// say everything at present.
    pub(super) fn abandoned(
        &mut self,
        now: Instant,
        blind: bool,
        known: impl Fn(&ActionId) -> Option<State>,
    ) -> Vec<ActionId> {
        let mut abandoned = Vec::new();
        self.0.retain(|action, since| {
            let stays = match known(action) {
                Some(State::Finished) => false,
                Some(State::Running) => {
                    // Its master takes care of it, or the leader will.
                    *since = now;
                    true
                }
                None => blind || now - *since < UNKNOWN_FOR,
            };
            if !stays {
                abandoned.push(action.clone());
            }
            stays
        });
        abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_or_unknown_is_abandoned_and_what_runs_waits() {
        let now = Instant::now();
        let [over, runs, unknown] = [1, 2, 3].map(|luck| ActionId::new(0, luck));
        let mut orphans = Orphans::default();
        for action in [&over, &runs, &unknown] {
            orphans.add(action.clone(), now);
        }
        let known = |action: &ActionId| match action {
            action if *action == over => Some(State::Finished),
            action if *action == runs => Some(State::Running),
            _ => None,
        };
        assert_eq!(
            orphans.abandoned(now, false, known),
            std::slice::from_ref(&over)
        );
        let later = now + UNKNOWN_FOR;
        assert_eq!(orphans.abandoned(later, true, known), []);
        assert_eq!(orphans.abandoned(later, false, known), [unknown]);
        orphans.claim(&runs);
        assert!(orphans.0.is_empty());
    }
}
