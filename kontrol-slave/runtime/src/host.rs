//! Which of this host's addresses a pod, or a master, is known by when nobody says. What to choose is PURE ([`Drawing`]);
//! asking the kernel is [`Kernel`]'s, which sends nothing.
//!
//! An address stands for as long as the route that it was drawn from leads from it: so a pod that moves to another
//! master keeps its address, and one whose host got another address follows. Invariant: nothing that others can't dial
//! (loopback, link-local) is chosen towards a master on another host.

mod port;

pub use port::{HostPort, HostPortError, MASTER_PORT, address};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Who can dial an address. The wider, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nobody: it is no host's address.
    Nobody,
    /// This host.
    Host,
    /// The hosts on one link.
    Link,
    /// Whoever has a route.
    Routed,
}

/// Who can dial an address.
pub fn reach(ip: IpAddr) -> Reach {
    match ip.to_canonical() {
        ip if ip.is_unspecified() || ip.is_multicast() => Reach::Nobody,
        IpAddr::V4(Ipv4Addr::BROADCAST) => Reach::Nobody,
        ip if ip.is_loopback() => Reach::Host,
        IpAddr::V4(ip) if ip.is_link_local() => Reach::Link,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Reach::Link,
        IpAddr::V4(_) | IpAddr::V6(_) => Reach::Routed,
    }
}

/// The name of this host, which in a container is the container's.
pub fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// What can be asked about this host.
pub trait Host {
    /// The address that it would send from to get there; none without a route.
    fn toward(&self, to: SocketAddr) -> Option<IpAddr>;
    /// Whether the address is one of this host.
    fn has(&self, ip: IpAddr) -> bool;
}

/// This host.
#[derive(Debug, Clone, Copy)]
pub struct Kernel;

impl Host for Kernel {
    fn toward(&self, to: SocketAddr) -> Option<IpAddr> {
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        // Connecting a UDP socket only picks the route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        let ip = socket.local_addr().ok()?.ip().to_canonical();
        (reach(ip) != Reach::Nobody).then_some(ip)
    }

    fn has(&self, ip: IpAddr) -> bool {
        UdpSocket::bind((ip, 0)).is_ok()
    }
}

/// The addresses of this host's interfaces that are up and have a reach beyond it, in the kernel's order, each with the
/// interface's name.
pub fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(all) = getifaddrs() else {
        return Vec::new();
    };
    all.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|one| {
            let address = one.address?;
            let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().into(),
                (None, Some(v6)) => v6.ip().into(),
                (None, None) => return None,
            };
            (reach(ip) == Reach::Routed).then_some((one.interface_name, ip))
        })
        .collect()
}

/// There is no address that others could use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Homeless {
    /// The only address on the way there, which is of no use; absent when there is no way.
    pub only: Option<IpAddr>,
    /// The last one that was of use.
    pub last: Option<IpAddr>,
}

/// The address that was drawn towards the masters of one tier.
#[derive(Debug, Clone, Default)]
pub struct Drawing {
    /// It, and what the route leads to that it was drawn from.
    drawn: Option<(IpAddr, SocketAddr)>,
}

impl Drawing {
    /// The address to be known by, towards the master in use. `others`: where masters of the same tier are as well; they
    /// count where the one in use is on this very host, which tells nothing of how others reach it.
    pub fn draw(
        &mut self,
        host: &impl Host,
        master: SocketAddr,
        others: &[SocketAddr],
    ) -> Result<IpAddr, Homeless> {
        let local = |to: &SocketAddr| reach(to.ip()) == Reach::Host;
        let elsewhere = others
            .iter()
            .copied()
            .filter(|to| local(&master) && !local(to));
        let mut only = None;
        let mut best: Option<(IpAddr, SocketAddr)> = None;
        for to in elsewhere.chain([master]) {
            let Some(ip) = host.toward(to) else { continue };
            if reach(ip) < reach(to.ip()) {
                only = only.or(Some(ip));
            } else if best.is_none_or(|(best, _)| reach(best) < reach(ip)) {
                best = Some((ip, to));
            }
        }
        let kept = self.drawn.filter(|(ip, from)| {
            let stands = host
                .toward(*from)
                .is_some_and(|now| now == *ip || (same_network(now, *ip) && host.has(*ip)));
            stands && best.is_none_or(|(best, _)| reach(best) <= reach(*ip))
        });
        let last = self.drawn.map(|(ip, _)| ip);
        let drawn = kept.or(best).ok_or(Homeless { only, last })?;
        self.drawn = Some(drawn);
        Ok(drawn.0)
    }
}

