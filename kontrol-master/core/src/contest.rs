//! Who was refused lately, and where several pods fight over one place. PURE: time is an argument.
//!
//! Two pods on one address, or one pod started twice, each count as the newer start of the place's owner. The one that
//! came last has the place, and earlier ones are refused: so two come to rest at once, and so do as many as a record
//! remembers. More than that would take the place from each other for ever. Such a fight differs from real restarts in
//! that those who lost the place go on reporting: a process that was restarted is not heard any more. In a fight the
//! place may be taken over a few times at once, and from then on only after a time that doubles with each take-over.
//!
//! Bounded: the places that were quiet longest are forgotten first.

use crate::{
    kv::Revision,
    model::{Incarnation, PodKey},
};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// How long a refusal counts.
const MEMORY: Duration = Duration::from_secs(300);
/// Most places that are remembered.
const MAX_PLACES: usize = 1024;
/// Most incarnations that are remembered for a place.
const MAX_REFUSED: usize = 64;
/// Several fight over a place where so many keepalives were refused lately. One or two may just have come late.
const FIGHT: u32 = 3;
/// Most take-overs that are remembered for a place. Who takes it over so often within that time is no restart.
const MAX_SEATED: usize = 256;
/// An incarnation that is refused so often, and over so long, is alive: what a dead one has sent comes all at once.
const ALIVE: (u32, Duration) = (3, Duration::from_secs(2));
/// So many take-overs of a place that is fought over are free: as many as a record remembers incarnations.
pub const FREE: u32 = crate::model::incarnation::MAX_RETIRED as u32;
/// How long an owner keeps a place that is fought over, once the free take-overs are used up.
const REIGN: Duration = Duration::from_secs(10);
/// How often that time doubles at most: some three hours.
const MAX_DOUBLINGS: u32 = 10;
/// An operator is told of a place this often.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// And of so many places within that time.
const MAX_WARNINGS: usize = 10;

/// A keepalive that is refused, because another has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The place.
    pub key: PodKey,
    /// Who is refused.
    pub who: Incarnation,
    /// The revision of what it was held against.
    pub against: Revision,
    /// Who has the place.
    pub owner: Option<Incarnation>,
}

/// What an operator is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Warning {
    /// Who was refused lately.
    pub refused: Vec<Incarnation>,
    /// About how many other places nothing was said.
    pub unsaid: usize,
}

#[derive(Debug)]
struct Refused {
    who: Incarnation,
    against: Revision,
    count: u32,
    first: Instant,
    last: Instant,
}

#[derive(Debug, Default)]
struct Place {
    refused: Vec<Refused>,
    /// Who took the place over.
    seated: VecDeque<(Incarnation, Instant)>,
    warned: Option<Instant>,
}

impl Place {
    fn last(&self) -> Option<Instant> {
        let refused = self.refused.iter().map(|one| one.last);
        let seated = self.seated.iter().map(|(_, at)| *at);
        refused.chain(seated).max()
    }
}

/// The refusals of this master.
#[derive(Debug, Default)]
pub struct Contests {
    places: HashMap<PodKey, Place>,
    /// When operators were told of a place.
    warnings: Vec<Instant>,
    unsaid: usize,
}

impl Contests {
    fn refused_lately(&self, key: PodKey, now: Instant) -> impl Iterator<Item = &Refused> {
        let place = self.places.get(&key);
        let refused = place.into_iter().flat_map(|place| &place.refused);
        refused.filter(move |one| now.saturating_duration_since(one.last) < MEMORY)
    }

    fn refused(&self, key: PodKey, who: &Incarnation, now: Instant) -> Option<&Refused> {
        self.refused_lately(key, now).find(|one| one.who == *who)
    }

