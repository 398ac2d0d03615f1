//! Each sentence, as real handshakes bring it about.

use super::*;
use crate::{
    testing::{Authority, rcgen, write},
    tls::{self, ALPN_HTTP2, TlsError, identity, provider},
};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use std::{io, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate and its key.
type Signed = (String, String);

const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

fn trust(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
    roots.add(der).unwrap();
    roots
}

fn resolver(signed: &Signed) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let folder = tempfile::tempdir().unwrap();
    let pair = write(folder.path(), "one", signed);
    Ok(Arc::new(identity(&pair.cert, &pair.key)?.into()))
}

/// The other end: it shows this certificate, and wants one of that authority.
fn server(
    shown: &Signed,
    clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let roots = Arc::new(trust(authority));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_cert_resolver(resolver(shown).unwrap());
    // Without tickets nothing tells the client that it is let in.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config
}

/// This end: it trusts that authority, and shows this certificate if it is asked for one.
fn client(trusted: &Authority, shown: Option<&Signed>) -> ClientConfig {
    let builder = tls::client(trust(trusted)).unwrap();
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => builder.with_client_cert_resolver(resolver(shown).unwrap()),
    };
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config
}

fn of_tls(error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.cloned().unwrap_or_else(|| panic!("{error}"))
}

/// What this end is told when it dials `m1`: by the handshake, or by the first look at what the other end says.
async fn told(client: ClientConfig, server: ServerConfig) -> String {
    let (near, far) = duplex(64 * 1024);
    let accept = async {
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(server)).accept(far).await {
            let _ = stream.write_all(b"let in").await;
            let _ = stream.shutdown().await;
        }
    };
    let (told, ()) = tokio::join!(outcome(near, client), accept);
    told
}

async fn outcome(near: DuplexStream, client: ClientConfig) -> String {
    let name = ServerName::try_from("m1").unwrap();
    let mut stream = match TlsConnector::from(Arc::new(client))
        .connect(name, near)
        .await
    {
        Ok(stream) => stream,
        Err(error) => return explain(&of_tls(&error)),
    };
    let mut said = String::new();
    match stream.read_to_string(&mut said).await {
        Ok(_) => said,
        Err(error) => {
            let told = explain(&of_tls(&error));
            assert_eq!(explain_text(&format!("h2: {error}")), Some(told.clone()));
            told
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_other_ends_certificate_is_told() {
    let authority = Authority::new("one");
    let with = |change: fn(&mut rcgen::CertificateParams)| authority.sign_as(&["m1"], change);
    let named = |names: &[&str]| authority.sign(names);
    for (shown, words) in [
        (named(&["m1"]), "let in"),
        (
            with(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1)),
            "the certificate of the other end expired ",
        ),
        (
            with(|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1)),
            " days: do the clocks agree?",
        ),
        (
            named(&["m2", "10.0.0.1"]),
            "the certificate of the other end is not for m1, but for m2, 10.0.0.1: dial that, or have one made for m1 too",
        ),
        (named(&[]), "names no host at all"),
        (Authority::new("two").sign(&["m1"]), "with --ca"),
        (Authority::new("one").sign(&["m1"]), "if that was made anew"),
        (
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "for serverAuth",
        ),
        (
            with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "CA:TRUE",
        ),
    ] {
        let told = told(client(&authority, None), server(&shown, None, BOTH)).await;
        assert!(told.contains(words), "{told}");
    }
}

#[tokio::test]
async fn what_the_other_end_finds_wrong_is_told() {
    let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
    let shown = authority.sign(&["m1"]);
    let with = |change: fn(&mut rcgen::CertificateParams)| Some(clients.sign_as(&["x"], change));
    for (own, words) in [
        (
            Some(clients.sign_client("web-1", "kontrol:slave")),
            "let in",
        ),
        (None, "client certificate"),
        (
            with(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1)),
            "our client certificate is over, or not valid yet: renew the file of --cert",
        ),
        (
            Some(authority.sign_client("web-1", "kontrol:slave")),
            "does not trust the authority of our client certificate",
        ),
        (
            Some(Authority::new("clients").sign_client("web-1", "kontrol:slave")),
            "if that was made anew, have it sign a new one for --cert",
        ),
        (
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "clientAuth",
        ),
    ] {
        for version in BOTH {
            let server = server(&shown, Some(&clients), &[version]);
            let told = told(client(&authority, own.as_ref()), server).await;
            assert!(told.contains(words), "{version:?}: {told}");
        }
    }
}

#[tokio::test]
async fn two_ends_without_a_protocol_in_common_are_told() {
    let authority = Authority::new("one");
    let shown = authority.sign(&["m1"]);
    let mut other = server(&shown, None, BOTH);
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    let told_of = told(client(&authority, None), other).await;
    assert!(told_of.contains("but not HTTP/2"), "{told_of}");
    let mut old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(trust(&authority))
        .with_no_client_auth();
    old.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let told_of = told(old, server(&shown, None, &[&TLS13])).await;
    assert!(told_of.contains("no version or cipher"), "{told_of}");
}

#[tokio::test]
async fn clear_text_is_told() {
    let authority = Authority::new("one");
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0, 0, 12, 4, 0, 0],
    ] {
        let (near, mut far) = duplex(64 * 1024);
        let answer = async {
            let _ = far.read(&mut [0; 1024]).await;
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (told, ()) = tokio::join!(outcome(near, client(&authority, None)), answer);
        assert!(told.contains("speaks clear text: use http://"), "{told}");
    }
}

#[test]
fn text_that_is_not_of_tls_is_left_alone() {
    assert_eq!(explain_text("connection refused"), None);
    let told = explain_text("received fatal alert: UserCanceled").unwrap();
    assert!(told.contains("TLS alert UserCanceled"), "{told}");
    assert!(
        explain_text("frame with invalid size")
            .unwrap()
            .contains("no HTTP/2")
    );
    for alert in EXPLAINED {
        assert!(
            !super::alert(alert).contains("gave the connection up"),
            "{alert:?}"
        );
    }
}

#[test]
fn a_span_is_told_in_its_largest_unit() {
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    for (seconds, shown) in [
        (0, "0 seconds"),
        (1, "1 second"),
        (119, "1 minute"),
        (7_200, "2 hours"),
        (86_400 * 40, "40 days"),
    ] {
        assert_eq!(span(at(5), at(5 + seconds)), shown);
    }
}
