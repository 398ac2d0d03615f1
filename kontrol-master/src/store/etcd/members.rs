//! The members of an etcd, and how a call finds one that answers.
//!
//! One member is in use, the others wait in their order. A member that gives no answer in time, or can't be connected
//! to, hands over to the next, for this call when that is safe, and for the calls after it. So a member that is paused or
//! cut off costs one deadline, not one deadline a call. Each member has its own connection; a balancer over all of them
//! would go on giving a share of the calls to the one that is silent.
//!
//! A call that writes is sent once. It goes on to another member only when it certainly was not applied.

use super::{failure::Failure, tls};
use crate::store::{EtcdOptions, StoreError};
use arc_swap::ArcSwap;
use etcd_client::{Client, ConnectOptions, Error};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use tonic::Code;

/// How long connecting may take. Shorter than a call, so that a call outlives a member that is off.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings on a connection with open streams. etcd hangs up on who pings more often than every 5 s, or without a stream.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

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
    members: Vec<Member>,
    /// The one in use.
    current: AtomicUsize,
    options: EtcdOptions,
}

#[derive(Debug)]
struct Member {
    address: String,
    connection: ArcSwap<Slot>,
}

/// A connection that its first user makes. It is authenticated, when there is a user.
#[derive(Default)]
struct Slot(OnceCell<Client>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.0.initialized())
    }
}

impl Members {
    pub(super) fn new(addresses: &[String], options: EtcdOptions) -> Result<Self, StoreError> {
        if addresses.is_empty() {
            return Err(StoreError::Refused("no etcd member is named".into()));
        }
        if options.user.is_some() != options.password.is_some() {
            return Err(StoreError::Refused(
                "KONTROL_ETCD_USER and KONTROL_ETCD_PASSWORD go together; one is missing".into(),
            ));
        }
        let member = |address: &String| Member {
            address: address.clone(),
            connection: ArcSwap::default(),
        };
        Ok(Self {
            members: addresses.iter().map(member).collect(),
            current: AtomicUsize::new(0),
            options,
        })
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
        let first = self.current.load(Ordering::Relaxed);
        // Even a single member gets a second try: the first may have met a connection that was just lost.
        let tries = self.members.len().max(2);
        let mut authenticated_anew = false;
        let mut tried = 0;
        loop {
            let index = (first + tried) % self.members.len();
            let member = &self.members[index];
            tried += 1;
            let last = tried == tries || self.members.len() == 1;
            // Keeps time for another member, when another may be asked.
            let until = if last || sent == Sent::Once {
                end
            } else {
                let now = Instant::now();
                now + end.saturating_duration_since(now) / 2
            };
            let slot = member.connection.load_full();
            let failure = match self.attempt(member, &slot, connection, until, &send).await {
                Ok(answer) => {
                    // Whoever moved on meanwhile may have had a better reason.
                    self.hand_over(first, index);
                    return Ok(answer);
                }
                Err(failure) => failure.at(&member.address),
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
                Failure::Unclear(_) => {
                    // It may hang for longer than anyone waits: the next call gets a connection that works.
                    member.forget(&slot);
                    sent == Sent::Repeatedly
                }
                Failure::Token(_) | Failure::Compacted | Failure::Lease | Failure::Refused(_) => {
                    return Err(failure);
                }
            };
            if !go_on || tried >= tries || Instant::now() >= end {
                self.hand_over(first, (index + 1) % self.members.len());
                return Err(failure);
            }
        }
    }

    /// Makes `to` the member in use, if that is still `from`.
    fn hand_over(&self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let swapped = self
            .current
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if swapped.is_ok() {
            tracing::info!(
                from = self.members[from].address,
                to = self.members[to].address,
                "using another etcd member"
            );
        }
    }

    async fn attempt<T, F>(
        &self,
        member: &Member,
        slot: &Slot,
        connection: Connection,
        until: Instant,
        send: &(impl Fn(Client) -> F + Sync),
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        // Until there is a client nothing is sent, so what goes wrong here is never unclear.
        let connect = async {
            match connection {
                Connection::Shared => slot
                    .0
                    .get_or_try_init(|| self.connect(&member.address))
                    .await
                    .cloned(),
                Connection::Own => self.connect(&member.address).await,
            }
        };
        let client = match timeout_at(until, connect).await {
            Ok(Ok(client)) => client,
            Ok(Err(Failure::Unclear(text))) => return Err(Failure::Elsewhere(text)),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(Failure::Elsewhere("does not let us in in time".into())),
        };
        match timeout_at(until, send(client)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Failure::Unclear("no answer in time".into())),
        }
    }

    /// A client of one member, authenticated. Without a user nothing is sent yet.
    async fn connect(&self, address: &str) -> Result<Client, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            // A member without a leader says so at once, rather than after a time-out.
            .with_require_leader(true);
        let mut scheme = "http";
        if let Some(files) = &self.options.tls {
            options = options.with_tls(tls::read(files).await.map_err(Failure::Refused)?);
            scheme = "https";
        }
        let mut client = Client::connect([format!("{scheme}://{address}")], Some(options)).await?;
        if let (Some(user), Some(password)) = (&self.options.user, &self.options.password) {
            match client
                .update_user(Some((user.clone(), password.clone())))
                .await
            {
                // As etcd's own clients do: whoever turns authentication on later is served with this password.
                Err(Error::GRpcStatus(status))
                    if status.code() == Code::FailedPrecondition
                        && status.message().contains("not enabled") =>
                {
                    tracing::warn!(
                        address,
                        "etcd has no authentication, the password is not used"
                    );
                }
                result => result?,
            }
        }
        Ok(client)
    }
}

impl Member {
    /// Gives up a connection; the next call makes a new one.
    fn forget(&self, slot: &Arc<Slot>) {
        let current = self.connection.load();
        if Arc::ptr_eq(&current, slot) {
            self.connection
                .compare_and_swap(&current, Arc::new(Slot::default()));
        }
    }
}
