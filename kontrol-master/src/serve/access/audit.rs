//! The audit: who did what, from where, and who was refused. Log events of the target `kontrol::audit`, at INFO.
//!
//! What was done is always told. Refusals are told up to a number each second, so that whoever tries tokens fills no disk;
//! all of them are counted in the metrics.

use super::{Caller, Identity, Proof};
use crate::metrics::Metrics;
use kontrol_core::access::table::{self, Kind};
use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Most refusals that are told in each second.
const MOST: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Tells what there is to tell. Cheap to clone: all clones share the number of each second.
#[derive(Debug, Clone)]
pub struct Audit {
    metrics: Arc<Metrics>,
    told: Arc<Mutex<[Told; KINDS]>>,
}

/// Whose refusals are told up to a number of their own: whoever tries TLS or tokens hides nothing that a known one tries.
#[derive(Debug, Clone, Copy)]
enum Of {
    Tls,
    Strangers,
    Known,
}

const KINDS: usize = 3;

/// How many refusals were told since when, and how many were not.
#[derive(Debug)]
struct Told {
    since: Instant,
    told: u32,
    left_out: u64,
}

impl Audit {
    /// Counts in these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let told = [(); KINDS].map(|()| Told {
            since: Instant::now(),
            told: 0,
            left_out: 0,
        });
        Self {
            metrics,
            told: Arc::new(Mutex::new(told)),
        }
    }

    /// Where it counts.
    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Somebody is about to change something, or to have it done: it is told with what became of it.
    pub(super) fn begin(&self, caller: &Caller, rpc: &str) -> Pending {
        let acts = table::find(rpc).is_some_and(|rule| rule.kind == Kind::Act);
        Pending(acts.then(|| (caller.clone(), rpc.to_owned())))
    }

    /// Somebody may not do what was asked for.
    pub(super) fn refused(&self, caller: &Caller, rpc: &str, status: &Status) {
        self.metrics.refused(status.code());
        let of = match caller.principal() {
            Some(_) => Of::Known,
            None => Of::Strangers,
        };
        if !self.tells(of) {
            return;
        }
        let (principal, role) = named(caller);
        let peer = caller.address;
        tracing::info!(
            target: "kontrol::audit", principal, role, shown = shown(caller), %peer, rpc, code = ?status.code(),
            reason = status.message(), "audit: refused"
        );
    }

    /// Somebody came to the port, and TLS did not come about.
    pub fn no_tls(&self, peer: SocketAddr, reason: &dyn fmt::Display) {
        self.metrics.handshake_failed();
        if self.tells(Of::Tls) {
            let peer = peer.ip();
            tracing::info!(target: "kontrol::audit", %peer, %reason, "audit: TLS refused");
        }
    }

    /// Whether one more refusal may be told; tells how many were left out before it.
    fn tells(&self, of: Of) -> bool {
        let left_out = self.may_tell(of, Instant::now());
        if let Some(left_out @ 1..) = left_out {
            tracing::info!(target: "kontrol::audit", left_out, "audit: more was refused");
        }
        left_out.is_some()
    }

    /// Whether one more may be told, and how many were not before it.
    fn may_tell(&self, of: Of, now: Instant) -> Option<u64> {
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut all[of as usize];
        if now.saturating_duration_since(told.since) >= SECOND {
            told.since = now;
            told.told = 0;
        }
        if told.told == MOST {
            told.left_out += 1;
            return None;
        }
        told.told += 1;
        Some(std::mem::take(&mut told.left_out))
    }
}

/// What is to be told of a call: at its end, or when its caller went away before.
#[must_use = "it is told when this is dropped"]
pub(super) struct Pending(Option<(Caller, String)>);

impl Pending {
    /// It came to its end.
    pub(super) fn done(mut self, code: Code) {
        self.tell(&format_args!("{code:?}"));
    }

    fn tell(&mut self, code: &dyn fmt::Debug) {
        let Some((caller, rpc)) = self.0.take() else {
            return;
        };
        let (principal, role) = named(&caller);
        let peer = caller.address;
        tracing::info!(
            target: "kontrol::audit", principal, role, shown = shown(&caller), %peer, rpc, ?code, "audit: called"
        );
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.tell(&format_args!(
            "Unknown: the caller went away, and it may have been done"
        ));
    }
}

fn named(caller: &Caller) -> (&str, &str) {
    match caller.principal() {
        Some(principal) => (principal.name(), principal.role().as_str()),
        None => ("", ""),
    }
}

/// By what somebody is known; never the thing itself.
fn shown(caller: &Caller) -> &'static str {
    match &caller.identity {
        Identity::Anyone => "nothing (no authentication)",
        Identity::Nobody => "nothing",
        Identity::Refused(_) => "something that does not count",
        Identity::Known(_, Proof::Token(_)) => "a token",
        Identity::Known(_, Proof::Run(_)) => "the token of the callback's run",
        Identity::Known(_, Proof::Certificate(_)) => "a certificate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_are_told_up_to_a_number_each_second_and_the_rest_is_counted() {
        let audit = Audit::new(Arc::default());
        let tell = || audit.may_tell(Of::Strangers, Instant::now());
        for _ in 0..MOST {
            assert_eq!(tell(), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(tell(), None);
        }
        assert_eq!(audit.may_tell(Of::Known, Instant::now()), Some(0));
        tokio::time::advance(SECOND).await;
        assert_eq!(tell(), Some(1000));
        assert_eq!(tell(), Some(0));
    }
}
