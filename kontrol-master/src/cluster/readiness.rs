//! Whether this master can do its work: what `/readyz` and the gRPC health service say.

use crate::cluster::{
    election::{Confirmed, Election},
    relay::{Link, Relay},
    roster::{Changes, Roster},
};
use std::borrow::Cow;
use tokio::sync::watch;

/// Tells whether this master can do its work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    roster: Roster,
    relay: Relay,
    election: Election,
}

impl Readiness {
    /// The readiness of a master with this roster, relay and election.
    pub fn new(roster: Roster, relay: Relay, election: Election) -> Self {
        Self {
            roster,
            relay,
            election,
        }
    }

    /// Whether this master can do its work; if not, why.
    pub fn check(&self) -> Result<(), Cow<'static, str>> {
        if !self.roster.started() || !self.roster.connected() {
            return Err(match self.roster.trouble() {
                Some(why) => format!("the store can't be reached: {why}").into(),
                None => "the store can't be reached".into(),
            });
        }
        if let Some(why) = *self.election.trouble().borrow() {
            return Err(why.into());
        }
        let why = match self.relay.link() {
            Link::Leading | Link::Up | Link::Late => return Ok(()),
            // Keepalives count through the store, where it can be written: the lease tells.
            Link::Down | Link::NoLeader | Link::Opening if self.election.in_touch() => {
                return Ok(());
            }
            Link::Down => "neither the leader nor the store can be reached",
            Link::Opening => "the leader has not answered yet",
            Link::NoLeader => "there is no leader",
            Link::Stranger => {
                "the leader's address leads to another master: give each master an address that the others can dial \
                 (--advertise)"
            }
        };
        Err(why.into())
    }

    /// Wakes when that may have changed.
    pub fn changes(&self) -> ReadinessChanges {
        ReadinessChanges {
            roster: self.roster.changes(),
            link: self.relay.changes(),
            confirmed: self.election.confirmed(),
            trouble: self.election.trouble(),
            election: self.election.clone(),
        }
    }
}

/// Wakes when the readiness may have changed.
#[derive(Debug)]
pub struct ReadinessChanges {
    roster: Changes,
    link: watch::Receiver<Link>,
    confirmed: watch::Receiver<Confirmed>,
    trouble: watch::Receiver<Option<&'static str>>,
    election: Election,
}

impl ReadinessChanges {
    /// Waits. False once the master shuts down. Cancel safe.
    pub async fn next(&mut self) -> bool {
        self.confirmed.borrow_and_update();
        tokio::select! {
            more = self.roster.next() => more,
            more = self.link.changed() => more.is_ok(),
            more = self.confirmed.changed() => more.is_ok(),
            () = self.election.lapses() => true,
            more = self.trouble.changed() => more.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        election::Campaign,
        relay::Parts,
        status::Status,
        store::{EtcdOptions, StoreUrl, open},
    };
    use kontrol_core::{liveness::Instance, view::PeerMaster};
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Duration,
    };
    use tokio::{sync::mpsc, time::timeout};
    use tokio_util::sync::CancellationToken;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_master_that_never_reached_its_store_says_why_in_its_log_and_when_asked() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = StoreUrl::Etcd(vec![nobody.local_addr().unwrap().to_string()]);
        drop(nobody);
        let store = open(&url, "n", "a", EtcdOptions::default()).unwrap();
        let (roster, mirror) = Roster::new(store.clone());
        let me = PeerMaster {
            id: "m".into(),
            address: "m:1".into(),
            instance: Instance(1).to_string(),
            tls: false,
        };
        let second = Duration::from_secs(1);
        let (election, _campaign) = Campaign::new(store.clone(), roster.clone(), me, 5 * second);
        let (relay, _stream, _detour) = Relay::new(Parts {
            me: Instance(1),
            id: "m".into(),
            store,
            roster: roster.clone(),
            election: election.clone(),
            status: Status::default(),
            ttl: 5 * second,
            interval: second,
            detached: mpsc::channel(1).0,
            metrics: Arc::default(),
            dialer: crate::cluster::peers::Dialer::default(),
        });
        let readiness = Readiness::new(roster, relay, election);
        let mut changes = readiness.changes();
        let token = CancellationToken::new();
        let task = tokio::spawn(mirror.run(token.clone()));
        let told = async {
            while !readiness.check().unwrap_err().contains("refused") {
                assert!(changes.next().await);
            }
        };
        timeout(2 * second, told).await.unwrap();
        token.cancel();
        task.await.unwrap();
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(
            log.lines()
                .any(|line| line.contains("WARN") && line.contains("refused")),
            "{log}"
        );
    }
}
