//! When the next keepalive of a tier is due. PURE: time and luck come as arguments.
//!
//! ```text
//!  start    answered            answered        lost        all failed       answered
//!    ●─────────●───────────────────●──────────────●●●─────────────●●●────────────●──────▶
//!   at once      interval ± 10%      interval       next address    drawn from     interval
//!                                                   at once         [0, back-off]
//! ```
//!
//! A change of what is reported is sent at once while masters answer, but no two keepalives for changes are closer than
//! [`CHANGE_GAP`]; while they don't, the back-off stands and the next attempt carries the change. The back-off doubles up
//! to the interval, so that a tier that comes back is found within about an interval.

use std::time::Duration;
use tokio::time::Instant;

/// The interval until a master names one.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// What an interval is held to, whatever a master says: below, keepalives would be a flood; above, a slave would seem dead.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// The longest back-off before the first answer: the pod may be known from an earlier start, and its TTL is running.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
/// The first back-off after every address failed.
const FAILED_BACKOFF: Duration = Duration::from_millis(200);
/// The first back-off after a master refused what the keepalive says: only a change of it can help.
const REFUSED_BACKOFF: Duration = Duration::from_secs(1);
/// The least time between two keepalives for changes.
pub const CHANGE_GAP: Duration = Duration::from_millis(100);
/// How far an interval is stretched or cut, to each side.
const JITTER: f64 = 0.1;
/// The longest time for one step of an attempt (lookup, connect, request), and the shortest for intervals of nothing.
const STEPS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// How long a slave that reports at this interval waits for an answer: a master must decide in less, and refuse while the
/// slave still listens. The three steps of an attempt together stay below an interval, unless it is shorter than a second:
/// then a busy machine's hiccup must still not look like a death.
pub fn patience(interval: Duration) -> Duration {
    (interval / 4).clamp(STEPS.0, STEPS.1)
}

/// How the last attempts went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Masters answer.
    Steady,
    /// A master refused what the keepalive says, this often in a row.
    Refused(u32),
    /// Every address failed, this often in a row.
    Failing(u32),
}

/// When the next keepalive of a tier is due.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    /// No master named an interval yet.
    fresh: bool,
    phase: Phase,
    /// When the last attempt began.
    last: Option<Instant>,
    due: Instant,
}

impl Schedule {
    /// The first keepalive is due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            interval: FIRST_INTERVAL,
            fresh: true,
            phase: Phase::Steady,
            last: None,
            due: now,
        }
    }

    /// When the next attempt is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The time that one step of an attempt (lookup, connect, request) may take.
    pub fn step_limit(&self) -> Duration {
        patience(self.interval)
    }

    /// An attempt begins.
    pub fn begin(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// What is reported changed.
    pub fn changed(&mut self, now: Instant) {
        if let Phase::Failing(_) = self.phase {
            return;
        }
        let soonest = self.last.map_or(now, |last| now.max(last + CHANGE_GAP));
        self.due = self.due.min(soonest);
    }

    /// The pod should be heard soon: within `bound`, at a moment drawn by lot, so that all who lost one master don't come
    /// back at once. While no master answers, the back-off stands. `luck` is from 0 to 1.
    pub fn hasten(&mut self, now: Instant, bound: Duration, luck: f64) {
        if !matches!(self.phase, Phase::Failing(_)) {
            let soon = now + bound.mul_f64(luck.clamp(0.0, 1.0));
            let gap = self.last.map_or(now, |last| last + CHANGE_GAP);
            self.due = self.due.min(soon.max(gap));
        }
    }

    /// A master answered and named its interval. `luck` is from 0 to 1.
    pub fn answered(&mut self, now: Instant, interval: Option<Duration>, luck: f64) {
        self.phase = Phase::Steady;
        if let Some(interval) = interval {
            self.interval = interval.clamp(INTERVALS.0, INTERVALS.1);
            self.fresh = false;
        }
        // From the begin of the attempt, so that a slow answer does not stretch the pace.
        let pace = self.interval.mul_f64(1.0 + JITTER * (2.0 * luck - 1.0));
        self.due = now.max(self.last.unwrap_or(now) + pace);
    }

    /// The same is to be said again at once, over a new connection.
    pub fn renewed(&mut self, now: Instant) {
        self.due = now;
    }

    /// A master refused what the keepalive says.
    pub fn refused(&mut self, now: Instant, luck: f64) {
        let row = match self.phase {
            Phase::Refused(row) => row.saturating_add(1),
            Phase::Steady | Phase::Failing(_) => 0,
        };
        self.phase = Phase::Refused(row);
        self.due = now + backoff(REFUSED_BACKOFF, self.interval, row, luck);
    }

    /// One address failed. `exhausted`: it was the last; otherwise the next one's turn is at once.
    pub fn failed(&mut self, now: Instant, exhausted: bool, luck: f64) {
        let row = match self.phase {
            Phase::Failing(row) => row,
            Phase::Steady | Phase::Refused(_) => 0,
        };
        if exhausted {
            let most = if self.fresh {
                FIRST_BACKOFF
            } else {
                self.interval
            };
            self.due = now + backoff(FAILED_BACKOFF, most, row, luck);
            self.phase = Phase::Failing(row.saturating_add(1));
        } else {
            self.due = now;
        }
    }
}

