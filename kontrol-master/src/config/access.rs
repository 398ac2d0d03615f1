//! The settings that say who may come in.

use super::{args::AccessArgs, mistakes::Mistakes};
use crate::serve::access::{Files, Known};
use kontrol_runtime::{
    command_line::{Mistake, given},
    host::HostPort,
};
use std::path::{Path, PathBuf};

/// Who may come in.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where tokens, certificates and authorities are.
    pub files: Files,
    /// What they held at the start.
    pub known: Known,
    /// Host names beside the master's own.
    pub hosts: Vec<String>,
    /// Whether metrics and reflection are everybody's.
    pub open_metrics: bool,
}

impl AccessArgs {
    pub(super) fn check(&self, mistakes: &mut Mistakes) -> Access {
        let file = |path: &Option<PathBuf>| path.clone().filter(|path| path != Path::new(""));
        let (cert, key) = (file(&self.tls_cert), file(&self.tls_key));
        if cert.is_some() != key.is_some() {
            let reason = "goes with --tls-key: give both or none";
            mistakes.0.push(Mistake::new("tls-cert", reason));
        }
        let files = Files {
            identity: cert.zip(key),
            client_ca: file(&self.client_ca),
            client_crl: file(&self.client_crl),
            tokens: file(&self.tokens),
        };
        if files.client_ca.is_some() && files.identity.is_none() {
            let reason = "goes with --tls-cert: a client certificate is shown over TLS alone";
            mistakes.0.push(Mistake::new("client-ca", reason));
        }
        if files.client_crl.is_some() && files.client_ca.is_none() {
            let reason = "goes with --client-ca: it says what those have revoked";
            mistakes.0.push(Mistake::new("client-crl", reason));
        }
        let known = mistakes.all(files.read()).unwrap_or_default();
        let hosts = given(self.hosts.as_deref()).unwrap_or_default();
        let hosts: Vec<String> = hosts
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        for name in &hosts {
            let is_name = name.parse::<HostPort>().is_ok_and(|at| at.port.is_none());
            if !is_name {
                let reason =
                    format!("{name:?} is no host name: write names without ports, or `any`");
                mistakes.0.push(Mistake::new("hosts", reason));
            }
        }
        Access {
            files,
            known,
            hosts,
            open_metrics: self.open_metrics,
        }
    }
}
