//! What counts as a proof of who somebody is, as the files have it now: tokens, authorities, and this master's own
//! certificate. They are read again when they change; what can't be read is told, and what counted goes on counting.

use super::certificate;
use kontrol_core::access::tokens::Tokens;
use kontrol_runtime::{
    command_line::Mistake,
    folder::{Content, Reader},
    tls,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{
    collections::BTreeMap,
    fmt, fs, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at, and at how many looks in a row they must be the same to count: one that is written in
/// place is short, or empty, in between, and nobody is to be shut out by that.
const LOOK: Duration = Duration::from_secs(1);
const QUIET: u32 = 2;
/// Largest file of tokens, in bytes: each of its lines takes some 100.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Where the proofs are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The certificate of the port and its key, PEM; none: the port speaks clear text.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The authorities whose client certificates count, PEM.
    pub client_ca: Option<PathBuf>,
    /// What those authorities have revoked, PEM.
    pub client_crl: Option<PathBuf>,
    /// The file of tokens.
    pub tokens: Option<PathBuf>,
}

/// What counts now.
#[derive(Clone, Default)]
pub struct Known {
    tokens: Tokens,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Which authorities those are: another number at each reading that made them other ones.
    authorities: u64,
    tls: Option<Arc<ServerConfig>>,
    names: Vec<String>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known")
            .field("tokens", &self.tokens.len())
            .field("authorities", &self.authorities)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Known {
    /// Tokens alone, in clear text.
    #[cfg(test)]
    pub(super) fn of_tokens(tokens: Tokens) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What checks client certificates.
    pub fn verifier(&self) -> Option<&Arc<dyn ClientCertVerifier>> {
        self.verifier.as_ref()
    }

    /// The number of the authorities, by which a certificate that they were asked about is not asked about again.
    pub fn authorities(&self) -> u64 {
        self.authorities
    }

    /// TLS of the port.
    pub fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// The names that this master's certificate is for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

impl Files {
    /// Whether there is anything by which somebody can be known.
    pub fn authenticate(&self) -> bool {
        self.client_ca.is_some() || self.tokens.is_some()
    }

    /// Reads all of them, on this thread; tells each one that is of no use.
    pub fn read(&self) -> Result<Known, Vec<Mistake>> {
        match self.read_over(Known::default()) {
            (known, mistakes) if mistakes.is_empty() => Ok(known),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// Reads all of them over what counted before: of one that is of no use, that goes on counting.
    pub(super) fn read_over(&self, mut known: Known) -> (Known, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        if let Some(path) = &self.tokens {
            match read_tokens(path) {
                Ok(tokens) => known.tokens = tokens,
                Err(reasons) => {
                    let each = reasons
                        .into_iter()
                        .map(|reason| Mistake::new("tokens", reason));
                    mistakes.extend(each);
                }
            }
        }
        if let Some(path) = &self.client_ca {
            match self.verifier(path) {
                Ok(verifier) => {
                    known.verifier = Some(verifier);
                    known.authorities += 1;
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if let Some((certificate, key)) = &self.identity {
            match port(certificate, key, known.verifier.clone()) {
                Ok((config, names)) => {
                    known.tls = Some(Arc::new(config));
                    known.names = names;
                }
                Err(more) => mistakes.extend(more),
            }
        }
        (known, mistakes)
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

    fn paths(&self) -> Vec<PathBuf> {
        let identity = self
            .identity
            .iter()
            .flat_map(|(certificate, key)| [certificate, key]);
        identity
            .chain(&self.client_ca)
            .chain(&self.client_crl)
            .chain(&self.tokens)
            .cloned()
            .collect()
    }
}

fn read_tokens(path: &PathBuf) -> Result<Tokens, Vec<String>> {
    let shown = path.display();
    let failed = |error: &dyn fmt::Display| vec![format!("can't read {shown}: {error}")];
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
            .map(|line| format!("{shown}, {line}"))
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

/// What counts, as it goes on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials(watch::Receiver<Arc<Known>>);

impl Default for Credentials {
    /// Nothing counts, and the port speaks clear text.
    fn default() -> Self {
        Self(watch::channel(Arc::default()).1)
    }
}

impl Credentials {
    /// What was read at the start, and the task that follows the files.
    pub fn follow(files: Files, known: Known) -> (Self, Following) {
        let (sender, receiver) = watch::channel(Arc::new(known));
        (Self(receiver), Following { files, sender })
    }

    /// What counts now.
    pub fn now(&self) -> Arc<Known> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until something else counts; for good where that never happens any more. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads the files again when they change.
#[derive(Debug)]
pub struct Following {
    files: Files,
    sender: watch::Sender<Arc<Known>>,
}

impl Following {
    /// Follows them until the token is cancelled.
    pub async fn run(self, token: CancellationToken) {
        let reader = Reader::new(1);
        let paths = self.files.paths();
        let mut seen: BTreeMap<PathBuf, Content> = BTreeMap::new();
        // Read once more at the start: something may have changed since, and this is what later looks are compared with.
        let (mut due, mut first) = (true, true);
        let mut quiet = QUIET;
        let (mut found, mut told) = (Vec::new(), Vec::new());
        while token
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            quiet = quiet.saturating_add(1);
            for path in &paths {
                let before = seen.entry(path.clone()).or_default();
                if !before.is_current(path, &reader).await {
                    *before = reader.read(path, 0).await;
                    (due, quiet) = (true, 0);
                }
            }
            if !due || quiet < QUIET && !first {
                continue;
            }
            due = false;
            let (files, before) = (self.files.clone(), Known::clone(&self.sender.borrow()));
            let (known, mistakes) = match reader.look(move || files.read_over(before)).await {
                Ok(read) => read,
                Err(error) => {
                    due = true;
                    tracing::warn!(%error, "could not look at tokens, certificates and authorities");
                    continue;
                }
            };
            let tokens = known.tokens.len();
            self.sender.send_replace(Arc::new(known));
            if mistakes.is_empty() {
                told.clear();
                if !mem::take(&mut first) {
                    tracing::info!(tokens, "read tokens, certificates and authorities again");
                }
            } else {
                due = true;
                // Files that go together are replaced one after the other: it is told when it lasts, and once.
                if mistakes == found && mistakes != told {
                    for mistake in &mistakes {
                        tracing::error!("{mistake}; what counted before goes on counting");
                    }
                    told.clone_from(&mistakes);
                }
            }
            found = mistakes;
        }
    }
}
