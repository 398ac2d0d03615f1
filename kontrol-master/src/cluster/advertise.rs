//! By which address the other masters, and whoever asks for the masters, reach this one.
//!
//! The address is the one given (`--advertise`), else the one that this master is bound to, else `--ip`. A master that
//! listens on every address, and was given none, draws one: the address that leads to the store, else the one of the
//! default route, else that of an interface. It draws again and again, because hosts get other addresses, and some get
//! their first one only after the start.
//!
//! Invariant: others are never told an address that they can't dial; loopback is told where the store is on this host.
//! While there is none, a master that shares its store is no candidate, and not ready.

#[cfg(test)]
mod tests;

use crate::cluster::store::StoreUrl;
use kontrol_runtime::host::{self, Drawing, Host, Kernel, Reach, interfaces, reach};
use kontrol_slave::masters::{self, Tier, link::resolve};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the address is looked at: while there is none, and later.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often it is said that there is none.
const REMIND: Duration = Duration::from_secs(60);
/// How long the names of the store's members may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(1);
/// Addresses that are never reached, of which the route is the default one (RFC 5737, RFC 3849).
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        9,
    ),
];
/// Names of interfaces that only containers and virtual machines of this host are behind.
const INNER: [&str; 9] = [
    "docker", "br-", "virbr", "veth", "cni", "flannel", "cali", "lxc", "podman",
];

/// What others are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Where this master is reached, `host:port`; none while it is not known.
    pub address: Option<String>,
    /// The IP address of this host: what a pod is known by that is this master.
    pub ip: Option<IpAddr>,
}

/// Looks at the address again and again.
#[derive(Debug)]
pub struct AdvertiseTask {
    given: Advertised,
    port: u16,
    draw: Draw,
    members: Option<Tier>,
    /// Whether other masters may share the store.
    shared: bool,
    sender: watch::Sender<Advertised>,
    said: Option<Instant>,
}

/// The address of a master that is bound to `bound`, as known at the start, and the task that follows it. `address` is what
/// the user gave (`host:port`), `ip` the address of its host.
pub async fn open(
    address: Option<String>,
    ip: Option<IpAddr>,
    store: &StoreUrl,
    bound: SocketAddr,
) -> (watch::Receiver<Advertised>, AdvertiseTask) {
    let own = (!bound.ip().is_unspecified()).then_some(bound.ip());
    let given = address.as_deref().and_then(host::address);
    let ip = given.or(own).or(ip);
    let ip = ip.map(|ip| ip.to_canonical());
    let address = address.or_else(|| ip.map(|ip| SocketAddr::new(ip, bound.port()).to_string()));
    let given = Advertised { address, ip };
    let members = match store {
        StoreUrl::Etcd(members) => Some(members),
        StoreUrl::Memory | StoreUrl::File(_) => None,
    };
    let shared = members.is_some();
    let members = members.and_then(|members| masters::parse(&members.join("|")).ok()?.pop());
    let (sender, receiver) = watch::channel(given.clone());
    let mut task = AdvertiseTask {
        given,
        port: bound.port(),
        draw: Draw::new(bound.is_ipv4()),
        members,
        shared,
        sender,
        said: None,
    };
    task.look().await;
    (receiver, task)
}

