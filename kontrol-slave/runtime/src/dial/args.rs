//! The settings of whoever dials a master. There is none for the token itself: a list of processes would show it.
//!
//! A command that an action runs finds the key of its pod in KONTROL_KEY, which is no file: alone, that counts as nothing.

use super::{Credentials, TOKEN_VARIABLE};
use crate::command_line::{Mistake, given};
use std::path::{Path, PathBuf};

/// The settings of whoever dials a master: whom to trust, and who asks.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DialArgs {
    /// The authorities that a master's certificate may be signed by, in PEM, for https://. Default: those that this system
    /// trusts.
    #[arg(
        id = "dial-ca",
        long = "ca",
        env = "KONTROL_CA",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub ca: Option<PathBuf>,

    /// A client certificate to show to masters over https://, in PEM, with its chain. It is read again for every connection.
    /// Default: none.
    #[arg(
        id = "dial-cert",
        long = "cert",
        env = "KONTROL_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub cert: Option<PathBuf>,

    /// The key of that certificate, in PEM. Default: none.
    #[arg(
        id = "dial-key",
        long = "key",
        env = "KONTROL_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub key: Option<PathBuf>,

    /// A file whose first line is the token to show to masters. It is read again for every connection. Default: none; the
    /// variable KONTROL_TOKEN can hold the token itself.
    #[arg(
        id = "dial-token-file",
        long = "token-file",
        env = "KONTROL_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub token_file: Option<PathBuf>,
}

impl DialArgs {
    /// Checks the settings, and that the files can be used now. `token`: the variable KONTROL_TOKEN.
    pub fn check(&self, token: Option<String>) -> Result<Credentials, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut credentials = Credentials::none();
        if let Some(ca) = path(&self.ca) {
            credentials = credentials.with_ca(ca);
        }
        let key = path(&self.key).filter(|key| self.cert.is_some() || !is_of_a_pod(key));
        match (path(&self.cert), key) {
            (Some(cert), Some(key)) => credentials = credentials.with_identity(cert, key),
            (Some(_), None) => {
                mistakes.push(Mistake::new("cert", "goes with --key: give both or none"));
            }
            (None, Some(_)) => {
                mistakes.push(Mistake::new("key", "goes with --cert: give both or none"));
            }
            (None, None) => {}
        }
        match (path(&self.token_file), given(token.as_deref())) {
            (Some(_), Some(_)) => {
                let reason = format!("{TOKEN_VARIABLE} holds a token already: give one of the two");
                mistakes.push(Mistake::new("token-file", reason));
            }
            (Some(file), None) => credentials = credentials.with_token_file(file),
            (None, Some(token)) => match credentials.clone().with_token(token) {
                Ok(with) => credentials = with,
                Err(error) => {
                    let reason = format!("{TOKEN_VARIABLE}, which is given instead, {error}");
                    mistakes.push(Mistake::new("token-file", reason));
                }
            },
            (None, None) => {}
        }
        mistakes.extend(credentials.unusable());
        if mistakes.is_empty() {
            Ok(credentials)
        } else {
            Err(mistakes)
        }
    }
}

/// Whether it is the key of a pod: as short as one, of letters and digits, and no file.
fn is_of_a_pod(key: &Path) -> bool {
    let text = key.as_os_str().as_encoded_bytes();
    text.len() <= 22 && text.iter().all(u8::is_ascii_alphanumeric) && !key.exists()
}

fn path(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}
