//! Where the store is, as a person writes it, and the one door to all stores: `open`.
//!
//! ```text
//! memory:                        inside this process, gone with it
//! file:DIR                       one crash-safe file, DIR/kontrol.redb
//! etcd://h1:2379,h2:2379         etcd; the port is 2379 unless given
//! h1:2379,h2                     the classic spelling of the same (`StoreUrl::classic`)
//! ```
//!
//! Secrets are no part of the URL: it is shown in logs and process lists. Nothing here prints a password.

use super::{SharedStore, StoreError, embedded::EmbeddedStore, etcd::EtcdStore};
use kontrol_runtime::host::{HostPort, HostPortError};
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

/// etcd's client port.
const ETCD_PORT: u16 = 2379;
/// More members than any etcd has: a longer list is a mistake.
const MAX_ENDPOINTS: usize = 32;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreUrl {
    /// Inside this process.
    #[default]
    Memory,
    /// A file in this directory.
    File(PathBuf),
    /// etcd members, each `host:port`.
    Etcd(Vec<String>),
}

/// A text that names no store, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreUrlError(String);

impl StoreUrl {
    /// Reads the classic spelling of etcd: `h1[:port],h2[:port]`.
    pub fn classic(list: &str) -> Result<Self, StoreUrlError> {
        // Whoever puts a password here must not see it in a log.
        if list.contains('@') {
            return Err(StoreUrlError(
                "holds a user; give it as KONTROL_ETCD_USER, and the password as KONTROL_ETCD_PASSWORD".into(),
            ));
        }
        let mut endpoints = Vec::new();
        for text in list.split(',').map(str::trim) {
            let endpoint = endpoint(text)?;
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        if endpoints.len() > MAX_ENDPOINTS {
            let reason = format!("names more than {MAX_ENDPOINTS} etcd members");
            return Err(StoreUrlError(reason));
        }
        Ok(Self::Etcd(endpoints))
    }
}

/// `host[:port]` with the port filled in.
fn endpoint(text: &str) -> Result<String, StoreUrlError> {
    const FORM: &str = "which is not host:port (an IPv6 address goes in brackets)";
    let bad = |why: &str| StoreUrlError(format!("has the etcd member `{text}`, {why}"));
    if text.is_empty() {
        return Err(StoreUrlError(
            "names no etcd member where one is expected; write etcd://host:2379,host:2379".into(),
        ));
    }
    if text.contains("://") {
        return Err(bad(
            "which has a scheme; write host:port (TLS is turned on by KONTROL_ETCD_CACERT)",
        ));
    }
    let at: HostPort = text.parse().map_err(|error| match error {
        HostPortError::Form | HostPortError::Host => bad(FORM),
        HostPortError::Port => bad("whose port is not a number from 1 to 65535"),
    })?;
    if at.host.contains(':') && !text.starts_with('[') {
        return Err(bad(FORM));
    }
    let port = at.port.or(Some(ETCD_PORT));
    Ok(HostPort { port, ..at }.to_string())
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        if matches!(text, "memory" | "memory:") {
            return Ok(Self::Memory);
        }
        if let Some(list) = text.strip_prefix("etcd://") {
            return Self::classic(list.trim_end_matches('/'));
        }
        match text.strip_prefix("file:") {
            Some("" | "//") => Err(StoreUrlError(
                "names no directory; write file:/var/lib/kontrol".into(),
            )),
            Some(dir) => Ok(Self::File(dir.strip_prefix("//").unwrap_or(dir).into())),
            None => Err(StoreUrlError(
                "is none of memory:, file:DIR, etcd://host:2379,host:2379".into(),
            )),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::File(dir) => {
                let dir = dir.display().to_string();
                // Without these, its own would be taken for those of the URL.
                let slashes = if dir.starts_with("//") { "//" } else { "" };
                write!(f, "file:{slashes}{dir}")
            }
            Self::Etcd(endpoints) => write!(f, "etcd://{}", endpoints.join(",")),
        }
    }
}

/// What etcd asks for beside its address.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// The user, when etcd has authentication turned on.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// TLS; in clear when absent.
    pub tls: Option<EtcdTls>,
}

/// The files of a TLS connection, read again whenever a connection is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authority that signed the members' certificates, PEM.
    pub ca: PathBuf,
    /// The client certificate and its key, PEM, when etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("tls", &self.tls)
            .finish()
    }
}

