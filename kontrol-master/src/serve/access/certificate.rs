//! The certificate that a client showed: CN is its name, O its role, as `kontrol:<role>`.

use super::Known;
use kontrol_core::access::{Principal, Role};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// A certificate that an authority of ours had signed when the connection was made.
#[derive(Debug)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    principal: Option<Result<Arc<Principal>, &'static str>>,
    until: SystemTime,
}

impl Certificate {
    /// Reads what the client showed: its own certificate first. None where there is nothing to read.
    pub fn new(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let (_, own) = X509Certificate::from_der(chain.first()?).ok()?;
        let seconds = u64::try_from(own.validity().not_after.timestamp()).unwrap_or_default();
        Some(Self {
            principal: principal(&own),
            until: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            chain: chain.to_vec(),
        })
    }

    /// Whether it says a role of Kontrol's, right or wrong. One that does not shows nobody: masters show theirs to each other,
    /// beside a token.
    pub fn names_a_role(&self) -> bool {
        self.principal.is_some()
    }

    /// When it expires.
    pub fn until(&self) -> SystemTime {
        self.until
    }

    /// Whom it shows at this time, by the authorities that count now.
    pub fn principal(
        &self,
        known: &Known,
        now: SystemTime,
    ) -> Result<Arc<Principal>, &'static str> {
        const NOT_OURS: &str = "the client certificate does not count any more: it expired, it was revoked, or its authority was taken out of --client-ca";
        let verifier = known.verifier().ok_or(NOT_OURS)?;
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (own, others) = self.chain.split_first().ok_or(NOT_OURS)?;
        verifier
            .verify_client_cert(own, others, UnixTime::since_unix_epoch(since))
            .map_err(|_| NOT_OURS)?;
        let principal = self.principal.as_ref();
        principal
            .cloned()
            .unwrap_or(Err("the client certificate names no role"))
    }
}

fn principal(certificate: &X509Certificate<'_>) -> Option<Result<Arc<Principal>, &'static str>> {
    let subject = certificate.subject();
    let mut roles = subject
        .iter_organization()
        .filter_map(|organization| Role::of_organization(organization.as_str().ok()?));
    let role = match (roles.next()?, roles.next()) {
        (Ok(role), None) => role,
        (Err(_), _) => {
            return Some(Err(
                "the O of the client certificate names no role: it must be kontrol:slave, kontrol:reader, kontrol:operator or kontrol:peer",
            ));
        }
        (Ok(_), Some(_)) => {
            return Some(Err(
                "the client certificate names two roles: it must name one",
            ));
        }
    };
    let mut names = subject.iter_common_name();
    let name = match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) => name,
        _ => return Some(Err("the client certificate must have one CN")),
    };
    let principal = Principal::new(name, role).map(Arc::new);
    Some(principal.map_err(|_| "the CN of the client certificate is no name of a principal"))
}

/// The names that a certificate is for.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| {
            let GeneralName::DNSName(name) = name else {
                return None;
            };
            Some((*name).to_owned())
        })
        .collect()
}
