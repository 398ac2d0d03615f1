//! TLS by rustls: what is read from PEM files, and what is said when two ends do not come together.
//!
//! One implementation of cryptography (ring), named wherever a configuration is made: nothing here depends on a default of
//! the process. What is wrong is told in one line that names the file, or what to do. No line has anything of a key in it.

mod explain;
mod pem;
mod pinned;

pub use explain::{explain, explain_text};
pub use pem::{certificates, private_key, roots};
pub use pinned::pinned;

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, client::WantsClientCert, crypto::CryptoProvider,
    sign::CertifiedKey,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The protocol that is agreed on in a handshake: HTTP/2, which gRPC is spoken over.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// A file, or two of them, that TLS can't use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// It can't be read.
    #[error("can't read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It holds something else.
    #[error("{} holds no {wanted} in PEM: {found}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What it holds, and what to do.
        found: String,
    },
    /// It holds what it should, but that is of no use.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The two do not belong together.
    #[error(
        "the key in {} is not that of the certificate in {}: give the two that were made together, the certificate first where there is a chain",
        key.display(), certificate.display()
    )]
    Strangers {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
    /// This system trusts nobody.
    #[error(
        "no authority is known to this system{0}: give the one that signed the master's certificate with --ca"
    )]
    NoRoots(String),
    /// TLS itself does not work.
    #[error("TLS: {0}")]
    Broken(String),
}

/// The cryptography of all TLS here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How to speak TLS to whoever these authorities vouch for.
pub fn client(
    roots: RootCertStore,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Broken(error.to_string()))?;
    Ok(builder.with_root_certificates(roots))
}

/// A certificate with its chain, and its key, from two files. Both are read again once when they do not belong together:
/// whoever renews them replaces one after the other.
pub fn identity(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let read = || {
        let chain = pem::certificates(certificate)?;
        let unfit = |path: &Path, reason: String| TlsError::Unfit {
            path: path.to_owned(),
            reason,
        };
        let signing = provider()
            .key_provider
            .load_private_key(pem::private_key(key)?)
            .map_err(|_| {
                let reason = "this key is of a kind that can't be used here: make one with ECDSA (P-256, P-384), Ed25519 or RSA (2048 bits or more)";
                unfit(key, reason.to_owned())
            })?;
        let both = CertifiedKey::new(chain, signing);
        match both.keys_match() {
            Ok(()) => Ok(Arc::new(both)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Strangers {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            }),
            Err(error) => Err(unfit(certificate, error.to_string())),
        }
    };
    match read() {
        Err(TlsError::Strangers { .. }) => read(),
        result => result,
    }
}

/// The authorities that this system trusts.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry a few that rustls can't read; those are nobody's.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first();
        let why = why.map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsError::NoRoots(why));
    }
    Ok(roots)
}
