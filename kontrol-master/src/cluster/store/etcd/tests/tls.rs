//! TLS to etcd: certificates that change while a connection is up, and what is told when there can't be one.

use super::*;
use crate::cluster::store::EtcdTls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::Path;

/// An authority, and the folder for what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, unique_app());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes a certificate for this name and its key.
    fn sign(&self, folder: &Path, file: &str, name: &str, expired: bool) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let signed = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.join(format!("{file}.pem")), signed.pem()).unwrap();
        std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// Writes all files of a server and of its clients.
    fn install(&self, folder: &Path) {
        std::fs::write(folder.join("ca.pem"), self.0.pem()).unwrap();
        self.sign(folder, "server", "127.0.0.1", false);
        self.sign(folder, "client", "kontrol", false);
    }
}

fn files(folder: &Path) -> EtcdOptions {
    let identity = Some((folder.join("client.pem"), folder.join("client.key")));
    EtcdOptions {
        tls: Some(EtcdTls {
            ca: folder.join("ca.pem"),
            identity,
        }),
        ..EtcdOptions::default()
    }
}

#[tokio::test]
async fn files_that_change_after_those_of_etcd_are_read() {
    if is_missing() {
        return;
    }
    let (server, client) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Authority::new();
    first.install(server.path());
    for name in ["ca.pem", "client.pem", "client.key"] {
        std::fs::copy(server.path().join(name), client.path().join(name)).unwrap();
    }
    let mut etcd = Etcd::prepare(1).with_tls(server.path()).run();
    let store = store_with(&etcd, "tls", files(client.path()));
    let start = commit(&store, [put("a", "1")]).await;
    let mut watch = store.watch(start).await.unwrap();

    etcd.kill(0);
    Authority::new().install(server.path());
    etcd.restart(0);
    next_error(&mut watch).await;
    let error = store.snapshot().await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    for name in ["ca.pem", "client.pem", "client.key"] {
        std::fs::copy(server.path().join(name), client.path().join(name)).unwrap();
    }
    at_last(|| store.snapshot()).await;
    commit(&store, [put("a", "2")]).await;
    at_last(|| store.watch(start)).await;
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_with_its_innermost_cause() {
    if is_missing() {
        return;
    }
    let (server, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new();
    authority.install(server.path());
    Authority::new().install(other.path());
    let mut etcd = Etcd::prepare(1).with_tls(server.path()).run();
    let in_clear = Etcd::start(1);
    let missing = EtcdOptions {
        tls: Some(EtcdTls {
            ca: "/nowhere/ca.pem".into(),
            identity: None,
        }),
        ..EtcdOptions::default()
    };
    let no_pem = tempfile::tempdir().unwrap();
    std::fs::write(no_pem.path().join("ca.pem"), "hello").unwrap();
    let anonymous = EtcdOptions {
        tls: Some(EtcdTls {
            ca: server.path().join("ca.pem"),
            identity: None,
        }),
        ..EtcdOptions::default()
    };
    let told = async |etcd: &Etcd, options: EtcdOptions| {
        let store = store_with(etcd, &unique_app(), options);
        let read = store.snapshot().await.unwrap_err().to_string();
        let write = store.commit(txn([], [put("a", "1")])).await.unwrap_err();
        // An etcd that does not even begin to speak with us has written nothing.
        assert!(
            !matches!(write, StoreError::Indeterminate(_)),
            "{read}: {write}"
        );
        read
    };
    for (etcd, options, why) in [
        (&etcd, files(other.path()), "UnknownIssuer"),
        (&in_clear, files(server.path()), "does this etcd speak TLS"),
        (&etcd, missing, "/nowhere/ca.pem"),
        (&etcd, files(no_pem.path()), "holds no certificate"),
    ] {
        let error = told(etcd, options).await;
        assert!(error.contains(why), "{error}");
    }
    for (options, why) in [
        (EtcdOptions::default(), "KONTROL_ETCD_CACERT"),
        (anonymous, "ertificate"),
    ] {
        let store = store_with(&etcd, "x", options);
        let error = store.snapshot().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    for (name, expired, why) in [
        ("127.0.0.1", true, "xpired"),
        ("elsewhere.test", false, "not valid for name"),
    ] {
        etcd.kill(0);
        authority.sign(server.path(), "server", name, expired);
        etcd.restart(0);
        let error = told(&etcd, files(server.path())).await;
        assert!(error.contains(why), "{error}");
    }
}
