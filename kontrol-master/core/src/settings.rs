//! The settings of an ensemble that users are told about, and what follows from them.

use crate::{limits::Limits, safeguard::Policy};
use std::time::Duration;

/// A slave that lost its channel is back within about a second.
pub const MIN_LOST: Duration = Duration::from_secs(2);

/// The settings that users are told about.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the ensemble.
    pub namespace: String,
    /// App of the ensemble.
    pub app: String,
    /// How long a pod may be silent.
    pub ttl: Duration,
    /// How long the roster must be unchanged before the callback runs.
    pub damper: Duration,
    /// How long endless change can put the callback off.
    pub damper_max: Duration,
    /// Lease of the leader.
    pub fover: Duration,
    /// How long a pod may take to come back whose channel ended; zero: its TTL alone decides.
    pub lost: Duration,
    /// How long the history keeps an action.
    pub history: Duration,
    /// When removals for silence freeze.
    pub safeguard: Policy,
    /// How much callers may say.
    pub limits: Limits,
}

impl Settings {
    /// How often pods are told to report: a pod may lose four keepalives in a row.
    pub fn interval(&self) -> Duration {
        self.ttl / 5
    }

    /// How long a slave waits for the answer to a keepalive, unless it reports more often than each second. What a keepalive
    /// waits for may take no longer: the slave has gone on to the next master by then.
    pub fn patience(&self) -> Duration {
        (self.interval() / 4).clamp(Duration::from_millis(250), Duration::from_secs(2))
    }

    /// How long an action waits for a slave that is not attached: as long as one may take to come back.
    pub fn attach_limit(&self) -> Duration {
        self.lost.max(MIN_LOST)
    }
}
