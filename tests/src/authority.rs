//! A certificate authority of a test, and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// An authority with a folder for its files.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    ca: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Until when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// For longer than any test.
    LongAfter,
    /// It has expired.
    LongAgo,
    /// Until this time.
    At(SystemTime),
}

impl Authority {
    /// An authority of this name; its own certificate is `<name>.pem` in the folder.
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = dir.join(format!("{name}.pem"));
        fs::write(&ca, issuer.pem()).unwrap();
        Self {
            issuer,
            dir: dir.to_owned(),
            ca,
        }
    }

    /// The file of its own certificate.
    pub fn path(&self) -> &Path {
        &self.ca
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Signs the certificate of a server for these names and addresses, in files of this name: what was there is replaced.
    pub fn server(&self, file: &str, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        self.sign(
            file,
            CertificateParams::new(names).unwrap(),
            Until::LongAfter,
        )
    }

    /// Signs the certificate of a client, CN and O as given.
    pub fn client(&self, file: &str, name: &str, organization: &str, until: Until) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        self.sign(file, params, until)
    }

    fn sign(&self, file: &str, mut params: CertificateParams, until: Until) -> Pair {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = match until {
            Until::LongAfter => date_time_ymd(2200, 1, 1),
            Until::LongAgo => date_time_ymd(2001, 1, 1),
            Until::At(time) => time.into(),
        };
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.dir.join(format!("{file}.pem")),
            key: self.dir.join(format!("{file}.key")),
        };
        // Replaced as tools do it: never half a file.
        for (path, text) in [(&pair.cert, signed.pem()), (&pair.key, key.serialize_pem())] {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        }
        pair
    }
}

impl Pair {
    /// As flags of a program: the name of each, and its value.
    pub fn settings<'a>(&self, cert: &'a str, key: &'a str) -> [(&'a str, String); 2] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [(cert, text(&self.cert)), (key, text(&self.key))]
    }
}
