//! The connection of one tier: which addresses there are, which one is in use, which come next.
//!
//! A *round* tries every address once, and for TLS once for each name that it goes by. It starts with a fresh look at the names, in an order drawn by lot, so that the
//! slaves spread over a tier's masters, with the address that was just lost at the end. A connection that is answered
//! stays until it fails; then a new round starts. Invariant: one address is in use at a time, and a round is finite.
//!
//! What the link shows to masters is read when it connects. So a master that does not know it any more is connected to anew
//! first ([`Link::renew`]): the token, or the certificate, may have been replaced meanwhile.
//!
//! The connection's owner is whoever owns the [`Link`]; [`Attached::channel`] is a handle on that same HTTP/2
//! connection, for other streams to the same master.

use super::{Endpoint, Tier};
use futures::future::{BoxFuture, FutureExt, join_all};
use kontrol_runtime::{
    cause::innermost,
    dial::{self, Channel, Credentials},
};
use rand::seq::SliceRandom;
use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{net::lookup_host, time::timeout};

/// Most addresses that one name can stand for; the rest are left out.
const MAX_ADDRESSES: usize = 64;
/// How long a connection may be silent before an HTTP/2 ping asks whether the master is still there.
const PING_AFTER: Duration = Duration::from_secs(10);
/// How long such a ping may go unanswered before the connection counts as broken.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The next connection's number.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A master that the tier is connected to.
#[derive(Debug, Clone)]
pub struct Attached {
    endpoint: Endpoint,
    address: SocketAddr,
    channel: Channel,
    serial: u64,
}

impl Attached {
    /// The endpoint as it was configured.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The address that it stood for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells connections apart, of one address as well.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// A handle on the connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No endpoint has an address.
    #[error("{0}")]
    Unresolved(String),
    /// The next address did not take the connection.
    #[error("cannot connect to {address}: {reason}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// An address to try, and the endpoint it stands for.
type Candidate = (Endpoint, SocketAddr);

/// How far the round is.
#[derive(Debug)]
enum Round {
    /// The addresses are to be looked up first.
    Due,
    /// These are left.
    Trying(VecDeque<Candidate>),
}

/// The connection of one tier.
#[derive(Debug)]
pub struct Link {
    lookups: Vec<Lookup>,
    credentials: Credentials,
    round: Round,
    /// What comes before all else.
    again: Option<Candidate>,
    current: Option<Attached>,
    lost: Option<SocketAddr>,
}

impl Link {
    /// No connection yet.
    pub fn new(tier: &Tier, credentials: Credentials) -> Self {
        Self {
            lookups: tier.endpoints().iter().map(Lookup::new).collect(),
            credentials,
            round: Round::Due,
            again: None,
            current: None,
            lost: None,
        }
    }

    /// The connection in use; without one, a connection to the next address, and before the first of a round a lookup.
    /// Each of the two steps takes `limit` at most.
    pub async fn connect(&mut self, limit: Duration) -> Result<Attached, LinkError> {
        if let Some(attached) = &self.current {
            return Ok(attached.clone());
        }
        let (endpoint, address) = self.next(limit).await?;
        let attached = open(endpoint, address, &self.credentials, limit).await?;
        self.current = Some(attached.clone());
        Ok(attached)
    }

    /// The next address of the round, for a caller that connects by itself; starts a round when none is under way.
    pub async fn next(&mut self, limit: Duration) -> Result<Candidate, LinkError> {
        if let Some(candidate) = self.again.take() {
            return Ok(candidate);
        }
        if let Round::Trying(left) = &mut self.round
            && let Some(candidate) = left.pop_front()
        {
            return Ok(candidate);
        }
        let failures = join_all(self.lookups.iter_mut().map(|lookup| lookup.refresh(limit))).await;
        let mut list: Vec<Candidate> = Vec::new();
        for lookup in &self.lookups {
            for address in &lookup.known {
                let candidate = (lookup.endpoint.clone(), *address);
                if !list.iter().any(|other| is_same(other, &candidate)) {
                    list.push(candidate);
                }
            }
        }
        list.shuffle(&mut rand::rng());
        // Stable: only the lost one moves.
        list.sort_by_key(|(_, address)| self.lost == Some(*address));
        let mut left = VecDeque::from(list);
        let first = left.pop_front();
        self.round = Round::Trying(left);
        first.ok_or_else(|| {
            let reasons: Vec<String> = failures.into_iter().flatten().collect();
            LinkError::Unresolved(reasons.join("; "))
        })
    }

    /// The connection in use.
    pub fn current(&self) -> Option<&Attached> {
        self.current.as_ref()
    }

    /// Every address that the tier's names stood for when they were last looked up.
    pub fn known(&self) -> Vec<SocketAddr> {
        let known = self.lookups.iter().flat_map(|lookup| &lookup.known);
        known.copied().collect()
    }

    /// The connection answered: it stays, and the round is over.
    pub fn settle(&mut self) {
        self.round = Round::Due;
    }

    /// The connection failed: the next one goes elsewhere.
    pub fn leave(&mut self) {
        if let Some(attached) = self.current.take() {
            self.lost = Some(attached.address);
        }
    }

    /// The next connection goes to the same address, with everything read anew.
    pub fn renew(&mut self) {
        let current = self.current.take();
        self.again = current.map(|attached| (attached.endpoint, attached.address));
    }