    /// Whether several fight over a place that this incarnation wants.
    pub fn is_fought_over(&self, key: PodKey, who: &Incarnation, now: Instant) -> bool {
        let counts = self.refused_lately(key, now).map(|one| one.count);
        if counts.fold(0, u32::saturating_add) >= FIGHT {
            return true;
        }
        let Some(place) = self.places.get(&key) else {
            return false;
        };
        let (mut count, mut came_back) = (0, false);
        for (one, at) in &place.seated {
            if now.saturating_duration_since(*at) < MEMORY {
                count += 1;
                came_back |= one == who;
            }
        }
        came_back || count >= MAX_SEATED
    }

    /// Notes that an incarnation took a place over from another.
    pub fn seat(&mut self, key: PodKey, who: Incarnation, now: Instant) {
        let place = self.place(key, now);
        place.seated.retain(|(one, _)| *one != who);
        place.seated.push_back((who, now));
        let excess = place.seated.len().saturating_sub(MAX_SEATED);
        place.seated.drain(..excess);
    }

    /// Whether an incarnation that was refused is alive for sure.
    pub fn is_alive(&self, key: PodKey, who: &Incarnation, now: Instant) -> bool {
        self.refused(key, who, now)
            .is_some_and(|one| one.count >= ALIVE.0 && one.last - one.first >= ALIVE.1)
    }

    /// Whether an incarnation was refused already because of what this revision wrote.
    pub fn is_known(
        &self,
        key: PodKey,
        who: &Incarnation,
        against: Revision,
        now: Instant,
    ) -> bool {
        self.refused(key, who, now)
            .is_some_and(|one| one.against == against)
    }

    /// What is remembered of a place, which is the one that was quiet longest no more.
    fn place(&mut self, key: PodKey, now: Instant) -> &mut Place {
        if !self.places.contains_key(&key) && self.places.len() >= MAX_PLACES {
            let fresh = |at: Instant| now.saturating_duration_since(at) < MEMORY;
            self.places
                .retain(|_, place| place.last().is_some_and(fresh));
            if self.places.len() >= MAX_PLACES {
                let oldest = self.places.iter().min_by_key(|(_, place)| place.last());
                if let Some(oldest) = oldest.map(|(key, _)| *key) {
                    self.places.remove(&oldest);
                }
            }
        }
        self.places.entry(key).or_default()
    }

    /// Notes a refusal. Tells what an operator is to be told, where it is time for that.
    pub fn note(&mut self, refusal: &Refusal, now: Instant) -> Option<Warning> {
        let fresh = |one: &Refused| now.saturating_duration_since(one.last) < MEMORY;
        let place = self.place(refusal.key, now);
        place.refused.retain(fresh);
        let index = place.refused.iter().position(|one| one.who == refusal.who);
        let mut one = match index {
            Some(index) => place.refused.remove(index),
            None => Refused {
                who: refusal.who.clone(),
                against: refusal.against,
                count: 0,
                first: now,
                last: now,
            },
        };
        one.count = one.count.saturating_add(1);
        (one.against, one.last) = (refusal.against, now);
        let again = one.count > 1;
        place.refused.push(one);
        let excess = place.refused.len().saturating_sub(MAX_REFUSED);
        place.refused.drain(..excess);
        // One that is refused once may just have come late.
        let due = again
            && place
                .warned
                .is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY);
        if !due {
            return None;
        }
        place.warned = Some(now);
        let refused = place.refused.iter().map(|one| one.who.clone()).collect();
        self.warnings
            .retain(|at| now.saturating_duration_since(*at) < WARN_EVERY);
        if self.warnings.len() >= MAX_WARNINGS {
            self.unsaid += 1;
            return None;
        }
        self.warnings.push(now);
        Some(Warning {
            refused,
            unsaid: std::mem::take(&mut self.unsaid),
        })
    }
}

/// How long an owner keeps a place after so many take-overs in a fight.
pub fn reign(contests: u32) -> Duration {
    match contests.checked_sub(FREE) {
        Some(more) => REIGN * 2_u32.pow(more.min(MAX_DOUBLINGS)),
        None => Duration::ZERO,
    }
}

