//! The leases that this master was given and their times to live, because etcd's answer to a beat is only that the lease
//! lives. PURE: time is an argument.
//!
//! Most leases are never kept alive, only left to end; so an entry goes when its lease may have ended unheard.

use kontrol_core::kv::LeaseId;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Below this many nobody looks for those that have ended.
const FEW: usize = 64;

/// The leases whose time to live is known.
#[derive(Debug)]
pub(super) struct Leases {
    known: HashMap<LeaseId, Known>,
    /// At this many, those that have ended are dropped.
    look_at: usize,
}

#[derive(Debug)]
struct Known {
    ttl: Duration,
    /// When it ends unless it is kept alive.
    until: Instant,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            look_at: FEW,
        }
    }
}

impl Leases {
    /// The lease has its full time from now on.
    pub(super) fn lives(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        let until = now + ttl;
        self.known.insert(lease, Known { ttl, until });
        if self.known.len() >= self.look_at {
            self.known.retain(|_, known| known.until > now);
            self.look_at = FEW.max(self.known.len() * 2);
        }
    }

    /// The lease is gone.
    pub(super) fn ended(&mut self, lease: LeaseId) {
        self.known.remove(&lease);
    }

    /// Its time to live.
    pub(super) fn ttl(&self, lease: LeaseId) -> Option<Duration> {
        self.known.get(&lease).map(|known| known.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_are_left_to_end_are_forgotten_and_those_kept_alive_are_not() {
        let mut leases = Leases::default();
        let ttl = Duration::from_secs(3600);
        let kept = LeaseId(-1);
        let mut now = Instant::now();
        leases.lives(kept, Duration::from_secs(5), now);
        for n in 0..100_000 {
            now += Duration::from_secs(1);
            leases.lives(LeaseId(n), ttl, now);
            leases.lives(kept, Duration::from_secs(5), now);
            // An hour's worth lives at any time.
            assert!(
                leases.known.len() <= 2 * 3602,
                "{} at {n}",
                leases.known.len()
            );
        }
        assert_eq!(leases.ttl(kept), Some(Duration::from_secs(5)));
        assert_eq!(leases.ttl(LeaseId(99_999)), Some(ttl));
        assert_eq!(leases.ttl(LeaseId(0)), None);
        leases.ended(kept);
        assert_eq!(leases.ttl(kept), None);
    }
}
