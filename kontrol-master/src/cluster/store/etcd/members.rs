//! The members of an etcd, and how a call finds one that answers.
//!
//! One member is in use, the others wait in their order. A member that gives no answer in time, or can't be connected
//! to, hands over to the next, for this call when that is safe, and for the calls after it. So a member that is paused or
//! cut off costs one deadline, not one deadline a call. Each address of each name is a member (see `addresses`), with its
//! own connection; a balancer over all of them would go on giving a share of the calls to the one that is silent.
//!
//! A call has one deadline, that of whom it serves, and shares it out: each member that may still be asked gets as much
//! as the others. Connecting goes on beyond that, for the calls that follow. A call that writes is sent once; it goes on
//! to another member only when it certainly was not applied.

use super::{addresses::Name, connection, failure::Failure};
use crate::cluster::store::{EtcdOptions, StoreError};
use arc_swap::ArcSwap;
use etcd_client::{Client, Error};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

/// Least time that a member gets, unless the call has less: a connection with TLS takes several round trips.
const LEAST_SHARE: Duration = Duration::from_millis(150);
/// While members fail, their names are looked up again this often.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// How often a call may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Until it is answered: it changes nothing, or the same thing again.
    Repeatedly,
    /// Once, unless it certainly was not applied.
    Once,
}

/// Whose connection a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// The one that all calls share.
    Shared,
    /// A new one: a stream that is read slowly must not hold up the others.
    Own,
}

/// The members, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Members {
    names: Vec<Name>,
    known: ArcSwap<Known>,
    /// A member failed since the names were looked up.
    failed: AtomicBool,
    /// When the names were looked up last. Held by whoever does it.
    looked_up: Mutex<Option<Instant>>,
    options: Arc<EtcdOptions>,
}

/// The members at the addresses that are known.
#[derive(Debug, Default)]
struct Known {
    members: Vec<Arc<Member>>,
    /// The one in use.
    current: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    /// `host:port` as a person gave it: what etcd's certificate is for.
    name: String,
    address: SocketAddr,
    /// What it is called in errors and logs.
    label: String,
    connection: ArcSwap<Slot>,
    /// It has answered once, so it speaks as we do.
    has_answered: AtomicBool,
}

type Connecting = Shared<BoxFuture<'static, Result<Client, Failure>>>;

/// A connection, or the way to it: all who need it wait for the same attempt, and an attempt outlives who began it. It is
/// authenticated, when there is a user.
#[derive(Default)]
struct Slot(std::sync::OnceLock<Connecting>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.0.get().is_some())
    }
}

impl Members {
    pub(super) fn new(endpoints: &[String], options: EtcdOptions) -> Result<Self, StoreError> {
        if endpoints.is_empty() {
            return Err(StoreError::Refused("no etcd member is named".into()));
        }
        if options.user.is_some() != options.password.is_some() {
            return Err(StoreError::Refused(
                "KONTROL_ETCD_USER and KONTROL_ETCD_PASSWORD go together; one is missing".into(),
            ));
        }
        let names = endpoints.iter().map(|text| Name::new(text));
        let names = names.collect::<Result<_, _>>();
        Ok(Self::of(names.map_err(StoreError::Refused)?, options))
    }

    /// The members that these names stand for.
    pub(super) fn of(names: Vec<Name>, options: EtcdOptions) -> Self {
        Self {
            names,
            known: ArcSwap::default(),
            failed: AtomicBool::new(false),
            looked_up: Mutex::default(),
            options: Arc::new(options),
        }
    }

