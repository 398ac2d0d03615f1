//! Which address is drawn, on hosts of all kinds.

use super::*;
use std::collections::HashMap;

/// A host with these routes (destination, source) and interfaces.
#[derive(Default)]
struct Scene {
    routes: HashMap<SocketAddr, IpAddr>,
    interfaces: Vec<(String, IpAddr)>,
}

impl Host for Scene {
    fn toward(&self, to: SocketAddr) -> Option<IpAddr> {
        self.routes.get(&to).copied()
    }
    fn has(&self, ip: IpAddr) -> bool {
        self.interfaces.iter().any(|(_, own)| *own == ip)
    }
}

const ANY: &str = "192.0.2.1:9";
const ETCD: &str = "10.0.0.9:2379";
const OWN_ETCD: &str = "127.0.0.1:2379";

fn scene(routes: &[(&str, &str)], interfaces: &[(&str, &str)]) -> Scene {
    let routes = routes.iter().map(|(to, from)| (at(to), ip(from)));
    let interfaces = interfaces
        .iter()
        .map(|(name, own)| ((*name).to_owned(), ip(own)));
    Scene {
        routes: routes.collect(),
        interfaces: interfaces.collect(),
    }
}
fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn drawn(draw: &mut Draw, scene: &Scene, members: &[&str]) -> Option<IpAddr> {
    let members: Vec<SocketAddr> = members.iter().map(|member| at(member)).collect();
    draw.draw(scene, &members, &scene.interfaces)
}

#[test]
fn the_way_to_the_store_tells_the_address() {
    let host = scene(&[(ETCD, "10.0.0.1"), (ANY, "192.168.0.1")], &[]);
    assert_eq!(
        drawn(&mut Draw::new(true), &host, &[ETCD]),
        Some(ip("10.0.0.1"))
    );
}

#[test]
fn a_store_on_this_host_does_not() {
    let own = (OWN_ETCD, "127.0.0.1");
    let host = scene(&[own, (ANY, "192.168.0.1")], &[]);
    assert_eq!(
        drawn(&mut Draw::new(true), &host, &[OWN_ETCD]),
        Some(ip("192.168.0.1"))
    );
    assert_eq!(
        drawn(
            &mut Draw::new(true),
            &scene(&[own, (ETCD, "10.0.0.1")], &[]),
            &[OWN_ETCD, ETCD]
        ),
        Some(ip("10.0.0.1")),
        "another member does"
    );
    let host = scene(&[own], &[("docker0", "172.17.0.1"), ("eth0", "10.0.0.1")]);
    assert_eq!(
        drawn(&mut Draw::new(true), &host, &[OWN_ETCD]),
        Some(ip("10.0.0.1"))
    );
    assert_eq!(
        drawn(&mut Draw::new(true), &scene(&[own], &[]), &[OWN_ETCD]),
        None
    );
}

#[test]
fn nothing_that_others_cannot_dial_is_drawn() {
    let host = scene(&[(ETCD, "169.254.1.1"), (ANY, "127.0.0.1")], &[]);
    assert_eq!(drawn(&mut Draw::new(true), &host, &[ETCD]), None);
    let host = scene(&[], &[("eth0", "2001:db8::1")]);
    assert_eq!(
        drawn(&mut Draw::new(true), &host, &[]),
        None,
        "only IPv4 is listened on"
    );
    assert_eq!(
        drawn(&mut Draw::new(false), &host, &[]),
        Some(ip("2001:db8::1"))
    );
}

#[test]
fn the_address_follows_the_host_and_a_better_way_wins() {
    let mut draw = Draw::new(true);
    let eth = ("eth0", "10.0.0.1");
    let early = scene(&[], &[("eth1", "10.5.0.1"), eth]);
    assert_eq!(drawn(&mut draw, &early, &[]), Some(ip("10.5.0.1")));
    let more = scene(&[], &[eth, ("eth1", "10.5.0.1")]);
    assert_eq!(
        drawn(&mut draw, &more, &[]),
        Some(ip("10.5.0.1")),
        "no reason to change"
    );
    let named = scene(&[(ETCD, "10.0.0.1")], &[eth, ("eth1", "10.5.0.1")]);
    assert_eq!(
        drawn(&mut draw, &named, &[ETCD]),
        Some(ip("10.0.0.1")),
        "the store's name resolves"
    );
    assert_eq!(
        drawn(&mut draw, &more, &[]),
        Some(ip("10.0.0.1")),
        "the name server is away again"
    );
    let renewed = scene(&[(ETCD, "10.0.0.2")], &[("eth0", "10.0.0.2")]);
    assert_eq!(drawn(&mut draw, &renewed, &[ETCD]), Some(ip("10.0.0.2")));
    assert_eq!(
        drawn(&mut draw, &scene(&[], &[]), &[]),
        None,
        "the host lost it"
    );
}