/// Full jitter: anything from nothing to the bound, which doubles with each failure up to `most`.
fn backoff(first: Duration, most: Duration, row: u32, luck: f64) -> Duration {
    let bound = first.saturating_mul(1 << row.min(16)).min(most);
    bound.mul_f64(luck.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn steady(interval: Duration) -> (Schedule, Instant) {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.begin(now);
        schedule.answered(now, Some(interval), 0.5);
        (schedule, now)
    }

    #[test]
    fn the_first_keepalive_is_due_at_once() {
        let now = Instant::now();
        assert_eq!(Schedule::new(now).due(), now);
        assert_eq!(Schedule::new(now).step_limit(), Duration::from_millis(1250));
    }

    #[test]
    fn a_change_is_due_at_once_but_changes_keep_a_gap() {
        let (mut schedule, now) = steady(5 * SECOND);
        let later = now + SECOND;
        schedule.changed(later);
        assert_eq!(schedule.due(), later);
        schedule.begin(later);
        schedule.answered(later, None, 0.5);
        schedule.changed(later);
        assert_eq!(schedule.due(), later + CHANGE_GAP);
    }

    #[test]
    fn a_change_does_not_shorten_the_back_off_of_a_tier_that_is_away() {
        let (mut schedule, now) = steady(5 * SECOND);
        schedule.failed(now, true, 1.0);
        let due = schedule.due();
        schedule.changed(now);
        assert_eq!(schedule.due(), due);
    }

    #[test]
    fn a_change_is_tried_at_once_after_a_refusal() {
        let (mut schedule, now) = steady(5 * SECOND);
        schedule.refused(now, 1.0);
        schedule.changed(now + SECOND / 2);
        assert_eq!(schedule.due(), now + SECOND / 2);
    }

    #[test]
    fn the_next_address_is_tried_at_once_and_only_then_time_passes() {
        let (mut schedule, now) = steady(5 * SECOND);
        schedule.failed(now, false, 1.0);
        assert_eq!(schedule.due(), now);
        let waits: Vec<u128> = (0..8)
            .map(|_| {
                schedule.failed(now, true, 1.0);
                (schedule.due() - now).as_millis()
            })
            .collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn haste_brings_the_next_keepalive_forward_and_never_back() {
        let (mut schedule, now) = steady(5 * SECOND);
        let later = now + SECOND;
        schedule.hasten(later, SECOND, 0.5);
        assert_eq!(schedule.due(), later + SECOND / 2);
        schedule.hasten(later, 60 * SECOND, 1.0);
        assert_eq!(schedule.due(), later + SECOND / 2);
        schedule.hasten(now, SECOND, 0.0);
        assert_eq!(schedule.due(), now + CHANGE_GAP, "keepalives keep a gap");
        schedule.failed(now, true, 1.0);
        let due = schedule.due();
        schedule.hasten(now, SECOND, 0.0);
        assert_eq!(schedule.due(), due);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Answered(u64),
        Refused,
        Failed(bool),
        Changed,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..20_000_u64).prop_map(Event::Answered),
            Just(Event::Refused),
            any::<bool>().prop_map(Event::Failed),
            Just(Event::Changed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_next_attempt_is_never_past_and_never_beyond_the_interval(
            events in prop::collection::vec((any_event(), 0.0..=1.0_f64, 0..3000_u64), 1..40)
        ) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(now);
            for (event, luck, pause) in events {
                // Changes come while it waits; everything else ends an attempt, which takes a while.
                if let Event::Changed = event {
                    now = schedule.due().min(now + Duration::from_millis(pause));
                    schedule.changed(now);
                } else {
                    now = now.max(schedule.due());
                    schedule.begin(now);
                    now += Duration::from_millis(pause).min(schedule.step_limit());
                    match event {
                        Event::Answered(millis) => schedule.answered(now, Some(Duration::from_millis(millis)), luck),
                        Event::Refused => schedule.refused(now, luck),
                        Event::Failed(last) => schedule.failed(now, last, luck),
                        Event::Changed => unreachable!(),
                    }
                }
                prop_assert!(schedule.due() >= now);
                prop_assert!(schedule.due() - now <= schedule.interval.mul_f64(1.0 + JITTER));
                prop_assert!(schedule.interval >= INTERVALS.0);
            }
        }

        #[test]
        fn the_pace_is_the_interval_give_or_take_a_tenth(millis in 100..60_000_u64, luck in 0.0..=1.0_f64) {
            let interval = Duration::from_millis(millis);
            let (mut schedule, now) = steady(interval);
            schedule.begin(now);
            schedule.answered(now, Some(interval), luck);
            let pace = (schedule.due() - now).as_secs_f64() / interval.as_secs_f64();
            prop_assert!((0.8999..=1.1001).contains(&pace), "{pace}");
        }

        #[test]
        fn the_steps_of_an_attempt_fit_into_an_interval(millis in 801..600_000_u64) {
            let (schedule, _) = steady(Duration::from_millis(millis));
            prop_assert!(schedule.step_limit() * 3 < schedule.interval);
        }

        #[test]
        fn changes_never_flood(pauses in prop::collection::vec(0..30_u64, 1..50)) {
            let (mut schedule, start) = steady(5 * SECOND);
            let (mut now, mut sent) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                if now >= schedule.due() {
                    schedule.begin(now);
                    schedule.answered(now, None, 0.5);
                    sent += 1;
                }
                schedule.changed(now);
            }
            prop_assert!(CHANGE_GAP * sent <= now - start);
        }
    }
}
