//! Which way a keepalive takes to count, and for how long it tries. PURE.

use super::Link;
use std::time::Duration;

/// The limits of the path of a keepalive, all derived from the one that it serves: how long a slave waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long the leader may take to acknowledge, before the detour is tried as well.
    pub patience: Duration,
    /// How long a keepalive waits to be counted, both ways included.
    pub answer: Duration,
}

impl Limits {
    /// The limits for pods that report this often. A slave gives each step of an attempt a quarter of its interval.
    pub fn serving(interval: Duration) -> Self {
        let slave = (interval / 4).clamp(Duration::from_millis(250), Duration::from_secs(2));
        Self {
            patience: slave / 5,
            // Whoever waits longer than a slave, as HTTP clients do, gets the worst case of the detour at a short interval.
            answer: slave.mul_f64(0.9).max(Duration::from_millis(400)),
        }
    }
}

/// What decides about the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// This master leads, and its lease is confirmed.
    pub(super) leads: bool,
    /// Other masters can share the store.
    pub(super) shared: bool,
    /// The store's watch is up.
    pub(super) sees_store: bool,
    /// How this master and the leader are linked.
    pub(super) link: Link,
}

/// The way of a keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It counts here and now.
    Here,
    /// Over the stream, and with the detour when that takes long.
    Stream,
    /// Over the stream and with the detour, whichever is quicker.
    Both,
    /// Through the store.
    Detour,
    /// There is none.
    Refuse,
}

pub(super) fn way(sight: Sight) -> Way {
    // Whoever has the store for itself leads, or is about to.
    if sight.leads || !sight.shared {
        return Way::Here;
    }
    match sight.link {
        Link::Up => Way::Stream,
        Link::Opening | Link::Late => Way::Both,
        // That this master leads is no longer sure, or not yet.
        Link::Leading | Link::NoLeader | Link::Down | Link::Stranger => {
            if sight.sees_store {
                Way::Detour
            } else {
                Way::Refuse
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: [Link; 7] = [
        Link::Leading,
        Link::Up,
        Link::Opening,
        Link::Late,
        Link::NoLeader,
        Link::Down,
        Link::Stranger,
    ];

    fn of(link: Link, leads: bool, sees_store: bool) -> Way {
        way(Sight {
            leads,
            shared: true,
            sees_store,
            link,
        })
    }

    #[test]
    fn a_keepalive_counts_at_once_only_where_the_lease_is_confirmed() {
        for link in LINKS {
            for sees_store in [true, false] {
                assert_eq!(of(link, true, sees_store), Way::Here);
                assert_ne!(of(link, false, sees_store), Way::Here);
            }
        }
    }

    #[test]
    fn without_a_stream_a_keepalive_goes_through_the_store_or_is_refused() {
        for link in [Link::Leading, Link::NoLeader, Link::Down, Link::Stranger] {
            assert_eq!(of(link, false, true), Way::Detour);
            assert_eq!(of(link, false, false), Way::Refuse);
        }
    }

    #[test]
    fn a_stream_that_answers_is_enough_and_one_that_does_not_is_helped() {
        for sees_store in [true, false] {
            assert_eq!(of(Link::Up, false, sees_store), Way::Stream);
            assert_eq!(of(Link::Opening, false, sees_store), Way::Both);
            assert_eq!(of(Link::Late, false, sees_store), Way::Both);
        }
    }

    #[test]
    fn a_store_that_nobody_shares_needs_no_leader() {
        for link in LINKS {
            let sight = Sight {
                leads: false,
                shared: false,
                sees_store: false,
                link,
            };
            assert_eq!(way(sight), Way::Here);
        }
    }

    #[test]
    fn all_limits_fit_into_what_a_slave_waits() {
        for seconds in [5, 25, 60, 3600] {
            let interval = Duration::from_secs(seconds) / 5;
            let slave = (interval / 4).clamp(Duration::from_millis(200), Duration::from_secs(2));
            let limits = Limits::serving(interval);
            assert!(limits.patience < slave / 3, "{limits:?}");
            assert!(
                limits.answer <= slave.max(Duration::from_millis(400)),
                "{limits:?}"
            );
        }
    }
}
