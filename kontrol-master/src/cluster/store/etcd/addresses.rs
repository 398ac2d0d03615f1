//! Where the members are: the addresses of the names that a person gave.
//!
//! One name may stand for many members (a headless Service of Kubernetes, a record with several addresses), so each
//! address is a member of its own. A name is looked up when it is first needed, and again when members fail; what was
//! known stays in use while a lookup fails or hangs. At most one lookup of a name is under way: a resolver that hangs
//! costs one thread, not one a call.

use kontrol_runtime::host::HostPort;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Most addresses of one name that are used.
const MOST_ADDRESSES: usize = 16;

pub(super) type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// A member, or several, as a person names them.
#[derive(Debug)]
pub(super) struct Name {
    /// `host:port`, as it was given.
    text: String,
    host: String,
    port: u16,
    resolve: Resolve,
    /// A lookup is under way.
    busy: Arc<AtomicBool>,
    /// What was found last.
    found: Mutex<Vec<SocketAddr>>,
}

impl Name {
    /// Reads `host:port`.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        Self::with(text, system)
    }

    pub(super) fn with(text: &str, resolve: Resolve) -> Result<Self, String> {
        let at: HostPort = text
            .parse()
            .map_err(|_| format!("{text} is not host:port"))?;
        let port = at.port.ok_or_else(|| format!("{text} has no port"))?;
        Ok(Self {
            text: text.to_owned(),
            host: at.host,
            port,
            resolve,
            busy: Arc::default(),
            found: Mutex::new(text.parse().into_iter().collect()),
        })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is an address already, which no lookup changes.
    pub(super) fn is_address(&self) -> bool {
        self.text.parse::<SocketAddr>().is_ok()
    }

    /// Looks the name up. The addresses that are to be used; and what went wrong, where something did.
    pub(super) async fn look_up(&self, limit: Duration) -> (Vec<SocketAddr>, Option<String>) {
        if self.is_address() {
            return (self.known(), None);
        }
        match self.ask(limit).await {
            Ok(addresses) => {
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = addresses.clone();
                (addresses, None)
            }
            Err(text) => {
                let text = format!("can't look up {}: {text}", self.host);
                (self.known(), Some(text))
            }
        }
    }

    fn known(&self) -> Vec<SocketAddr> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    async fn ask(&self, limit: Duration) -> Result<Vec<SocketAddr>, String> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err("the resolver has not answered yet".into());
        }
        let (host, port, resolve) = (self.host.clone(), self.port, self.resolve);
        let busy = Busy(Arc::clone(&self.busy));
        let lookup = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            resolve(&host, port)
        });
        let mut addresses = match timeout(limit, lookup).await {
            Ok(Ok(Ok(addresses))) => addresses,
            Ok(Ok(Err(error))) => return Err(error.to_string()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the resolver does not answer in time".into()),
        };
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(MOST_ADDRESSES);
        if addresses.is_empty() {
            return Err("the name has no address".into());
        }
        Ok(addresses)
    }
}

/// A lookup that is under way, until it ends.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, LazyLock};

    const LIMIT: Duration = Duration::from_secs(10);

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_address_is_itself_and_a_name_is_all_its_addresses_once() {
        for text in ["10.0.0.1:2379", "[::1]:5"] {
            let name = Name::new(text).unwrap();
            assert!(name.is_address());
            assert_eq!(name.look_up(LIMIT).await, (addresses(&[text]), None));
        }
        let name = Name::with("etcd:7", |host, port| {
            assert_eq!((host, port), ("etcd", 7));
            Ok(addresses(&["10.0.0.2:7", "10.0.0.1:7", "10.0.0.2:7"]))
        });
        let found = name.unwrap().look_up(LIMIT).await;
        assert_eq!(found, (addresses(&["10.0.0.2:7", "10.0.0.1:7"]), None));
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_asked_once_and_what_was_known_serves() {
        static BARRIER: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));
        fn hangs(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            BARRIER.wait();
            Err(io::Error::other("no such name"))
        }
        let mut name = Name::with("etcd:7", |_, _| Ok(addresses(&["10.0.0.1:7"]))).unwrap();
        name.look_up(LIMIT).await;
        name.resolve = hangs;
        let (found, trouble) = name.look_up(Duration::from_millis(1)).await;
        assert_eq!(found, addresses(&["10.0.0.1:7"]));
        assert!(trouble.unwrap().contains("in time"));
        let (found, trouble) = name.look_up(LIMIT).await;
        assert_eq!(found, addresses(&["10.0.0.1:7"]));
        assert!(trouble.unwrap().contains("yet"));
        tokio::task::spawn_blocking(|| BARRIER.wait())
            .await
            .unwrap();
        while name.busy.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        name.resolve = |_, _| Err(io::Error::other("no such name"));
        let (found, trouble) = name.look_up(LIMIT).await;
        assert_eq!(found, addresses(&["10.0.0.1:7"]));
        assert!(trouble.unwrap().contains("no such name"));
    }
}
