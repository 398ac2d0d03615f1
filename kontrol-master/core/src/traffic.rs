//! How much each caller asks of a master, and what is too much: reads and actions, never keepalives. PURE.
//!
//! ```text
//! rate      ▕██████▏  a bucket for each caller; full it holds what one second allows, and it fills evenly
//! streams   ▕███   ▏  a count for each caller
//! requests  ▕████  ▏  one count for all; of which one caller has half at the most, so that nobody shuts the others out
//! ```
//!
//! A caller whose bucket is full and who has nothing open is as one that never came, so that forgetting it loses nothing.
//! Of all others so many are remembered; those that come beyond that share one account, until somebody falls idle.

use std::{collections::HashMap, hash::Hash, time::Duration};
use tokio::time::Instant;

/// How many callers are remembered.
const MAX_CALLERS: usize = 10_000;
/// What a full bucket holds, as the time that it takes to fill.
const BURST: Duration = Duration::from_secs(1);

/// How much is not too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Reads and actions that a caller may begin in a second.
    pub rate: u32,
    /// Streams that a caller may have open.
    pub streams: usize,
    /// Requests that are worked on at a time, of all callers.
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: 1000,
            streams: 1000,
            requests: 512,
        }
    }
}

impl Limits {
    /// How many of the requests one caller may have.
    pub fn share(&self) -> usize {
        self.requests.div_ceil(2)
    }
}

/// What somebody begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A stream, which may stay open.
    Stream,
    /// A request, which is worked on until its answer is gone.
    Request,
    /// A request that is answered on the spot.
    Glance,
}

/// What is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// The caller's calls in this second.
    Rate,
    /// The caller's open streams.
    Streams,
    /// The caller's requests that are worked on.
    Share,
    /// Everybody's.
    Requests,
}

/// What one caller has begun.
#[derive(Debug, Default)]
struct Account {
    /// When the bucket is full again, unless it is.
    full: Option<Instant>,
    streams: usize,
    requests: usize,
}

impl Account {
    fn is_idle(&self, now: Instant) -> bool {
        self.streams == 0 && self.requests == 0 && self.full.is_none_or(|full| full <= now)
    }
}

/// A call that goes on: to be given back with [`Traffic::end`].
#[derive(Debug)]
#[must_use = "it counts until it is given back"]
pub struct Ticket<K> {
    /// Whose account it is on; none: the shared one.
    who: Option<K>,
    call: Call,
}

/// Counts what goes on.
#[derive(Debug)]
pub struct Traffic<K> {
    limits: Limits,
    /// How much of a bucket one call takes.
    each: Duration,
    accounts: HashMap<K, Account>,
    /// Of those for whom there was no room.
    shared: Account,
    requests: usize,
    /// When the idle ones were forgotten last: it takes a look at all of them.
    swept: Option<Instant>,
}

impl<K: Clone + Eq + Hash> Traffic<K> {
    /// No traffic yet.
    pub fn new(limits: Limits) -> Self {
        let each = BURST / limits.rate.max(1);
        Self {
            limits,
            each,
            accounts: HashMap::new(),
            shared: Account::default(),
            requests: 0,
            swept: None,
        }
    }

    /// What is not too much.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Somebody begins a call. What is turned away takes nothing.
    pub fn begin(&mut self, who: &K, call: Call, now: Instant) -> Result<Ticket<K>, Excess> {
        let is_known = self.accounts.contains_key(who) || self.has_room(now);
        let account = if is_known {
            self.accounts.entry(who.clone()).or_default()
        } else {
            &mut self.shared
        };
        let full = account.full.map_or(now, |full| full.max(now)) + self.each;
        match call {
            _ if full > now + BURST => return Err(Excess::Rate),
            Call::Stream if account.streams >= self.limits.streams => return Err(Excess::Streams),
            Call::Request if self.requests >= self.limits.requests => return Err(Excess::Requests),
            Call::Request if account.requests >= self.limits.share() => return Err(Excess::Share),
            Call::Stream => account.streams += 1,
            Call::Request => {
                account.requests += 1;
                self.requests += 1;
            }
            Call::Glance => {}
        }
        account.full = Some(full);
        Ok(Ticket {
            who: is_known.then(|| who.clone()),
            call,
        })
    }

    /// A call has come to its end.
    pub fn end(&mut self, ticket: &Ticket<K>) {
        let account = match &ticket.who {
            // Nobody is forgotten who has something open.
            Some(who) => self.accounts.get_mut(who),
            None => Some(&mut self.shared),
        };
        let Some(account) = account else { return };
        match ticket.call {
            Call::Stream => account.streams = account.streams.saturating_sub(1),
            Call::Request => {
                account.requests = account.requests.saturating_sub(1);
                self.requests = self.requests.saturating_sub(1);
            }
            Call::Glance => {}
        }
    }

