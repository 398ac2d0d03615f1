//! What TLS needs from PEM files: certificates, authorities, a private key.
//!
//! A file is read whole, up to a bound. That it holds nothing of what is wanted is a mistake to tell, with what it holds
//! instead: two files that were exchanged are the usual one.

use super::TlsError;
use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject, SectionKind},
    },
    server::ParsedCertificate,
};
use std::{fs::File, io::Read, path::Path};

/// More than all the authorities of a system take.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// The certificates in a file, in their order: there is one at least, and each is one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let mut certificates = Vec::new();
    for section in sections(path, &text)? {
        if let (SectionKind::Certificate, der) = section {
            certificates.push(CertificateDer::from(der));
        }
    }
    if certificates.is_empty() {
        return Err(missing(path, "certificate", &text));
    }
    for (index, certificate) in certificates.iter().enumerate() {
        ParsedCertificate::try_from(certificate).map_err(|error| {
            let number = index + 1;
            unfit(
                path,
                format!("certificate {number} in it is damaged ({error}): have it made again"),
            )
        })?;
    }
    Ok(certificates)
}

/// The first private key in a file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path)?;
    if is_encrypted(&text) {
        let reason = "the key in it is encrypted, and nobody is there to type a password: write it without one (openssl pkey -in FILE -out NEW), readable by this program alone";
        return Err(unfit(path, reason.to_owned()));
    }
    let key = sections(path, &text)?
        .into_iter()
        .find_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    key.ok_or_else(|| missing(path, "private key", &text))
}

/// The authorities in a file, as those who are trusted.
pub fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            let number = index + 1;
            unfit(
                path,
                format!("certificate {number} in it can't be an authority ({error})"),
            )
        })?;
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |reason: String| TlsError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unreadable("it is larger than 8 MiB".to_owned()));
    }
    Ok(bytes)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a text in memory there is one more, and those that the reader has not thought of yet"
)]
fn sections(path: &Path, text: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, TlsError> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    sections.collect::<Result<_, _>>().map_err(|error| {
        // Of the text nothing is shown: it may be a key.
        let what = match error {
            pem::Error::MissingSectionEnd { .. } => "its end is missing",
            pem::Error::IllegalSectionStart { .. } => "a line that begins with dashes is damaged",
            _ => "what is between the lines with dashes is not base64",
        };
        unfit(
            path,
            format!("the PEM is damaged, {what}: copy the file again"),
        )
    })
}

fn unfit(path: &Path, reason: String) -> TlsError {
    TlsError::Unfit {
        path: path.to_owned(),
        reason,
    }
}

/// What is told of a file that lacks what is wanted.
fn missing(path: &Path, wanted: &'static str, text: &[u8]) -> TlsError {
    let has = |word: &str| {
        let mut windows = text.windows(word.len());
        windows.any(|window| window == word.as_bytes())
    };
    let found = if text.iter().all(u8::is_ascii_whitespace) {
        "it is empty"
    } else if has("CERTIFICATE REQUEST-----") {
        "it holds a request for a certificate; give what the authority made of it"
    } else if has("PRIVATE KEY-----") {
        "it holds a private key; are the two files exchanged?"
    } else if has(" CERTIFICATE-----") {
        "it holds a certificate; are the two files exchanged?"
    } else if has("PUBLIC KEY-----") {
        "it holds a public key"
    } else if text.first() == Some(&0x30) {
        "it looks like DER; openssl turns that into PEM (openssl x509 -inform DER, openssl pkey -inform DER)"
    } else {
        "it has no line -----BEGIN ...----- that says so"
    };
    TlsError::Missing {
        path: path.to_owned(),
        wanted,
        found: found.to_owned(),
    }
}

/// Whether there is a key under a password, as PKCS #8 or as OpenSSL wrote it once.
fn is_encrypted(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing::Authority, tls::identity};
    use std::{fs, path::PathBuf};

    fn file(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn what_is_good_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("one");
        let (certificate, key) = authority.sign(&["m1"]);
        let chain = file(
            folder.path(),
            "chain",
            format!("{certificate}{}", authority.pem()),
        );
        let key = file(folder.path(), "key", format!("words in front\n{key}"));
        assert_eq!(certificates(&chain).unwrap().len(), 2);
        assert_eq!(roots(&chain).unwrap().len(), 2);
        private_key(&key).unwrap();
        assert_eq!(identity(&chain, &key).unwrap().cert.len(), 2);
        let both = fs::read_to_string(&chain).unwrap() + &fs::read_to_string(&key).unwrap();
        let both = file(folder.path(), "both", both);
        identity(&both, &both).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_name_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = Authority::new("one").sign(&["m1"]);
        let of = |name: &str, text: &str| file(folder.path(), name, text);
        let damaged = certificate.replace("-----END", "----END");
        let no_base64 = certificate.replacen("MII", "M?I", 1);
        let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let request = certificate.replace("CERTIFICATE", "CERTIFICATE REQUEST");
        let told = |path: &PathBuf, result: Result<(), TlsError>, words: &str| {
            let line = result.unwrap_err().to_string();
            assert!(line.contains(path.to_str().unwrap()), "{line}");
            assert!(line.contains(words), "{line}");
            assert!(!line.contains('\n') && !line.contains("MII"), "{line}");
        };
        let nowhere = folder.path().join("nowhere");
        told(&nowhere, certificates(&nowhere).map(drop), "No such file");
        told(
            &folder.path().to_owned(),
            private_key(folder.path()).map(drop),
            "directory",
        );
        for (text, words) in [
            ("", "holds no certificate in PEM: it is empty"),
            (
                key.as_str(),
                "holds no certificate in PEM: it holds a private key; are the two files exchanged?",
            ),
            (&request, "a request for a certificate"),
            ("hello", "no line -----BEGIN"),
            ("0\u{1}\u{2}", "looks like DER"),
            (&damaged, "the PEM is damaged"),
            (&no_base64, "not base64"),
            (not_der, "certificate 1 in it is damaged"),
        ] {
            let path = of("certificate", text);
            told(&path, certificates(&path).map(drop), words);
            told(&path, roots(&path).map(drop), words);
        }
        for (text, words) in [
            (
                certificate.as_str(),
                "holds no private key in PEM: it holds a certificate; are the two files exchanged?",
            ),
            (&encrypted, "is encrypted"),
            (old, "is encrypted"),
            ("", "is empty"),
        ] {
            let path = of("key", text);
            told(&path, private_key(&path).map(drop), words);
        }
        let (certificate, other) = (
            of("certificate", &certificate),
            Authority::new("two").sign(&["m1"]).1,
        );
        let other = of("key", &other);
        told(
            &other,
            identity(&certificate, &other).map(drop),
            "is not that of the certificate in",
        );
    }
}
