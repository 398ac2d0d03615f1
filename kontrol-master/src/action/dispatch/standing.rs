//! What the carrier of an action may tell of its ends. PURE.
//!
//! Another master takes an action over when the candidacy that the record names is gone from the store. From then on
//! that master decides how each target ended. A carrier that was paused or cut off does not notice. So it tells an end
//! only
//!
//! - once a record with that end is written, which nobody can overwrite unseen; or
//! - at once where the store has no record, because it could not be reached: nobody takes over an unknown action; or
//! - without a record of that end where the carrier is *sure*: the candidacy that the record names surely stands, and a
//!   master that took the action over would hear the same end from the slave, which keeps it until it is recorded. The
//!   slave may die together with the carrier. So with few targets an end waits a moment for its record, but no longer: a
//!   store that takes no writes must not silence the action.
//!
//! Every other end is held back.

use kontrol_core::kv::LeaseId;
use tokio::time::Instant;

/// An end that was not told yet.
#[derive(Debug)]
struct Held {
    target: usize,
    since: Instant,
    /// From when on it may be told without a record, because its slave keeps it; absent if the slave does not.
    tell_at: Option<Instant>,
    /// It is in the record that is being written.
    in_writing: bool,
}

/// Where the carrier of an action stands.
#[derive(Debug)]
pub(super) struct Standing {
    /// Whether the store may have a record.
    recorded: bool,
    /// The candidacy that the record names, if that is known.
    named: Option<LeaseId>,
    /// The candidacy that the record names that is being written.
    writing: Option<LeaseId>,
    held: Vec<Held>,
    /// Whether the last write went wrong.
    failed: bool,
}

impl Standing {
    /// The carrier of an action that is new, or that it takes over with its first write.
    pub(super) fn new() -> Self {
        Self {
            recorded: false,
            named: None,
            writing: None,
            held: Vec::new(),
            failed: false,
        }
    }

    /// A record is being written which has every end that is held, and names this candidacy.
    pub(super) fn write(&mut self, seat: Option<LeaseId>) {
        self.writing = seat;
        // The first one names it, whether it is known to be written or not.
        if !std::mem::replace(&mut self.recorded, true) {
            self.named = seat;
        }
        for held in &mut self.held {
            held.in_writing = true;
        }
    }

    /// It was written. Tells the targets whose ends may be told.
    pub(super) fn written(&mut self) -> Vec<usize> {
        self.named = self.writing.take();
        self.failed = false;
        self.take(|held| held.in_writing)
    }

    /// It was not, or that is not known. `none`: there surely is no record at all.
    pub(super) fn failed(&mut self, none: bool) {
        self.writing = None;
        self.failed = true;
        self.recorded &= !none;
        for held in &mut self.held {
            held.in_writing = false;
        }
    }

    /// Whether the store may have a record.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Whether no other master can have taken the action over. `seat`: the candidacy that surely stands.
    pub(super) fn is_sure(&self, seat: Option<LeaseId>) -> bool {
        !self.recorded || (seat.is_some() && seat == self.named)
    }

    /// Whether the record should be written again to become sure.
    pub(super) fn may_become_sure(&self, seat: Option<LeaseId>) -> bool {
        seat.is_some() && !self.is_sure(seat)
    }

    /// A target has ended. `tell_at`: from when on that may be told without a record of it, because its slave keeps it.
    pub(super) fn hold(&mut self, target: usize, tell_at: Option<Instant>, since: Instant) {
        self.held.push(Held {
            target,
            since,
            tell_at,
            in_writing: false,
        });
    }

    /// The targets whose ends may be told now without a record of them.
    pub(super) fn release(&mut self, seat: Option<LeaseId>, now: Instant) -> Vec<usize> {
        if self.held.is_empty() || !self.is_sure(seat) {
            return Vec::new();
        }
        let recorded = self.recorded;
        self.take(|held| held.tell_at.is_some_and(|at| at <= now) || !recorded)
    }

    /// Whether an end waits for a write, and the last one went well.
    pub(super) fn waits(&self) -> bool {
        !self.failed && !self.held.is_empty()
    }

    /// Since when an end is held back.
    pub(super) fn holds_since(&self) -> Option<Instant> {
        self.held.first().map(|held| held.since)
    }