/// Hosts draw new addresses of their IPv6 network each day, for privacy; the older ones stay theirs for long.
fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A host with these routes (destination, source) and these further addresses.
    #[derive(Default)]
    struct Scene {
        routes: HashMap<SocketAddr, IpAddr>,
        more: Vec<IpAddr>,
    }

    impl Host for Scene {
        fn toward(&self, to: SocketAddr) -> Option<IpAddr> {
            self.routes.get(&to).copied()
        }
        fn has(&self, ip: IpAddr) -> bool {
            self.more.contains(&ip) || self.routes.values().any(|own| *own == ip)
        }
    }

    fn scene(routes: &[(&str, &str)]) -> Scene {
        let routes = routes.iter().map(|(to, from)| (at(to), ip(from)));
        Scene {
            routes: routes.collect(),
            more: Vec::new(),
        }
    }
    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const M1: &str = "10.0.0.1:80";
    const M2: &str = "10.9.0.1:80";
    const OWN: &str = "127.0.0.1:80";

    #[test]
    fn the_reach_of_an_address_is_told() {
        for (text, wanted) in [
            ("0.0.0.0", Reach::Nobody),
            ("::", Reach::Nobody),
            ("224.0.0.1", Reach::Nobody),
            ("255.255.255.255", Reach::Nobody),
            ("::ffff:0.0.0.0", Reach::Nobody),
            ("127.3.2.1", Reach::Host),
            ("::1", Reach::Host),
            ("::ffff:127.0.0.1", Reach::Host),
            ("169.254.7.7", Reach::Link),
            ("fe80::1", Reach::Link),
            ("10.0.0.1", Reach::Routed),
            ("172.17.0.2", Reach::Routed),
            ("fd00::1", Reach::Routed),
        ] {
            assert_eq!(reach(ip(text)), wanted, "{text}");
        }
    }

    #[test]
    fn the_address_follows_the_route_and_not_the_move_to_another_master() {
        let mut drawing = Drawing::default();
        let two = scene(&[(M1, "10.0.0.7"), (M2, "10.9.0.7")]);
        assert_eq!(drawing.draw(&two, at(M1), &[]), Ok(ip("10.0.0.7")));
        assert_eq!(
            drawing.draw(&two, at(M2), &[]),
            Ok(ip("10.0.0.7")),
            "a move"
        );
        let moved = scene(&[(M1, "10.0.0.55"), (M2, "10.9.0.7")]);
        assert_eq!(
            drawing.draw(&moved, at(M2), &[]),
            Ok(ip("10.9.0.7")),
            "its route leads from elsewhere now"
        );
        let renewed = scene(&[(M2, "10.9.0.8")]);
        assert_eq!(drawing.draw(&renewed, at(M2), &[]), Ok(ip("10.9.0.8")));
    }

    #[test]
    fn neither_loopback_nor_link_local_is_told_to_a_master_elsewhere() {
        for useless in ["169.254.7.7", "127.0.0.1"] {
            let mut drawing = Drawing::default();
            let early = scene(&[(M1, useless)]);
            let only = Some(ip(useless));
            let none = Homeless { only, last: None };
            assert_eq!(drawing.draw(&early, at(M1), &[]), Err(none));
            let none = Homeless { only: None, ..none };
            assert_eq!(drawing.draw(&scene(&[]), at(M1), &[]), Err(none));
            let later = scene(&[(M1, "10.0.0.7")]);
            assert_eq!(drawing.draw(&later, at(M1), &[]), Ok(ip("10.0.0.7")));
            let last = Some(ip("10.0.0.7"));
            assert_eq!(
                drawing.draw(&early, at(M1), &[]),
                Err(Homeless { only, last })
            );
        }
    }

    #[test]
    fn a_link_local_address_serves_on_its_own_link() {
        let (master, own) = ("[fe80::1]:80", "fe80::7");
        let drawn = Drawing::default().draw(&scene(&[(master, own)]), at(master), &[]);
        assert_eq!(drawn, Ok(ip(own)));
    }

    #[test]
    fn beside_its_own_master_a_pod_is_known_by_the_way_to_the_others() {
        let mut drawing = Drawing::default();
        let alone = scene(&[(OWN, "127.0.0.1")]);
        assert_eq!(
            drawing.draw(&alone, at(OWN), &[at(OWN)]),
            Ok(ip("127.0.0.1"))
        );
        let host = scene(&[(OWN, "127.0.0.1"), (M1, "10.0.0.7")]);
        let all = [at(OWN), at(M1)];
        assert_eq!(
            drawing.draw(&host, at(OWN), &all),
            Ok(ip("10.0.0.7")),
            "once there is one"
        );
        assert_eq!(drawing.draw(&host, at(M1), &all), Ok(ip("10.0.0.7")));
        let early = scene(&[(OWN, "127.0.0.1"), (M1, "169.254.1.1")]);
        let drawn = Drawing::default().draw(&early, at(OWN), &all);
        assert_eq!(
            drawn,
            Ok(ip("127.0.0.1")),
            "the master in use is on this host"
        );
    }

    #[test]
    fn a_new_privacy_address_changes_nothing_while_the_old_one_stands() {
        let master = "[2001:db8::1]:80";
        let mut drawing = Drawing::default();
        let first = scene(&[(master, "2001:db8:1::a")]);
        assert_eq!(
            drawing.draw(&first, at(master), &[]),
            Ok(ip("2001:db8:1::a"))
        );
        let mut next = scene(&[(master, "2001:db8:1::b")]);
        next.more.push(ip("2001:db8:1::a"));
        assert_eq!(
            drawing.draw(&next, at(master), &[]),
            Ok(ip("2001:db8:1::a"))
        );
        next.more.clear();
        assert_eq!(
            drawing.draw(&next, at(master), &[]),
            Ok(ip("2001:db8:1::b"))
        );
    }

    #[test]
    fn the_kernel_knows_its_own() {
        assert_eq!(Kernel.toward(at("127.0.0.1:9")), Some(ip("127.0.0.1")));
        assert!(Kernel.has(ip("127.0.0.1")) && !Kernel.has(ip("192.0.2.1")));
        assert!(
            interfaces()
                .iter()
                .all(|(_, ip)| reach(*ip) == Reach::Routed)
        );
    }
}