    /// What the link shows to masters.
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// Whether every address of the round was tried.
    pub fn exhausted(&self) -> bool {
        matches!(&self.round, Round::Trying(left) if left.is_empty())
    }
}

/// Whether two candidates come to the same. A certificate may be for one of two names, and not for the other.
fn is_same(one: &Candidate, other: &Candidate) -> bool {
    let (tls, host) = (one.0.is_tls(), one.0.host());
    one.1 == other.1 && tls == other.0.is_tls() && (!tls || host == other.0.host())
}

/// Connects to one address.
pub async fn open(
    endpoint: Endpoint,
    address: SocketAddr,
    credentials: &Credentials,
    limit: Duration,
) -> Result<Attached, LinkError> {
    let options = dial::Options {
        limit,
        ping: PING_AFTER,
        ping_timeout: PING_TIMEOUT,
        while_idle: true,
        user_agent: None,
    };
    // Masters behind a proxy are told apart by the name in the request, not by the address that was dialled.
    match dial::connect(endpoint.target(address), credentials, options).await {
        Ok(channel) => Ok(Attached {
            endpoint,
            address,
            channel,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        }),
        Err(error) => Err(LinkError::Refused {
            address,
            reason: error.to_string(),
        }),
    }
}

/// What an endpoint's name stands for.
struct Lookup {
    endpoint: Endpoint,
    /// A lookup under way. It outlives its time limit, so that a dead name server never has more than one call waiting.
    pending: Option<BoxFuture<'static, io::Result<Vec<SocketAddr>>>>,
    /// What the last lookup that succeeded found: good enough while the name server is away.
    known: Vec<SocketAddr>,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup")
            .field("endpoint", &self.endpoint)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Lookup {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            pending: None,
            known: Vec::new(),
        }
    }

    /// Looks the name up again. Returns why nothing new is known.
    async fn refresh(&mut self, limit: Duration) -> Option<String> {
        let mut pending = self
            .pending
            .take()
            .unwrap_or_else(|| resolve(self.endpoint.clone()).boxed());
        let reason = match timeout(limit, &mut pending).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                self.known = addresses;
                return None;
            }
            Ok(Ok(_)) => "the name has no address".into(),
            Ok(Err(error)) => innermost(&error),
            Err(_) => {
                self.pending = Some(pending);
                "the name server does not answer".into()
            }
        };
        let reason = format!("cannot resolve {}: {reason}", self.endpoint.host());
        tracing::debug!(known = self.known.len(), "{reason}");
        Some(reason)
    }
}

/// The addresses of an endpoint, each once.
pub async fn resolve(endpoint: Endpoint) -> io::Result<Vec<SocketAddr>> {
    let found = lookup_host((endpoint.host(), endpoint.port())).await?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found.take(MAX_ADDRESSES) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masters::parse;
    use std::collections::BTreeSet;

    const LIMIT: Duration = Duration::from_secs(5);

    fn link(text: &str) -> Link {
        Link::new(&parse(text).unwrap()[0], Credentials::none())
    }

    async fn round(link: &mut Link) -> Vec<SocketAddr> {
        let mut seen = vec![link.next(LIMIT).await.unwrap().1];
        while !link.exhausted() {
            seen.push(link.next(LIMIT).await.unwrap().1);
        }
        seen
    }

    #[tokio::test]
    async fn a_round_holds_every_address_once() {
        let mut link = link("127.0.0.1:1|127.0.0.2:2|localhost:1|[::1]:4");
        assert!(!link.exhausted());
        let seen = round(&mut link).await;
        let set: BTreeSet<_> = seen.iter().collect();
        assert_eq!(set.len(), seen.len());
        for address in ["127.0.0.1:1", "127.0.0.2:2", "[::1]:4"] {
            assert!(
                set.contains(&address.parse::<SocketAddr>().unwrap()),
                "{address} in {set:?}"
            );
        }
    }

    #[tokio::test]
    async fn with_tls_an_address_counts_once_for_each_name() {
        let mut link = link("127.0.0.1:1|https://127.0.0.1:1|https://localhost:1|localhost:1");
        link.lookups[2].known = vec!["127.0.0.1:1".parse().unwrap()];
        let mut seen = vec![link.next(LIMIT).await.unwrap().0.to_string()];
        while !link.exhausted() {
            seen.push(link.next(LIMIT).await.unwrap().0.to_string());
        }
        seen.retain(|endpoint| endpoint.starts_with("https://"));
        seen.sort();
        seen.dedup();
        assert_eq!(seen, ["https://127.0.0.1:1", "https://localhost:1"]);
    }

    #[tokio::test]
    async fn the_order_is_drawn_and_the_lost_address_comes_last() {
        let mut link = link("127.0.0.1:1|127.0.0.1:2|127.0.0.1:3");
        link.lost = Some("127.0.0.1:2".parse().unwrap());
        let mut first = BTreeSet::new();
        for _ in 0..64 {
            let seen = round(&mut link).await;
            assert_eq!(seen[2].port(), 2);
            first.insert(seen[0].port());
        }
        assert_eq!(first, BTreeSet::from([1, 3]));
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_told_and_ends_the_round() {
        let mut link = link("no-such-name.invalid");
        let error = link.connect(LIMIT).await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot resolve no-such-name.invalid"),
            "{error}"
        );
        assert!(link.exhausted());
    }

    #[tokio::test]
    async fn what_is_known_serves_while_the_name_server_is_away() {
        let mut link = link("no-such-name.invalid");
        let known: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        link.lookups[0].known = vec![known];
        assert_eq!(link.next(LIMIT).await.unwrap().1, known);
        assert!(link.exhausted());
    }

    #[tokio::test]
    async fn each_round_looks_the_names_up_again() {
        let mut link = link("127.0.0.1:1");
        assert_eq!(round(&mut link).await.len(), 1);
        link.lookups[0].known = vec!["127.0.0.9:9".parse().unwrap()];
        assert_eq!(round(&mut link).await, ["127.0.0.1:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = link(&address.to_string()).connect(LIMIT).await.unwrap_err();
        let said = format!("cannot connect to {address}: ");
        assert!(error.to_string().starts_with(&said), "{error}");
    }
}