    fn take(&mut self, which: impl Fn(&Held) -> bool) -> Vec<usize> {
        let taken = self.held.extract_if(.., |held| which(held));
        taken.map(|held| held.target).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOBODY: [usize; 0] = [];
    const SEAT: Option<LeaseId> = Some(LeaseId(1));
    const NEXT: Option<LeaseId> = Some(LeaseId(2));

    fn ended(standing: &mut Standing) {
        let now = Instant::now();
        standing.hold(0, Some(now), now);
        standing.hold(1, None, now);
    }

    #[test]
    fn without_a_record_everything_is_told_at_once() {
        let mut standing = Standing::new();
        ended(&mut standing);
        assert_eq!(standing.release(None, Instant::now()), [0, 1]);
        standing.write(SEAT);
        standing.failed(true);
        ended(&mut standing);
        assert_eq!(standing.release(None, Instant::now()), [0, 1]);
        assert_eq!(standing.holds_since(), None);
    }

    #[test]
    fn what_lasts_is_told_while_the_candidacy_that_the_record_names_stands() {
        // Whether the first write is known to be done or not: if it is, it names this candidacy.
        for clear in [true, false] {
            let mut standing = Standing::new();
            standing.write(SEAT);
            if clear {
                assert_eq!(standing.written(), NOBODY);
            } else {
                standing.failed(false);
            }
            ended(&mut standing);
            assert_eq!(
                standing.release(None, Instant::now()),
                NOBODY,
                "the lease may have ended"
            );
            assert_eq!(
                standing.release(NEXT, Instant::now()),
                NOBODY,
                "it ended, and another was granted"
            );
            assert!(standing.may_become_sure(NEXT) && !standing.may_become_sure(None));
            assert_eq!(standing.release(SEAT, Instant::now()), [0]);
            standing.write(SEAT);
            assert_eq!(
                standing.written(),
                [1],
                "what the carrier decided must be recorded"
            );
        }
    }

    #[test]
    fn an_end_waits_for_its_record_for_a_moment_and_for_ever_if_its_slave_forgets_it() {
        let now = Instant::now();
        let moment = Duration::from_secs(3);
        let mut standing = Standing::new();
        standing.write(SEAT);
        assert_eq!(standing.written(), NOBODY);
        assert!(!standing.waits());
        standing.hold(0, Some(now + moment), now);
        standing.hold(1, None, now);
        assert!(standing.waits());
        assert_eq!(standing.release(SEAT, now), NOBODY);
        standing.write(SEAT);
        standing.failed(false);
        assert!(!standing.waits(), "a store that fails is not pressed");
        assert_eq!(standing.release(None, now + moment), NOBODY);
        assert_eq!(standing.release(SEAT, now + moment), [0]);
        assert_eq!(standing.release(SEAT, now + 100 * moment), NOBODY);
        standing.write(SEAT);
        assert_eq!(standing.written(), [1]);
    }

    #[test]
    fn a_lost_candidacy_is_made_up_for_only_by_a_record_that_names_the_next() {
        let mut standing = Standing::new();
        standing.write(SEAT);
        assert_eq!(standing.written(), NOBODY);
        standing.write(NEXT);
        ended(&mut standing);
        assert_eq!(standing.release(NEXT, Instant::now()), NOBODY);
        standing.failed(false);
        assert_eq!(standing.release(NEXT, Instant::now()), NOBODY);
        standing.write(NEXT);
        ended(&mut standing);
        assert_eq!(standing.written(), [0, 1], "what came behind is not in it");
        assert_eq!(standing.release(NEXT, Instant::now()), [0]);
        // The record that was written last names no candidacy.
        standing.write(None);
        assert_eq!(standing.written(), [1]);
        assert!(!standing.is_sure(NEXT) && standing.may_become_sure(NEXT));
    }

    #[test]
    fn of_a_write_that_is_not_clear_nothing_is_told() {
        let mut standing = Standing::new();
        standing.write(SEAT);
        assert_eq!(standing.written(), NOBODY);
        ended(&mut standing);
        standing.write(SEAT);
        standing.failed(false);
        assert_eq!(standing.release(None, Instant::now()), NOBODY);
        assert!(standing.holds_since().is_some());
    }
}