    /// Whether one more can be remembered, after forgetting the idle ones if need be. A look at all of them is worth it no
    /// more often than they can fall idle.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_due = self.swept.is_none_or(|swept| now >= swept + BURST);
        if self.accounts.len() >= MAX_CALLERS && is_due {
            self.accounts.retain(|_, account| !account.is_idle(now));
            self.swept = Some(now);
        }
        self.accounts.len() < MAX_CALLERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(rate: u32, streams: usize, requests: usize) -> Traffic<usize> {
        Traffic::new(Limits {
            rate,
            streams,
            requests,
        })
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_caller_may_begin_a_seconds_worth_at_once_and_then_evenly() {
        let (mut traffic, now) = (traffic(10, 1, 1), Instant::now());
        let mut begun = |who, at| {
            let calls = std::iter::repeat_with(|| traffic.begin(&who, Call::Glance, at).is_ok());
            calls.take_while(|begun| *begun).count()
        };
        assert_eq!(begun(1, now), 10);
        assert_eq!(begun(2, now), 10, "the other one has its own");
        assert_eq!(begun(1, now + millis(99)), 0);
        assert_eq!(begun(1, now + millis(250)), 2);
        assert_eq!(begun(1, now + millis(300)), 1);
        assert_eq!(
            begun(1, now + millis(60_000)),
            10,
            "no more than a second's"
        );
        assert_eq!(begun(1, now), 0, "a clock that is behind gives nothing");
    }

    #[test]
    fn every_rate_gives_what_it_says() {
        for rate in [1, 2, 3, 7, 999, 1000, 30_000] {
            let (mut traffic, now) = (traffic(rate, 1, 1), Instant::now());
            let mut begun: u32 = 0;
            for step in 0..=100 {
                let at = now + millis(step * 100);
                while traffic.begin(&1, Call::Glance, at).is_ok() {
                    begun += 1;
                }
            }
            // One second's worth at once, and ten seconds.
            assert!(
                begun.abs_diff(11 * rate) <= 1 + rate / 1000,
                "{rate}: {begun}"
            );
        }
    }

    #[test]
    fn streams_count_for_each_caller_until_they_end() {
        let (mut traffic, now) = (traffic(1000, 2, 1), Instant::now());
        let first = traffic.begin(&1, Call::Stream, now).unwrap();
        let _second = traffic.begin(&1, Call::Stream, now).unwrap();
        let _other = traffic.begin(&2, Call::Stream, now).unwrap();
        let beyond = traffic.begin(&1, Call::Stream, now);
        assert_eq!(beyond.unwrap_err(), Excess::Streams);
        traffic.end(&first);
        let _third = traffic.begin(&1, Call::Stream, now).unwrap();
    }

    #[test]
    fn nobody_shuts_the_others_out() {
        let (mut traffic, now) = (traffic(1000, 1, 4), Instant::now());
        let mine = [(); 2].map(|()| traffic.begin(&1, Call::Request, now).unwrap());
        let beyond = traffic.begin(&1, Call::Request, now);
        assert_eq!(beyond.unwrap_err(), Excess::Share);
        let _theirs = [2, 3].map(|who| traffic.begin(&who, Call::Request, now).unwrap());
        let beyond = traffic.begin(&4, Call::Request, now);
        assert_eq!(beyond.unwrap_err(), Excess::Requests);
        let _glance = traffic.begin(&4, Call::Glance, now).unwrap();
        traffic.end(&mine[0]);
        let _last = traffic.begin(&4, Call::Request, now).unwrap();
    }

    #[test]
    fn what_is_turned_away_takes_nothing() {
        let (mut traffic, now) = (traffic(2, 1, 1), Instant::now());
        let open = traffic.begin(&1, Call::Stream, now).unwrap();
        for _ in 0..100 {
            let beyond = traffic.begin(&1, Call::Stream, now);
            assert_eq!(beyond.unwrap_err(), Excess::Streams);
        }
        traffic.end(&open);
        let _again = traffic.begin(&1, Call::Stream, now).unwrap();
        let spent = traffic.begin(&1, Call::Stream, now);
        assert_eq!(spent.unwrap_err(), Excess::Rate);
    }

    #[test]
    fn so_many_callers_are_remembered_and_the_idle_ones_forgotten_first() {
        let (mut traffic, now) = (traffic(1, 1, 1), Instant::now());
        let open = traffic.begin(&0, Call::Stream, now).unwrap();
        for who in 1..MAX_CALLERS {
            let _ = traffic.begin(&who, Call::Glance, now).unwrap();
        }
        // All of them are busy: two that come now share one account.
        let shared = traffic.begin(&MAX_CALLERS, Call::Stream, now).unwrap();
        let beyond = traffic.begin(&(MAX_CALLERS + 1), Call::Glance, now);
        assert_eq!(beyond.unwrap_err(), Excess::Rate);
        assert_eq!(traffic.accounts.len(), MAX_CALLERS);
        let later = now + BURST;
        let _ = traffic
            .begin(&(MAX_CALLERS + 1), Call::Glance, later)
            .unwrap();
        assert_eq!(
            traffic.accounts.len(),
            2,
            "whoever has something open, and the new one"
        );
        let beyond = traffic.begin(&0, Call::Stream, later);
        assert_eq!(beyond.unwrap_err(), Excess::Streams);
        traffic.end(&shared);
        traffic.end(&open);
        assert_eq!(traffic.shared.streams, 0);
        assert!(
            traffic
                .accounts
                .values()
                .all(|account| account.streams == 0)
        );
    }
}
