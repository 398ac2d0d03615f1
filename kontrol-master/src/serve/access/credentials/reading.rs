//! The files, read on this thread: what each of them must hold, and what is told of one that does not.

#[cfg(test)]
mod tests;

use super::{Files, Known};
use crate::serve::access::certificate;
use kontrol_core::access::tokens::Tokens;
use kontrol_runtime::{command_line::Mistake, folder::Stamp, tls};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest file of tokens, in bytes: each of its lines takes some 100.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Files that are read together, for they go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The tokens.
    Tokens,
    /// The authorities, and what they have revoked.
    Authorities,
    /// The certificate of the port, which asks for one by those authorities.
    Identity,
}

impl Part {
    /// Every part, each behind what it rests on.
    pub(super) const ALL: [Self; 3] = [Self::Tokens, Self::Authorities, Self::Identity];
}

/// Which versions of the files there are: of each part, in the order of [`Part::ALL`]; none of a file that is not there.
pub(super) type Stamps = [Vec<Option<Stamp>>; 3];

impl Files {
    /// Reads all of them, on this thread; tells each one that is of no use.
    pub fn read(&self) -> Result<Known, Vec<Mistake>> {
        let mut known = Known::default();
        let mistakes = self.read_parts(&Part::ALL, &mut known);
        let mistakes: Vec<Mistake> = mistakes.into_iter().flat_map(|(_, each)| each).collect();
        if mistakes.is_empty() {
            Ok(known)
        } else {
            Err(mistakes)
        }
    }

    /// Reads some parts over what counted before: of one that is of no use, that goes on counting. Tells those.
    pub(super) fn read_parts(
        &self,
        parts: &[Part],
        known: &mut Known,
    ) -> Vec<(Part, Vec<Mistake>)> {
        let read = parts
            .iter()
            .map(|part| (*part, self.read_part(*part, known)));
        read.filter_map(|(part, read)| Some((part, read.err()?)))
            .collect()
    }

    fn read_part(&self, part: Part, known: &mut Known) -> Result<(), Vec<Mistake>> {
        match part {
            Part::Tokens => {
                if let Some(path) = &self.tokens {
                    known.tokens = Arc::new(read_tokens(path)?);
                }
            }
            Part::Authorities => {
                if let Some(path) = &self.client_ca {
                    let verifier = self.verifier(path).map_err(|mistake| vec![mistake])?;
                    known.verifier = Some(verifier);
                    known.authorities += 1;
                }
            }
            Part::Identity => {
                if let Some((certificate, key)) = &self.identity {
                    let (config, names) = port(certificate, key, known.verifier.clone())?;
                    known.tls = Some(Arc::new(config));
                    known.names = names;
                }
            }
        }
        Ok(())
    }

    /// Which versions of the files there are now.
    pub(super) fn stamps(&self) -> Stamps {
        let stamp = |path: &PathBuf| fs::metadata(path).ok().map(|meta| Stamp::from(&meta));
        let pair = self.identity.iter();
        let pair = pair.flat_map(|(certificate, key)| [certificate, key]);
        [
            self.tokens.iter().map(stamp).collect(),
            self.client_ca
                .iter()
                .chain(&self.client_crl)
                .map(stamp)
                .collect(),
            pair.map(stamp).collect(),
        ]
    }

    fn verifier(&self, ca: &Path) -> Result<Arc<dyn ClientCertVerifier>, Mistake> {
        let roots = tls::roots(ca).map_err(|error| Mistake::new("client-ca", error))?;
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
                // Who shows none may still have a token.
                .allow_unauthenticated();
        if let Some(path) = &self.client_crl {
            let revoked = revoked(path).map_err(|reason| Mistake::new("client-crl", reason))?;
            // An authority that never revoked anything has no list.
            builder = builder.with_crls(revoked).allow_unknown_revocation_status();
        }
        builder.build().map_err(|error| {
            let (ca, crl) = (ca.display(), self.client_crl.as_ref());
            let both = crl.map_or_else(String::new, |crl| format!(" with {}", crl.display()));
            Mistake::new("client-ca", format!("{ca}{both} can't be used: {error}"))
        })
    }
}

fn read_tokens(path: &Path) -> Result<Tokens, Vec<Mistake>> {
    let shown = path.display();
    let wrong = |reason: String| Mistake::new("tokens", reason);
    let failed = |error: &dyn fmt::Display| vec![wrong(format!("can't read {shown}: {error}"))];
    let length = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if length > MAX_FILE_BYTES {
        return Err(failed(&format_args!(
            "it has more than {} MiB",
            MAX_FILE_BYTES >> 20
        )));
    }
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    Tokens::parse(&text).map_err(|lines| {
        lines
            .into_iter()
            .map(|line| wrong(format!("{shown}, {line}")))
            .collect()
    })
}

/// The lists of revoked certificates in a file.
fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let failed = |error| format!("can't read {}: {error}", path.display());
    let lists = CertificateRevocationListDer::pem_file_iter(path).map_err(failed)?;
    let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(failed)?;
    if lists.is_empty() {
        let path = path.display();
        return Err(format!(
            "{path} holds no list of revoked certificates (X509 CRL) in PEM"
        ));
    }
    Ok(lists)
}

/// TLS of the port, and the names that its certificate is for.
fn port(
    certificate: &Path,
    key: &Path,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<(ServerConfig, Vec<String>), Vec<Mistake>> {
    let chain = tls::certificates(certificate).map_err(|error| Mistake::new("tls-cert", error));
    let secret = tls::private_key(key).map_err(|error| Mistake::new("tls-key", error));
    let (chain, secret) = match (chain, secret) {
        (Ok(chain), Ok(secret)) => (chain, secret),
        (chain, secret) => return Err(chain.err().into_iter().chain(secret.err()).collect()),
    };
    let names = chain.first().map(certificate::names).unwrap_or_default();
    let config = config(chain, secret, verifier).map_err(|error| {
        let (certificate, key) = (certificate.display(), key.display());
        let reason = format!("{certificate} and {key} don't go together: {error}");
        vec![Mistake::new("tls-cert", reason)]
    })?;
    Ok((config, names))
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A session that is taken up again would be that of a client whose certificate nobody checked anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
