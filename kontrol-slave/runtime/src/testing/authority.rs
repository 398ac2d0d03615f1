//! An authority that signs certificates for tests.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// An authority, made anew: two of one name have different keys.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Where the files of a certificate are.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

fn key() -> KeyPair {
    KeyPair::generate().expect("ring makes keys")
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, key()).expect("it can sign itself"))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names and addresses, and its key.
    pub fn sign(&self, names: &[&str]) -> (String, String) {
        self.sign_as(names, |_| {})
    }

    /// A certificate with something else about it, and its key.
    pub fn sign_as(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("these are names");
        change(&mut params);
        let key = key();
        let signed = params.signed_by(&key, &self.0).expect("it can sign");
        (signed.pem(), key.serialize_pem())
    }

    /// A certificate for a client of this name (CN) and these roles (O), and its key.
    pub fn sign_client(&self, name: &str, organization: &str) -> (String, String) {
        self.sign_as(&[], |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        })
    }

    /// Writes `ca.pem`.
    pub fn install(&self, folder: &Path) -> PathBuf {
        let path = folder.join("ca.pem");
        fs::write(&path, self.pem()).expect("the folder takes files");
        path
    }
}

/// Writes a certificate and its key, as `<name>.pem` and `<name>.key`.
pub fn write(folder: &Path, name: &str, (cert, key): &(String, String)) -> Pair {
    let pair = Pair {
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    fs::write(&pair.cert, cert).expect("the folder takes files");
    fs::write(&pair.key, key).expect("the folder takes files");
    pair
}