    /// Calls the member in use, and the next ones when it fails, until the deadline.
    pub(super) async fn call<T, F>(
        &self,
        sent: Sent,
        connection: Connection,
        deadline: Duration,
        send: impl Fn(Client) -> F + Sync,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let end = Instant::now() + deadline;
        let known = self.known(end).await?;
        let count = known.members.len();
        let first = known.current.load(Ordering::Relaxed);
        // Even a single member gets a second try: the first may have met a connection that was just lost.
        let tries = count.max(2);
        let mut authenticated_anew = false;
        let mut tried = 0;
        loop {
            let index = (first + tried) % count;
            let member = &known.members[index];
            let until = if count == 1 {
                end
            } else {
                share(Instant::now(), end, tries - tried)
            };
            let limits = match sent {
                Sent::Repeatedly => Limits { until, end: until },
                // What was sent can't be sent elsewhere, so it may as well be waited for.
                Sent::Once => Limits { until, end },
            };
            tried += 1;
            let slot = member.connection.load_full();
            let failure = match self.attempt(member, &slot, connection, limits, &send).await {
                Ok(answer) => {
                    // Whoever moved on meanwhile may have had a better reason.
                    if known.hand_over(first, index) {
                        tracing::info!(
                            from = known.members[first].label,
                            to = member.label,
                            "using another etcd member"
                        );
                    }
                    return Ok(answer);
                }
                Err(failure) => failure.at(&member.label),
            };
            let go_on = match &failure {
                Failure::Token(_) if !authenticated_anew => {
                    // Refused before it was looked at, so even a write may be sent again, with a new token.
                    authenticated_anew = true;
                    tried -= 1;
                    member.forget(&slot);
                    true
                }
                Failure::Elsewhere(_) => true,
                Failure::Unreachable(_) => {
                    // A connection that was lost comes back by itself, but with the certificates that it began with.
                    member.forget(&slot);
                    true
                }
                Failure::Unclear(_) => {
                    // It may hang for longer than anyone waits: the next call gets a connection that works.
                    member.forget(&slot);
                    sent == Sent::Repeatedly
                }
                Failure::Token(_) | Failure::Compacted | Failure::Lease | Failure::Refused(_) => {
                    return Err(failure);
                }
            };
            self.failed.store(true, Ordering::Relaxed);
            if !go_on || tried >= tries || Instant::now() >= end {
                known.hand_over(first, (index + 1) % count);
                return Err(failure);
            }
        }
    }

    /// The members to try, with their names looked up again where members failed since the last time.
    async fn known(&self, end: Instant) -> Result<Arc<Known>, Failure> {
        let known = self.known.load_full();
        let may_have_moved =
            self.failed.load(Ordering::Relaxed) && self.names.iter().any(|name| !name.is_address());
        if !known.members.is_empty() && !may_have_moved {
            return Ok(known);
        }
        let mut looked_up = if known.members.is_empty() {
            match timeout_at(end, self.looked_up.lock()).await {
                Ok(looked_up) => looked_up,
                Err(_) => {
                    return Err(Failure::Elsewhere(
                        "the names of its members are still looked up".into(),
                    ));
                }
            }
        } else {
            match self.looked_up.try_lock() {
                Ok(looked_up) => looked_up,
                Err(_) => return Ok(known),
            }
        };
        let now = Instant::now();
        let known = self.known.load_full();
        if !known.members.is_empty() && looked_up.is_some_and(|at| now < at + LOOKUP_INTERVAL) {
            return Ok(known);
        }
        self.failed.store(false, Ordering::Relaxed);
        *looked_up = Some(now);
        // Where members are known, most of the call's time is for them.
        let left = end.saturating_duration_since(now);
        let limit = if known.members.is_empty() {
            left
        } else {
            left / 4
        };
        let found = join_all(self.names.iter().map(|name| name.look_up(limit))).await;
        let mut members: Vec<Arc<Member>> = Vec::new();
        let mut trouble = None;
        for (name, (addresses, failed)) in self.names.iter().zip(found) {
            for address in addresses {
                if members.iter().any(|member| member.address == address) {
                    continue;
                }
                let same =
                    |member: &&Arc<Member>| member.address == address && member.name == name.text();
                let old = known.members.iter().find(same).cloned();
                members.push(old.unwrap_or_else(|| Arc::new(Member::new(name.text(), address))));
            }
            trouble = trouble.or(failed);
        }
        if members.is_empty() {
            let text = trouble.unwrap_or_else(|| "its members have no address".into());
            return Err(Failure::Elsewhere(text));
        }
        if let Some(trouble) = trouble {
            self.failed.store(true, Ordering::Relaxed);
            tracing::debug!(trouble, "using the etcd members that are known");
        }
        if members
            .iter()
            .map(|m| &m.label)
            .eq(known.members.iter().map(|m| &m.label))
        {
            return Ok(known);
        }
        let in_use = known.members.get(known.current.load(Ordering::Relaxed));
        let current =
            in_use.and_then(|old| members.iter().position(|member| Arc::ptr_eq(member, old)));
        let known = Arc::new(Known {
            members,
            current: AtomicUsize::new(current.unwrap_or(0)),
        });
        self.known.store(Arc::clone(&known));
        Ok(known)
    }

