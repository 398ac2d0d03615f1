//! How a place in a network is written: `host[:port]`, where the host is a name, an IPv4 address, or an IPv6 address in
//! brackets, which can be left out where no port follows. PURE.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The port of a master unless another is given.
pub const MASTER_PORT: u16 = 8000;

/// A host, and a port if one was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port: not 0.
    pub port: Option<u16>,
}

/// What is wrong with a text that is no `host[:port]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPortError {
    /// There is nothing, or more than a host and a port.
    Form,
    /// The host is no name and no address.
    Host,
    /// The port is none.
    Port,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        if text.is_empty() || text.contains(['/', '?', '#', '@']) {
            return Err(HostPortError::Form);
        }
        let is_ip = |host: &str| host.parse::<Ipv6Addr>().is_ok();
        let (host, port) = if let Some(inner) = text.strip_prefix('[') {
            match inner.split_once(']') {
                Some((host, "")) if is_ip(host) => (host, None),
                Some((host, behind)) if is_ip(host) => {
                    let port = behind.strip_prefix(':').ok_or(HostPortError::Form)?;
                    (host, Some(port))
                }
                _ => return Err(HostPortError::Host),
            }
        } else if is_ip(text) {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) if is_name(host) => (host, Some(port)),
                None if is_name(text) => (text, None),
                _ => return Err(HostPortError::Host),
            }
        };
        // The standard parser takes a plus sign; a URL does not.
        let number = |port: &str| {
            let number = port.parse().ok().filter(|number| *number > 0);
            number.filter(|_| !port.starts_with('+'))
        };
        let port = port.map(|port| number(port).ok_or(HostPortError::Port));
        Ok(Self {
            host: host.to_owned(),
            port: port.transpose()?,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Whether a host is a DNS name or an IPv4 address. Compose names services with underscores, so they pass.
fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    host.len() <= 253
        && host
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(fits))
}

/// The address in `address:port`; none where a name stands.
pub fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<SocketAddr>().ok()?;
    Some(address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_so_that_it_reads_back() {
        for (text, host, port, written) in [
            ("m1", "m1", None, "m1"),
            (
                "Web_1.example.:80",
                "Web_1.example.",
                Some(80),
                "Web_1.example.:80",
            ),
            ("10.0.0.1:65535", "10.0.0.1", Some(65535), "10.0.0.1:65535"),
            ("::1", "::1", None, "[::1]"),
            ("[fd00::1]", "fd00::1", None, "[fd00::1]"),
            ("[fd00::1]:5", "fd00::1", Some(5), "[fd00::1]:5"),
        ] {
            let at: HostPort = text.parse().unwrap();
            assert_eq!((at.host.as_str(), at.port), (host, port), "{text}");
            assert_eq!(at.to_string(), written);
            assert_eq!(written.parse(), Ok(at));
        }
    }

    #[test]
    fn what_is_none_is_refused_for_what_is_wrong_with_it() {
        use HostPortError::{Form, Host, Port};
        for (error, texts) in [
            (Form, ["", "a/b", "user@a", "[::1]80"]),
            (Host, [":80", "a b", "[::1", "[a]:1"]),
            (Port, ["a:", "a:0", "a:+1", "[::1]:65536"]),
        ] {
            for text in texts {
                assert_eq!(text.parse::<HostPort>(), Err(error), "{text}");
            }
        }
    }
}
