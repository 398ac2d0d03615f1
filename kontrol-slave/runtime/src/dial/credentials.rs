//! Who dials, and whom it trusts: the names of files, or a token. Nothing of a file is kept.

use super::DialError;
use crate::{
    command_line::Mistake,
    tls::{self, TlsError},
};
use http::HeaderValue;
use rustls::{ClientConfig, sign::SingleCertAndKey};
use std::{
    fmt, fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The variable that can hold a token.
pub const TOKEN_VARIABLE: &str = "KONTROL_TOKEN";

/// More than a token has.
const MAX_TOKEN_BYTES: u64 = 8 * 1024;

/// A token that is none. It is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read.
    #[error("can't read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What the file holds is none.
    #[error("{} {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: Box<TokenError>,
    },
    /// There is nothing.
    #[error("holds no token: its first line is empty")]
    Empty,
    /// It can't be sent.
    #[error("holds no token: one has only visible ASCII characters, and no space")]
    Form,
}

/// Who dials, and whom it trusts. Cheap to clone; shows neither token nor key.
#[derive(Clone, Default)]
pub struct Credentials(Arc<Sources>);

#[derive(Debug, Clone, Default)]
struct Sources {
    ca: Option<PathBuf>,
    pinned: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    token: Option<Token>,
}

#[derive(Clone)]
enum Token {
    File(PathBuf),
    Value(HeaderValue),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Value(_) => f.write_str("(not shown)"),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one connection needs of them.
pub(super) struct Material {
    /// The header that bears the token.
    pub(super) token: Option<HeaderValue>,
    /// How TLS is spoken, where it is.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

impl Credentials {
    /// Nobody, who trusts those whom the system trusts.
    pub fn none() -> Self {
        Self::default()
    }

    fn change(mut self, change: impl FnOnce(&mut Sources)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Trusts the authorities in this file, and no others.
    pub fn with_ca(self, ca: impl Into<PathBuf>) -> Self {
        self.change(|sources| sources.ca = Some(ca.into()))
    }

    /// Trusts the first certificate in this file, whatever name was dialled and whoever signed it, and no other: for a master
    /// on the same host, whose file it is.
    pub fn with_pinned(self, certificate: impl Into<PathBuf>) -> Self {
        self.change(|sources| sources.pinned = Some(certificate.into()))
    }

    /// Shows this certificate to whoever asks for one.
    pub fn with_identity(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.change(|sources| sources.identity = Some((cert.into(), key.into())))
    }

    /// Shows this certificate where no other was given.
    pub fn or_identity(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        if self.0.identity.is_some() {
            return self;
        }
        self.with_identity(cert, key)
    }

    /// Bears this token.
    pub fn with_token(self, token: &str) -> Result<Self, TokenError> {
        let value = header(token)?;
        Ok(self.change(|sources| sources.token = Some(Token::Value(value))))
    }

    /// Bears the token in the first line of this file.
    pub fn with_token_file(self, path: impl Into<PathBuf>) -> Self {
        self.change(|sources| sources.token = Some(Token::File(path.into())))
    }

    /// The file of the authorities that are trusted, where it is not those of the system.
    pub fn ca(&self) -> Option<&Path> {
        self.0.ca.as_deref()
    }

    /// Whether there is a token to bear.
    pub fn has_token(&self) -> bool {
        self.0.token.is_some()
    }

    /// What an operator may not have meant, for the log: a token that others on this host can read.
    pub fn remark(&self) -> Option<String> {
        let Some(Token::File(path)) = &self.0.token else {
            return None;
        };
        let mode = fs::metadata(path).ok()?.permissions().mode();
        (mode & 0o077 != 0).then(|| {
            format!(
                "others on this host can read the token in {}: chmod 600 it",
                path.display()
            )
        })
    }

    /// The files that can't be used as they are now, each with its flag. Blocks.
    pub(super) fn unusable(&self) -> Vec<Mistake> {
        let sources = &*self.0;
        let mut mistakes = Vec::new();
        if let Some(ca) = &sources.ca
            && let Err(error) = tls::roots(ca)
        {
            mistakes.push(Mistake::new("ca", error));
        }
        if let Some((cert, key)) = &sources.identity {
            let (chain, own) = (tls::certificates(cert), tls::private_key(key));
            let both = chain.is_ok() && own.is_ok();
            mistakes.extend(chain.err().map(|error| Mistake::new("cert", error)));
            mistakes.extend(own.err().map(|error| Mistake::new("key", error)));
            if both && let Err(error) = tls::identity(cert, key) {
                mistakes.push(Mistake::new("key", error));
            }
        }
        if let Some(Token::File(path)) = &sources.token
            && let Err(error) = read_token(path)
        {
            mistakes.push(Mistake::new("token-file", error));
        }
        mistakes
    }

    /// What a connection needs, read now.
    pub(super) async fn read(&self, tls: bool) -> Result<Material, DialError> {
        let sources = Arc::clone(&self.0);
        let token = match &sources.token {
            Some(Token::Value(value)) => Some(value.clone()),
            Some(Token::File(_)) | None => None,
        };
        if !tls && (token.is_some() || sources.token.is_none()) {
            return Ok(Material { token, tls: None });
        }
        // The files may be on a network.
        let read = tokio::task::spawn_blocking(move || sources.read(tls)).await;
        read.map_err(|error| DialError(error.to_string()))?
    }
}

impl Sources {
    fn read(&self, tls: bool) -> Result<Material, DialError> {
        let token = match &self.token {
            None => None,
            Some(Token::Value(value)) => Some(value.clone()),
            Some(Token::File(path)) => {
                let read = read_token(path);
                Some(read.map_err(|error| DialError(format!("--token-file: {error}")))?)
            }
        };
        let config = tls.then(|| self.config().map_err(|error| DialError(error.to_string())));
        Ok(Material {
            token,
            tls: config.transpose()?.map(Arc::new),
        })
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let builder = match (&self.pinned, &self.ca) {
            (Some(certificate), _) => tls::pinned(certificate)?,
            (None, Some(ca)) => tls::client(tls::roots(ca)?)?,
            (None, None) => tls::client(tls::system_roots()?)?,
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let identity = tls::identity(cert, key)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
        };
        config.alpn_protocols = vec![tls::ALPN_HTTP2.to_vec()];
        Ok(config)
    }
}

/// The header of the token in the first line of a file.
fn read_token(path: &Path) -> Result<HeaderValue, TokenError> {
    let unreadable = |error: std::io::Error| TokenError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    let read = file.take(MAX_TOKEN_BYTES).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    header(text.lines().next().unwrap_or_default()).map_err(|error| TokenError::File {
        path: path.to_owned(),
        error: Box::new(error),
    })
}

/// The header that bears a token.
fn header(token: &str) -> Result<HeaderValue, TokenError> {
    let token = token.trim();
    if token.is_empty() {
        return Err(TokenError::Empty);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::Form);
    }
    let mut value =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| TokenError::Form)?;
    // Nothing that shows headers shows this one, and HTTP/2 keeps it in no table.
    value.set_sensitive(true);
    Ok(value)
}
