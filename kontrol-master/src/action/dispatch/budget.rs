//! What the actions of this master may take altogether: one count of those that go on, and one budget of memory.
//!
//! The first half of the memory goes to whoever comes. The other half is only for what an action can't do without: larger
//! windows, and ends that wait for the store, get nothing of it. So neither keeps another action from running.

use super::TAILS_BYTES;
use crate::cluster::error::Error;
use std::{ops::RangeInclusive, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The memory, in KiB.
const MEMORY_KIB: usize = 1152 * 1024;
/// What each target takes; and a command, which is more in memory than on the wire.
const TARGET_KIB: usize = 1;
const COMMAND_TIMES: usize = 4;
/// How much output may be on its way from one slave, and from all slaves of an action unless they are many.
pub(super) const WINDOW_KIB: RangeInclusive<usize> = 4..=256;
const ACTION_WINDOW_KIB: usize = 8 * 1024;
/// What an action takes that is over and waits for the store: the end of its output, and that again in the write.
const END_KIB: usize = 2 * TAILS_BYTES / 1024;

/// What an action asks of its master.
pub(super) struct Load {
    pub(super) targets: usize,
    pub(super) command_kib: usize,
    /// How many targets are at it at a time.
    pub(super) concurrency: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Budget {
    dispatches: usize,
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

/// A place among the actions that go on, given back when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// What one action has of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    /// Absent once the action is over and only waits for the store.
    place: Option<Place>,
    _kept: OwnedSemaphorePermit,
    /// For output that is on its way; then for the end that waits.
    output: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget for so many actions at a time.
    pub(super) fn new(dispatches: usize) -> Self {
        Self {
            dispatches,
            places: Arc::new(Semaphore::new(dispatches)),
            memory: Arc::new(Semaphore::new(MEMORY_KIB)),
        }
    }

    pub(super) fn place(&self) -> Result<Place, Error> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::Exhausted(format!(
                "this master carries {} actions already (--max-dispatches); wait for some to end, or ask another master",
                self.dispatches
            ))
        })
    }

    /// The share of an action, and how many KiB of output each of its slaves may have on its way.
    pub(super) fn share(&self, place: Place, load: &Load) -> Result<(Share, usize), Error> {
        let (least, most) = WINDOW_KIB.into_inner();
        let at_a_time = load.concurrency.min(load.targets).max(1);
        let wanted = (ACTION_WINDOW_KIB / at_a_time).clamp(least, most);
        let kept = self.memory(load.command_kib * COMMAND_TIMES + load.targets * TARGET_KIB);
        let output = self.memory(at_a_time * least);
        let (kept, mut output) = kept.zip(output).ok_or_else(|| {
            let reason = "the actions that this master carries take all the memory that there is for them; wait for some to end, or ask another master";
            Error::Exhausted(reason.to_owned())
        })?;
        let mut window_kib = least;
        if let Some(spare) = self.spare(at_a_time * (wanted - least)) {
            output.merge(spare);
            window_kib = wanted;
        }
        let share = Share {
            place: Some(place),
            _kept: kept,
            output: Some(output),
        };
        Ok((share, window_kib))
    }

    fn memory(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(kib).ok()?;
        Arc::clone(&self.memory).try_acquire_many_owned(kib).ok()
    }

    /// Memory, as long as half of it is left.
    fn spare(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        let is_there = self.memory.available_permits() >= MEMORY_KIB / 2 + kib;
        is_there.then(|| self.memory(kib)).flatten()
    }
}

impl Share {
    /// The action is over, and its end waits for the store: it makes room for others. False when too many wait.
    pub(super) fn wait(&mut self, budget: &Budget) -> bool {
        if self.place.is_some() {
            self.output = None;
            self.output = budget.spare(END_KIB);
            if self.output.is_some() {
                self.place = None;
            }
        }
        self.place.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::limits::MAX_DISPATCHES;

    fn load(targets: usize) -> Load {
        Load {
            targets,
            command_kib: 1,
            concurrency: usize::MAX,
        }
    }

    #[test]
    fn larger_windows_and_ends_that_wait_leave_half_of_the_memory_to_what_runs() {
        let budget = Budget::new(MAX_DISPATCHES);
        let share = |targets| budget.share(budget.place().unwrap(), &load(targets));
        let (large, small) = (*WINDOW_KIB.end(), *WINDOW_KIB.start());
        let mut shares = Vec::new();
        loop {
            let (share, window) = share(32).unwrap();
            shares.push(share);
            if window == small {
                break;
            }
            assert_eq!(window, large);
        }
        let windows = shares.len() * ACTION_WINDOW_KIB;
        assert!(windows > MEMORY_KIB / 3, "{windows}");
        // Those that are over give their windows back; then so many wait that there is no room for another.
        let waiting = shares
            .iter_mut()
            .filter_map(|share| share.wait(&budget).then_some(()));
        assert_eq!(waiting.count(), shares.len());
        while let Ok((mut share, _)) = share(1)
            && share.wait(&budget)
        {
            shares.push(share);
        }
        assert!(shares.len() * END_KIB > MEMORY_KIB / 3, "{}", shares.len());
        assert_eq!(budget.places.available_permits(), MAX_DISPATCHES);
        // What runs finds all places, and the memory for them.
        let running: Vec<_> = (0..MAX_DISPATCHES).map(|_| share(1).unwrap()).collect();
        assert!(matches!(budget.place(), Err(Error::Exhausted(_))));
        drop((shares, running));
        assert_eq!(budget.memory.available_permits(), MEMORY_KIB);
    }

    #[test]
    fn an_action_that_is_too_large_for_the_memory_is_refused_and_takes_nothing() {
        let budget = Budget::new(MAX_DISPATCHES);
        let share = |targets| budget.share(budget.place().unwrap(), &load(targets));
        let most = MEMORY_KIB / (TARGET_KIB + WINDOW_KIB.start()) - COMMAND_TIMES;
        // Once it is over, it may wait for the store all the same.
        assert!(share(most).unwrap().0.wait(&budget));
        for targets in [most + COMMAND_TIMES, usize::MAX / 16] {
            assert!(matches!(share(targets), Err(Error::Exhausted(_))));
        }
        assert_eq!(budget.memory.available_permits(), MEMORY_KIB);
        assert_eq!(budget.places.available_permits(), MAX_DISPATCHES);
    }
}