    /// What to look at when a member hangs up that never answered: it says why, if at all, in an alert that the end of the
    /// connection may overtake.
    fn hint(&self) -> &'static str {
        match &self.options.tls {
            None => " (does this etcd want TLS? then name its authority, KONTROL_ETCD_CACERT)",
            Some(files) if files.identity.is_none() => {
                " (does this etcd want a client's certificate? KONTROL_ETCD_CERT, KONTROL_ETCD_KEY)"
            }
            Some(_) => "",
        }
    }

    async fn attempt<T, F>(
        &self,
        member: &Member,
        slot: &Arc<Slot>,
        connection: Connection,
        limits: Limits,
        send: &(impl Fn(Client) -> F + Sync),
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        // Until there is a client nothing is sent, so what goes wrong here is never unclear.
        let connect = || {
            connection::open(
                member.name.clone(),
                member.address,
                Arc::clone(&self.options),
            )
        };
        let connecting = match connection {
            Connection::Shared => slot.0.get_or_init(|| connect().boxed().shared()).clone(),
            Connection::Own => connect().boxed().shared(),
        };
        let client = match timeout_at(limits.until, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(Failure::Unclear(text))) => return Err(Failure::Unreachable(text)),
            Ok(Err(failure)) => {
                // Even what is refused may be mended by the next try: the files are read again.
                member.forget(slot);
                return Err(failure);
            }
            Err(_) => return Err(Failure::Elsewhere("does not let us in in time".into())),
        };
        match timeout_at(limits.end, send(client)).await {
            Ok(Ok(answer)) => {
                member.has_answered.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(Err(error)) => Err(match Failure::from(error) {
                Failure::Unclear(text) | Failure::Unreachable(text)
                    if !text.contains("etcdserver")
                        && !member.has_answered.load(Ordering::Relaxed) =>
                {
                    Failure::Unclear(format!("{text}{}", self.hint()))
                }
                failure @ (Failure::Token(_)
                | Failure::Elsewhere(_)
                | Failure::Unreachable(_)
                | Failure::Unclear(_)
                | Failure::Compacted
                | Failure::Lease
                | Failure::Refused(_)) => failure,
            }),
            Err(_) => Err(Failure::Unclear("no answer in time".into())),
        }
    }
}

/// Until when an attempt waits.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For a connection.
    until: Instant,
    /// For the answer.
    end: Instant,
}

/// Until when the next of so many tries may take.
fn share(now: Instant, end: Instant, tries: usize) -> Instant {
    let left = end.saturating_duration_since(now);
    let tries = u32::try_from(tries.max(1)).unwrap_or(u32::MAX);
    (now + (left / tries).max(LEAST_SHARE)).min(end)
}

impl Known {
    /// Makes `to` the member in use, if that is still `from`; whether it did.
    fn hand_over(&self, from: usize, to: usize) -> bool {
        from != to
            && self
                .current
                .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Member {
    fn new(name: &str, address: SocketAddr) -> Self {
        let label = address.to_string();
        Self {
            label: if label == name {
                label
            } else {
                format!("{name} ({label})")
            },
            name: name.to_owned(),
            address,
            connection: ArcSwap::default(),
            has_answered: AtomicBool::new(false),
        }
    }

    /// Gives up a connection; the next call makes a new one.
    fn forget(&self, slot: &Arc<Slot>) {
        let current = self.connection.load();
        if Arc::ptr_eq(&current, slot) {
            self.connection
                .compare_and_swap(&current, Arc::new(Slot::default()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_shared_out_among_those_that_may_still_be_asked() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let cases = [
            (900, 3, 300),
            (600, 2, 300),
            (300, 1, 300),
            // Less than a connection takes would be given in vain.
            (250, 3, 150),
            (100, 1, 100),
            (100, 2, 100),
            (0, 2, 0),
        ];
        for (left, tries, expected) in cases {
            let until = share(now, now + ms(left), tries);
            assert_eq!(until - now, ms(expected), "{left} ms for {tries}");
        }
    }
}