/// Opens the store of one ensemble. A file is opened (or refused) at once; etcd is connected to when it is first used,
/// so that a master may start before it.
pub fn open(
    url: &StoreUrl,
    namespace: &str,
    app: &str,
    options: EtcdOptions,
) -> Result<SharedStore, StoreError> {
    let prefix = prefix(namespace, app)?;
    Ok(match url {
        StoreUrl::Memory => Arc::new(EmbeddedStore::memory()),
        StoreUrl::File(dir) => Arc::new(EmbeddedStore::file(dir, &prefix)?),
        StoreUrl::Etcd(endpoints) => Arc::new(EtcdStore::new(endpoints, prefix, options)?),
    })
}

/// The ensemble's prefix. A name with a slash could reach into another ensemble.
fn prefix(namespace: &str, app: &str) -> Result<String, StoreError> {
    for (what, name) in [("namespace", namespace), ("app", app)] {
        if name.is_empty() || name.contains('/') || name.contains(char::is_control) {
            let reason =
                format!("the {what} {name:?} can't be part of a key; use a name without a slash");
            return Err(StoreError::Refused(reason));
        }
    }
    Ok(format!("/kontrol/{namespace}/{app}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(endpoints: &[&str]) -> StoreUrl {
        StoreUrl::Etcd(endpoints.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_spelling_is_read_and_shown_again() {
        let cases = [
            ("memory:", StoreUrl::Memory, "memory:"),
            ("file:/a/b", StoreUrl::File("/a/b".into()), "file:/a/b"),
            ("file:///a", StoreUrl::File("/a".into()), "file:/a"),
            ("file:rel", StoreUrl::File("rel".into()), "file:rel"),
            ("file:////a", StoreUrl::File("//a".into()), "file:////a"),
            (
                "etcd://a,b:23,[::1]:5,[::2]",
                etcd(&["a:2379", "b:23", "[::1]:5", "[::2]:2379"]),
                "etcd://a:2379,b:23,[::1]:5,[::2]:2379",
            ),
            ("etcd://a:1/", etcd(&["a:1"]), "etcd://a:1"),
        ];
        for (text, url, shown) in cases {
            assert_eq!(text.parse::<StoreUrl>().as_ref(), Ok(&url), "{text}");
            assert_eq!(url.to_string(), shown);
        }
        assert_eq!(
            StoreUrl::classic("10.0.0.1, h:9,h:9"),
            Ok(etcd(&["10.0.0.1:2379", "h:9"]))
        );
    }

    #[test]
    fn a_wrong_url_says_what_to_write_and_shows_no_secret() {
        for text in [
            "",
            "redis://h",
            "file:",
            "file://",
            "etcd://",
            "etcd://a,,b",
            "etcd://a:x",
            "etcd://a:0",
            "etcd://a:70000",
            "etcd://a:",
            "etcd://::1",
            "etcd://http://a",
            "etcd://:2379",
            "etcd://a b",
            "etcd://a/b",
        ] {
            let parsed = text.parse::<StoreUrl>();
            assert!(parsed.is_err(), "{text} gives {parsed:?}");
        }
        let error = "etcd://root:geheim@h".parse::<StoreUrl>().unwrap_err();
        assert!(error.to_string().contains("KONTROL_ETCD_USER"), "{error}");
        assert!(!error.to_string().contains("geheim"), "{error}");
    }

    #[test]
    fn options_never_show_the_password() {
        let options = EtcdOptions {
            user: Some("kontrol".into()),
            password: Some("geheim".into()),
            tls: None,
        };
        let shown = format!("{options:?}");
        assert!(
            shown.contains("kontrol") && !shown.contains("geheim"),
            "{shown}"
        );
    }

    #[test]
    fn a_name_that_could_reach_into_another_ensemble_is_refused() {
        assert_eq!(prefix("default", "web").unwrap(), "/kontrol/default/web/");
        for (namespace, app) in [
            ("", "a"),
            ("a", ""),
            ("a/b", "c"),
            ("a", "b/"),
            ("a", "b\n"),
        ] {
            let refused = open(&StoreUrl::Memory, namespace, app, EtcdOptions::default());
            assert!(matches!(refused, Err(StoreError::Refused(_))));
        }
    }
}
