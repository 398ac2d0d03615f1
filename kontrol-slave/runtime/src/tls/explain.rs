//! Why two ends do not come together, in a sentence that says what to do: for whoever dials.
//!
//! What this end finds wrong comes as an error of rustls. What the other end finds wrong comes as an alert, which says
//! little; with TLS 1.3 it comes after the handshake, so that it breaks a connection, and HTTP/2 passes it on as text.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, pki_types::UnixTime};
use std::time::Duration;

/// How rustls begins the text of an alert.
const ALERT: &str = "received fatal alert: ";

/// What HTTP/2 says of bytes that are none of its own.
const NO_FRAME: &str = "frame with invalid size";

/// What an error of the handshake means to whoever dialled.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "those that say enough themselves, and those that rustls has not thought of yet"
)]
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(description) => alert(*description),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the other end speaks clear text: use http://, or turn TLS on there with --tls-cert"
                .to_owned()
        }
        Error::NoApplicationProtocol => alert(AlertDescription::NoApplicationProtocol),
        Error::PeerIncompatible(_) => {
            format!("{error}: the two ends have no version or cipher of TLS in common")
        }
        other => other.to_string(),
    }
}

/// The same, of what became of a connection later, where only its text is left. None: it is nothing of TLS.
pub fn explain_text(text: &str) -> Option<String> {
    if let Some((_, rest)) = text.split_once(ALERT) {
        let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
        let known = EXPLAINED.iter().find(|one| format!("{one:?}") == name);
        return Some(known.map_or_else(|| gave_up(name), |known| alert(*known)));
    }
    text.contains(NO_FRAME)
        .then(|| "what the other end answers is no HTTP/2: is it a kontrol-master?".to_owned())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "those that say enough themselves, and those that rustls has not thought of yet"
)]
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => {
            "the certificate of the other end is over: have it renewed there".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the certificate of the other end expired {} ago: have it renewed there",
            span(*not_after, *time)
        ),
        CertificateError::NotValidYet => {
            "the certificate of the other end is not valid yet: do the clocks agree?".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate of the other end becomes valid in {}: do the clocks agree?",
            span(*time, *not_before)
        ),
        CertificateError::ApplicationVerificationFailure => {
            "the certificate of the other end is not the one that is known".to_owned()
        }
        CertificateError::NotValidForName => {
            "the certificate of the other end is not for the name that was dialled".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let dialled = expected.to_str();
            if presented.is_empty() {
                return format!(
                    "the certificate of the other end names no host at all (it has no subjectAltName): have one made for {dialled}"
                );
            }
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!(
                "the certificate of the other end is not for {dialled}, but for {}: dial that, or have one made for {dialled} too",
                names.join(", ")
            )
        }
        CertificateError::UnknownIssuer => {
            "the certificate of the other end is signed by an authority that is not trusted here: give the certificate of that authority with --ca".to_owned()
        }
        CertificateError::BadSignature => {
            "the certificate of the other end is not signed by the authority that it names: if that was made anew, give its new certificate with --ca".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate of the other end is not for servers (extendedKeyUsage): have one made for serverAuth".to_owned()
        }
        // What openssl makes when it is asked for a certificate and not told otherwise.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the certificate of the other end is that of an authority (CA:TRUE): have the authority sign one for the server, or make this one with CA:FALSE".to_owned()
        }
        other => format!("the certificate of the other end is not accepted: {other}"),
    }
}

/// The alerts that [`alert`] has words for.
const EXPLAINED: [AlertDescription; 16] = [
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::DecodeError,
    AlertDescription::DecryptError,
    AlertDescription::HandshakeFailure,
    AlertDescription::InsufficientSecurity,
    AlertDescription::NoApplicationProtocol,
    AlertDescription::NoCertificate,
    AlertDescription::ProtocolVersion,
    AlertDescription::UnknownCA,
    AlertDescription::UnrecognisedName,
    AlertDescription::UnsupportedCertificate,
];

/// What the other end means with an alert.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "those that say enough themselves, and those that rustls has not thought of yet"
)]
fn alert(description: AlertDescription) -> String {
    use AlertDescription as Alert;
    let sentence = match description {
        Alert::CertificateRequired | Alert::NoCertificate => {
            "the other end wants a client certificate: give --cert and --key"
        }
        Alert::CertificateExpired => {
            "the other end says that our client certificate is over, or not valid yet: renew the file of --cert (do the clocks agree?)"
        }
        Alert::UnknownCA => {
            "the other end does not trust the authority of our client certificate: give another with --cert, or name that authority there with --client-ca"
        }
        // With it rustls refuses a certificate that names the right authority and bears the signature of another.
        Alert::DecryptError => {
            "the other end says that our client certificate is not signed by the authority that it names: if that was made anew, have it sign a new one for --cert"
        }
        Alert::CertificateRevoked => {
            "the other end says that our client certificate is revoked: give another with --cert"
        }
        Alert::UnsupportedCertificate => {
            "the other end says that our certificate is not for clients: give --cert one that is made for clientAuth (extendedKeyUsage)"
        }
        Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            return format!(
                "the other end does not accept our client certificate ({description:?}): look at the file of --cert"
            );
        }
        Alert::HandshakeFailure | Alert::InsufficientSecurity | Alert::ProtocolVersion => {
            return format!(
                "the other end refuses the handshake ({description:?}): it has no version or cipher of TLS in common with us, or wants a client certificate (--cert, --key)"
            );
        }
        Alert::NoApplicationProtocol => {
            "the other end speaks TLS, but not HTTP/2: is it a kontrol-master?"
        }
        Alert::UnrecognisedName => "the other end has no certificate for the name that was dialled",
        Alert::DecodeError => {
            "the other end understands nothing of what we say: does it speak TLS?"
        }
        other => return gave_up(&format!("{other:?}")),
    };
    sentence.to_owned()
}

fn gave_up(name: &str) -> String {
    format!("the other end gave the connection up (TLS alert {name})")
}

/// The name in `DnsName("m1")` or `IpAddress(10.0.0.1)`, as a certificate's are told.
fn bare(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// How long it is from one time to the other, in the largest unit.
fn span(from: UnixTime, to: UnixTime) -> String {
    let length = Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())).as_secs();
    let units = [
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let (size, unit) = units
        .into_iter()
        .find(|(size, _)| length >= *size)
        .unwrap_or((1, "second"));
    let number = length / size;
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

#[cfg(test)]
mod tests;