/// The count of take-overs of a place after one more.
pub fn count(contests: u32, fought_over: bool) -> u32 {
    if fought_over {
        contests.saturating_add(1)
    } else {
        contests / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(who: u32) -> Refusal {
        Refusal {
            key: PodKey::ONE,
            who: Incarnation::new("web-1", &who.to_string()),
            against: 7,
            owner: None,
        }
    }

    #[test]
    fn who_comes_late_is_not_alive_and_who_goes_on_is() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let late = refusal(1);
        for _ in 0..10 {
            contests.note(&late, start);
        }
        assert!(!contests.is_alive(late.key, &late.who, start));
        let later = start + ALIVE.1;
        contests.note(&late, later);
        assert!(contests.is_alive(late.key, &late.who, later));
        assert!(!contests.is_alive(late.key, &refusal(2).who, later));
        assert!(!contests.is_alive(late.key, &late.who, later + MEMORY));
    }

    #[test]
    fn a_place_is_fought_over_while_keepalives_are_refused() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let new = refusal(99).who;
        for who in 0..FIGHT {
            assert!(!contests.is_fought_over(PodKey::ONE, &new, start));
            contests.note(&refusal(who), start);
        }
        assert!(contests.is_fought_over(PodKey::ONE, &new, start));
        assert!(!contests.is_fought_over(PodKey::ONE, &new, start + MEMORY));
        assert!(contests.is_known(PodKey::ONE, &refusal(0).who, 7, start));
        assert!(!contests.is_known(PodKey::ONE, &refusal(0).who, 8, start));
    }

    #[test]
    fn who_takes_a_place_over_again_fights_and_who_is_restarted_often_does_not() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        for who in 0..100 {
            let who = refusal(who).who;
            assert!(!contests.is_fought_over(PodKey::ONE, &who, start));
            contests.seat(PodKey::ONE, who, start);
        }
        assert!(contests.is_fought_over(PodKey::ONE, &refusal(0).who, start));
        assert!(!contests.is_fought_over(PodKey::ONE, &refusal(0).who, start + MEMORY));
        for who in 100..1000 {
            contests.seat(PodKey::ONE, refusal(who).who, start);
        }
        assert_eq!(contests.places[&PodKey::ONE].seated.len(), MAX_SEATED);
        assert!(contests.is_fought_over(PodKey::ONE, &refusal(5000).who, start));
    }

    #[test]
    fn an_operator_is_told_of_who_goes_on_now_and_again() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        assert_eq!(contests.note(&refusal(1), start), None);
        let warning = contests.note(&refusal(1), start).unwrap();
        assert_eq!(warning.refused, [refusal(1).who]);
        for second in 1..60 {
            let now = start + Duration::from_secs(second);
            assert_eq!(contests.note(&refusal(1), now), None);
        }
        assert!(contests.note(&refusal(1), start + WARN_EVERY).is_some());
    }

    #[test]
    fn what_is_remembered_and_said_is_bounded() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let mut said = 0;
        for place in 0..2 * MAX_PLACES {
            let key = PodKey::from_u128(place as u128);
            for who in [1, 1] {
                let one = Refusal {
                    key,
                    ..refusal(who)
                };
                said += usize::from(contests.note(&one, start).is_some());
            }
        }
        for who in 0..200 {
            contests.note(&refusal(who), start);
        }
        assert_eq!(said, MAX_WARNINGS);
        assert!(contests.places.len() <= MAX_PLACES);
        assert!(contests.places[&PodKey::ONE].refused.len() <= MAX_REFUSED);
    }

    #[test]
    fn a_place_that_is_fought_over_is_kept_longer_each_time() {
        assert_eq!(reign(FREE - 1), Duration::ZERO);
        assert_eq!(reign(FREE), REIGN);
        assert_eq!(reign(FREE + 1), 2 * REIGN);
        assert_eq!(reign(u32::MAX), reign(FREE + MAX_DOUBLINGS));
        assert_eq!(
            (count(4, true), count(4, false), count(0, false)),
            (5, 2, 0)
        );
    }
}
