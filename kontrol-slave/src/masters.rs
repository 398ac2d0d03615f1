//! Where the masters are: `KONTROL_MASTER` parsed into tiers of endpoints, and (in [`link`]) the one connection that a
//! tier has at a time.
//!
//! ```text
//! KONTROL_MASTER = tier , tier , ...         every tier gets every keepalive
//! tier           = endpoint | endpoint | ... one endpoint in use, the next takes over
//! endpoint       = [scheme://] host [:port]  a name stands for all its addresses; port 8000 unless given
//! scheme         = http | https              TLS for https, where a certificate is checked for the host; else clear text
//! ```

use kontrol_runtime::{
    dial::{Target, TargetError},
    host::HostPortError,
};
use std::{collections::HashSet, fmt, net::SocketAddr};

pub mod link;

/// One place where a tier's masters may be: a name or an address, a port, and whether TLS is spoken there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Target);

/// The endpoints of one tier of masters: never empty, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    endpoints: Vec<Endpoint>,
}

/// A piece of `KONTROL_MASTER` that names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MasterError {
    /// Nothing stands between two separators, or nothing at all.
    #[error(
        "`{0}` has an empty entry: write host[:port], with `,` between tiers and `|` between the endpoints of a tier"
    )]
    Empty(String),
    /// Another scheme, a path or a user is given.
    #[error(
        "`{0}` is not an endpoint: write host[:port], http://host[:port] or https://host[:port]"
    )]
    Form(String),
    /// The host is no name and no address.
    #[error(
        "`{0}` has no valid host: write a name, an IPv4 address or an IPv6 address in brackets"
    )]
    Host(String),
    /// The port is none.
    #[error("`{0}` has no valid port: it must be from 1 to 65535")]
    Port(String),
    /// A tier is given twice.
    #[error("`{0}` is there twice: each tier would get every keepalive twice")]
    Twice(String),
}

/// Reads the tiers of `KONTROL_MASTER`; all mistakes at once.
pub fn parse(text: &str) -> Result<Vec<Tier>, Vec<MasterError>> {
    let mut mistakes = Vec::new();
    let mut tiers: Vec<Tier> = Vec::new();
    for part in text.split(',') {
        let mut seen = HashSet::new();
        let mut endpoints = Vec::new();
        for piece in part.split('|') {
            match Endpoint::parse(piece.trim()) {
                Ok(endpoint) if seen.insert(endpoint.clone()) => endpoints.push(endpoint),
                Ok(_) => {}
                Err(MasterError::Empty(_)) => mistakes.push(MasterError::Empty(text.into())),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let tier = Tier { endpoints };
        if !tier.endpoints.is_empty() && tiers.contains(&tier) {
            mistakes.push(MasterError::Twice(tier.to_string()));
        }
        tiers.push(tier);
    }
    mistakes.dedup();
    if mistakes.is_empty() {
        Ok(tiers)
    } else {
        Err(mistakes)
    }
}

impl Tier {
    /// The places where its masters may be.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let bar = if index == 0 { "" } else { "|" };
            write!(f, "{bar}{endpoint}")?;
        }
        Ok(())
    }
}

impl Endpoint {
    /// A name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Whether TLS is spoken there.
    pub fn is_tls(&self) -> bool {
        self.0.tls
    }

    /// How to dial it, at one of its addresses.
    pub fn target(&self, address: SocketAddr) -> Target {
        Target {
            address: Some(address),
            ..self.0.clone()
        }
    }

    fn parse(text: &str) -> Result<Self, MasterError> {
        if text.is_empty() {
            return Err(MasterError::Empty(String::new()));
        }
        let mut target: Target = text.parse().map_err(|error| {
            let mistake = match error {
                TargetError::Scheme(_) | TargetError::At(HostPortError::Form) => MasterError::Form,
                TargetError::At(HostPortError::Host) => MasterError::Host,
                TargetError::At(HostPortError::Port) => MasterError::Port,
            };
            mistake(text.into())
        })?;
        target.host.make_ascii_lowercase();
        Ok(Self(target))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0.to_string();
        // Clear text is what an endpoint means that says nothing.
        f.write_str(url.strip_prefix("http://").unwrap_or(&url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Vec<String> {
        let tiers = parse(text).unwrap();
        tiers.iter().map(Tier::to_string).collect()
    }

    #[test]
    fn every_form_of_an_endpoint_is_read() {
        for (text, endpoint) in [
            ("master", "master:8000"),
            ("Master.example.org.:81", "master.example.org.:81"),
            ("http://10.0.0.1:9000/", "10.0.0.1:9000"),
            ("HTTP://kontrol_master", "kontrol_master:8000"),
            ("[fd00::1]:81", "[fd00::1]:81"),
            ("http://[::1]", "[::1]:8000"),
            ("fd00::1", "[fd00::1]:8000"),
            ("https://Master", "https://master:8000"),
            ("HTTPS://[::1]:81/", "https://[::1]:81"),
        ] {
            assert_eq!(shown(text), [endpoint], "{text}");
        }
    }

    #[test]
    fn commas_separate_tiers_and_bars_their_endpoints() {
        assert_eq!(
            shown("a|b:1 | a, http://c"),
            ["a:8000|b:1", "c:8000"],
            "an endpoint given twice counts once"
        );
        assert_eq!(
            shown("https://a|a|http://a,https://a"),
            ["https://a:8000|a:8000", "https://a:8000"],
            "with TLS it is another endpoint"
        );
    }

    #[test]
    fn each_mistake_is_told_at_once() {
        for (text, said) in [
            ("", "empty entry"),
            ("a,,b", "empty entry"),
            ("a|", "empty entry"),
            ("https://", "not an endpoint"),
            ("https://a/path", "not an endpoint"),
            ("ftp://a", "not an endpoint"),
            ("http://a/path", "not an endpoint"),
            ("user@a", "not an endpoint"),
            ("a b", "no valid host"),
            ("[fd00::zz]:80", "no valid host"),
            ("[fd00::1", "no valid host"),
            ("[::1]80", "not an endpoint"),
            ("a:0", "no valid port"),
            ("a:65536", "no valid port"),
            ("a:", "no valid port"),
            ("a:+80", "no valid port"),
            ("a|b,a:8000|b", "there twice"),
        ] {
            let mistakes = parse(text).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            let line = mistakes[0].to_string();
            assert!(line.contains(said), "{text}: {line}");
        }
        assert_eq!(parse("https://,b:0|ftp://c").unwrap_err().len(), 3);
    }

    proptest! {
        #[test]
        fn no_text_breaks_it_and_what_is_read_reads_back(text in "(https?://)?[a-z0-9:/.,|\\[\\]_ -]{0,24}") {
            if let Ok(tiers) = parse(&text) {
                let again: Vec<String> = tiers.iter().map(Tier::to_string).collect();
                prop_assert_eq!(parse(&again.join(",")).unwrap(), tiers);
            }
        }
    }
}
