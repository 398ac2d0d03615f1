//! What counts as a proof of who somebody is, as the files have it now: tokens, authorities, and this master's own
//! certificate. They are read again when they change; what can't be read is told, and what counted goes on counting.

mod looks;
mod reading;

use kontrol_core::access::tokens::Tokens;
use kontrol_runtime::{command_line::Mistake, folder::Reader};
use looks::Looks;
use rustls::{ServerConfig, server::danger::ClientCertVerifier};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

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
    tokens: Arc<Tokens>,
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
            tokens: Arc::new(tokens),
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
        let mut looks = Looks::default();
        let (mut found, mut told) = (Vec::new(), Vec::new());
        while token.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let files = self.files.clone();
            let Ok(stamps) = reader.look(move || files.stamps()).await else {
                tracing::warn!("the files of tokens, certificates and authorities do not answer");
                continue;
            };
            let first = looks.is_first();
            let due = looks.due(stamps);
            if due.is_empty() {
                continue;
            }
            let (files, parts) = (self.files.clone(), due.clone());
            let mut known = Known::clone(&self.sender.borrow());
            let read = reader.look(move || {
                let failed = files.read_parts(&parts, &mut known);
                (known, failed)
            });
            let Ok((known, failed)) = read.await else {
                looks.failed(due);
                continue;
            };
            let (failed, mistakes): (Vec<_>, Vec<Vec<Mistake>>) = failed.into_iter().unzip();
            let mistakes = mistakes.concat();
            // Whoever follows asks about each of its callers anew.
            if failed.len() < due.len() {
                let tokens = known.tokens.len();
                self.sender.send_replace(Arc::new(known));
                if !first {
                    tracing::info!(tokens, "read tokens, certificates and authorities again");
                }
            }
            looks.failed(failed);
            // Files that go together are replaced one after the other: it is told when it lasts, and once.
            if mistakes == found && mistakes != told {
                for mistake in &mistakes {
                    tracing::error!("{mistake}; what counted before goes on counting");
                }
                told.clone_from(&mistakes);
            }
            found = mistakes;
        }
    }
}