impl AdvertiseTask {
    /// Follows the address until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        if self.given.address.is_some() && self.given.ip.is_some() {
            token.cancelled().await;
            return;
        }
        loop {
            let known = self.sender.borrow().ip.is_some();
            let pause = if known { LOOKS.1 } else { LOOKS.0 };
            if token.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            // A look is bounded, and short.
            self.look().await;
        }
    }

    async fn look(&mut self) {
        if self.given.address.is_some() && self.given.ip.is_some() {
            return;
        }
        let members = self.members().await;
        let drawn = self.draw.draw(&Kernel, &members, &interfaces());
        let now = self.advertised(drawn);
        if now.address.is_none() {
            self.complain();
            return;
        }
        self.said = None;
        let before = self.sender.send_replace(now.clone());
        if let (Some(before), Some(now)) = (before.address, now.address)
            && before != now
        {
            tracing::warn!(
                before,
                now,
                "the address of this host changed; others are told"
            );
        }
    }

    fn advertised(&self, drawn: Option<IpAddr>) -> Advertised {
        // Nobody else reads a store inside this process.
        let alone = || -> IpAddr {
            if self.draw.v4 {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            }
        };
        let drawn = drawn.or_else(|| (!self.shared).then(alone));
        let address = drawn.map(|ip| SocketAddr::new(ip, self.port).to_string());
        Advertised {
            address: self.given.address.clone().or(address),
            ip: self.given.ip.or(drawn),
        }
    }

    fn complain(&mut self) {
        if self.said.is_some_and(|said| said.elapsed() < REMIND) {
            return;
        }
        self.said = Some(Instant::now());
        match &self.sender.borrow().address {
            Some(last) => tracing::error!(
                "this host has no address any more by which other masters could reach this one; they are told the last one, {last}"
            ),
            None => tracing::error!(
                "this host has no address by which other masters could reach this one, so it does not take part and is not ready; give one with --advertise"
            ),
        }
    }

    /// Where the store's members are. A name that can't be looked up leads nowhere as yet.
    async fn members(&self) -> Vec<SocketAddr> {
        let endpoints = self.members.iter().flat_map(Tier::endpoints).cloned();
        let lookups = endpoints.map(|endpoint| timeout(LOOKUP, resolve(endpoint)));
        let found = futures::future::join_all(lookups).await;
        let found = found.into_iter().filter_map(Result::ok);
        found.filter_map(Result::ok).flatten().collect()
    }
}

/// How an address came to be known, the best way last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Interface,
    DefaultRoute,
    Store,
}

/// Draws the address. PURE, but for what it asks of the host.
#[derive(Debug)]
struct Draw {
    /// Only IPv4 is listened on.
    v4: bool,
    store: Drawing,
    anywhere: Drawing,
    last: Option<(By, IpAddr)>,
}

impl Draw {
    fn new(v4: bool) -> Self {
        Self {
            v4,
            store: Drawing::default(),
            anywhere: Drawing::default(),
            last: None,
        }
    }

    /// The address: the last one for as long as no better way shows another and the host has it.
    fn draw(
        &mut self,
        host: &impl Host,
        members: &[SocketAddr],
        interfaces: &[(String, IpAddr)],
    ) -> Option<IpAddr> {
        let v4 = self.v4;
        let fits = |to: &SocketAddr| !v4 || to.is_ipv4();
        // A store on this very host tells nothing of how others reach it.
        let mut elsewhere = members.iter().filter(|to| reach(to.ip()) != Reach::Host);
        let toward = |drawing: &mut Drawing, to: &SocketAddr| {
            let drawn = drawing.draw(host, *to, &[]).ok();
            drawn.filter(|ip| reach(*ip) == Reach::Routed)
        };
        let store = elsewhere
            .find_map(|to| fits(to).then(|| toward(&mut self.store, to)).flatten())
            .map(|ip| (By::Store, ip));
        let route = || {
            let mut anywhere = ANYWHERE.iter().filter(|to| fits(to));
            anywhere
                .find_map(|to| toward(&mut self.anywhere, to))
                .map(|ip| (By::DefaultRoute, ip))
        };
        let inner = |name: &str| INNER.iter().any(|start| name.starts_with(start));
        let interface = || {
            let mut fitting: Vec<_> = interfaces
                .iter()
                .filter(|(_, ip)| !v4 || ip.is_ipv4())
                .collect();
            fitting.sort_by_key(|(name, _)| inner(name));
            fitting.first().map(|(_, ip)| (By::Interface, *ip))
        };
        let now = store.or_else(route).or_else(interface);
        let last = self.last.filter(|(by, ip)| {
            let better = now.is_some_and(|(way, _)| way > *by);
            // A way that says so itself changes it; others only fill in.
            let moved = now.is_some_and(|(way, _)| way == *by && way > By::Interface);
            !better && !moved && host.has(*ip)
        });
        self.last = last.or(now);
        self.last.map(|(_, ip)| ip)
    }
}
