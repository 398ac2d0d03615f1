//! The host names that a request may use for this master.
//!
//! A page on the web can have its own name lead to an address of this network, and then ask this master from the browser of
//! somebody inside: to the browser both are one site. The name gives it away. An address can't be such a name.

use crate::cluster::advertise::Advertised;
use kontrol_runtime::host::HostPort;
use std::{collections::BTreeSet, net::IpAddr};
use tokio::sync::watch;

use super::Credentials;

/// Stands for every name in `--hosts`.
pub const ANY: &str = "any";

/// The names that count. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hosts {
    any: bool,
    given: BTreeSet<String>,
    advertised: watch::Receiver<Advertised>,
    credentials: Credentials,
}

impl Hosts {
    /// These names, and those that the master goes by itself: what it advertises, and what its certificate is for.
    pub fn new(
        given: &[String],
        advertised: watch::Receiver<Advertised>,
        credentials: Credentials,
    ) -> Self {
        Self {
            any: given.iter().any(|name| name == ANY),
            given: given.iter().map(|name| plain(name)).collect(),
            advertised,
            credentials,
        }
    }

    /// Whether `host[:port]` names this master; else the name.
    pub fn check(&self, authority: &str) -> Result<(), String> {
        let at = authority.parse::<HostPort>();
        let name = plain(&at.map_or_else(|_| authority.to_owned(), |at| at.host));
        let own = |name: &str| {
            let advertised = self.advertised.borrow();
            let address = advertised.address.as_deref().unwrap_or_default();
            address
                .parse::<HostPort>()
                .is_ok_and(|at| plain(&at.host) == name)
        };
        let certified = |name: &str| {
            self.credentials
                .now()
                .names()
                .any(|own| is_covered(name, own))
        };
        let known = self.any
            || name.parse::<IpAddr>().is_ok()
            || is_local(&name)
            || name.ends_with(".localhost")
            || self.given.contains(&name)
            || own(&name)
            || certified(&name);
        if known {
            Ok(())
        } else {
            Err(name.chars().take(80).collect())
        }
    }
}

/// A name of one label (`localhost`, a service, a host of this network): no page on the web can have such a one.
fn is_local(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Without the dot at the end, and in small letters.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a name of a certificate is this one: `*` stands for its first label (RFC 6125, 6.4.3).
fn is_covered(name: &str, certified: &str) -> bool {
    let certified = plain(certified);
    match certified.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => name == certified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(given: &[&str], advertised: Option<&str>) -> Hosts {
        let given: Vec<String> = given.iter().map(ToString::to_string).collect();
        let advertised = Advertised {
            address: advertised.map(str::to_owned),
            ..Advertised::default()
        };
        Hosts::new(&given, watch::channel(advertised).1, Credentials::default())
    }

    #[test]
    fn its_own_names_and_every_address_count_and_no_others() {
        let own = hosts(&["Masters.Example.org"], Some("m1.example.org:8000"));
        for name in [
            "localhost",
            "localhost:8000",
            "masters:8000",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[fd00::2]",
            "m1.example.org",
            "M1.example.org:80",
            "masters.example.org:8000",
        ] {
            assert_eq!(own.check(name), Ok(()), "{name}");
        }
        for name in [
            "evil.example",
            "localhost.evil.example:8000",
            "m2.example.org",
            "example.org",
            "127.0.0.1.evil.example",
            "",
            "a b",
            "m1.example.org@evil",
        ] {
            assert!(own.check(name).is_err(), "{name}");
        }
        assert!(hosts(&[], None).check("masters.example.org").is_err());
        assert_eq!(hosts(&["any"], None).check("evil.example"), Ok(()));
    }

    #[test]
    fn a_star_of_a_certificate_stands_for_one_label() {
        assert!(is_covered("a.example.org", "*.example.org"));
        for name in ["example.org", "a.b.example.org", "a.example.com"] {
            assert!(!is_covered(name, "*.example.org"), "{name}");
        }
        assert!(is_covered("m1", "M1"));
    }
}
