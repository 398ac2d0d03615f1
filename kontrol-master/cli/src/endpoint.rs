//! How a user names a master: `http://host:port`, `https://host:port` for TLS, `host:port`, `host`, and IPv6 addresses with
//! or without brackets.

use kontrol_runtime::{
    dial::{Target, TargetError},
    host::HostPortError,
};
use std::{fmt, str::FromStr};

/// The master to ask unless another is given.
pub(super) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:8000";

/// Where masters answer, one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterUrls(pub(super) Vec<MasterUrl>);

impl fmt::Display for MasterUrls {
    /// As `--endpoint` takes them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<String> = self.0.iter().map(MasterUrl::to_string).collect();
        f.write_str(&urls.join(","))
    }
}

impl FromStr for MasterUrls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = if text.is_empty() {
            DEFAULT_ENDPOINT
        } else {
            text
        };
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Where a master answers: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MasterUrl(Target);

impl MasterUrl {
    /// How to connect to it.
    pub(super) fn target(&self) -> Target {
        self.0.clone()
    }
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MasterUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let target = text.trim().parse().map_err(|error| match error {
            TargetError::Scheme(scheme) => {
                format!("unknown scheme {scheme}: use http://host:port or https://host:port")
            }
            TargetError::At(HostPortError::Form) => {
                "is not a master: use http://host:port, https://host:port or host[:port]".to_owned()
            }
            TargetError::At(HostPortError::Host) => {
                "names no host: use a name, an IPv4 address, or an IPv6 address in brackets"
                    .to_owned()
            }
            TargetError::At(HostPortError::Port) => "is not a port: use 1 to 65535".to_owned(),
        })?;
        Ok(Self(target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> String {
        text.parse::<MasterUrl>().unwrap().to_string()
    }

    #[test]
    fn every_usual_spelling_names_a_master() {
        assert_eq!(url("http://127.0.0.1:8000"), "http://127.0.0.1:8000");
        assert_eq!(url("http://m1.example:9000/"), "http://m1.example:9000");
        assert_eq!(url(" m1 "), "http://m1:8000");
        assert_eq!(url("m1:81"), "http://m1:81");
        assert_eq!(url("::1"), "http://[::1]:8000");
        assert_eq!(url("[::1]"), "http://[::1]:8000");
        assert_eq!(url("http://[fd00::2]:81"), "http://[fd00::2]:81");
        assert_eq!(url("https://m1/"), "https://m1:8000");
        assert_eq!(url("https://[fd00::2]:81"), "https://[fd00::2]:81");
    }

    #[test]
    fn several_masters_stand_between_commas_and_none_is_the_one_on_this_host() {
        let urls = |text: &str| text.parse::<MasterUrls>().map(|urls| urls.0.len());
        assert_eq!(urls("m1,m2:81, http://m3"), Ok(3));
        assert_eq!(
            "".parse(),
            Ok(MasterUrls(vec![DEFAULT_ENDPOINT.parse().unwrap()]))
        );
        assert!(urls("m1,").is_err());
        let shown = "m1, https://::1".parse::<MasterUrls>().unwrap().to_string();
        assert_eq!(shown, "http://m1:8000,https://[::1]:8000");
    }

    #[test]
    fn what_names_no_master_is_refused_with_a_way_out() {
        for (text, reason) in [
            ("", "host[:port]"),
            ("https://", "host[:port]"),
            (
                "ftp://m1",
                "unknown scheme ftp: use http://host:port or https",
            ),
            ("m1:", "not a port"),
            ("m1:0", "not a port"),
            ("m1:+1", "not a port"),
            ("m1:70000", "not a port"),
            ("m1:80:90", "not a port"),
            ("http://m1/path", "host[:port]"),
            ("user@m1", "host[:port]"),
            ("[::1", "bracket"),
            ("[::x]", "IPv6"),
        ] {
            let error = text.parse::<MasterUrl>().unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_accepted_can_be_dialled(text in "\\PC{0,20}|(https?://)?[a-z0-9.:\\[\\]%/-]{0,12}") {
            if let Ok(url) = text.parse::<MasterUrl>() {
                prop_assert!(url.to_string().parse::<http::Uri>().is_ok());
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
