//! Certificates by the files that say which of them count.

use super::*;
use crate::serve::access::certificate::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::time::SystemTime;

/// An authority, what it signed for a reader, and that it revoked it.
fn revoked(folder: &Path) -> (Files, Certificate) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let serial = SerialNumber::from(7);
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.clone());
    params.distinguished_name.push(DnType::CommonName, "rita");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "kontrol:reader");
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &authority).unwrap();
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2200, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial,
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let files = Files {
        client_ca: Some(folder.join("ca.pem")),
        client_crl: Some(folder.join("crl.pem")),
        ..Files::default()
    };
    fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    fs::write(
        folder.join("crl.pem"),
        list.signed_by(&authority).unwrap().pem().unwrap(),
    )
    .unwrap();
    (files, Certificate::new(&[own.der().clone()]).unwrap())
}

#[test]
fn a_certificate_counts_until_its_authority_revokes_it_or_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let (files, certificate) = revoked(folder.path());
    let without_list = Files {
        client_crl: None,
        ..files.clone()
    };
    let now = SystemTime::now();
    let known = without_list.read().unwrap();
    let principal = certificate.principal(&known, now).unwrap();
    assert_eq!(principal.to_string(), "rita (reader)");
    let later = certificate.until();
    assert!(
        certificate.principal(&known, later).is_err(),
        "it has expired"
    );
    assert!(
        certificate.principal(&Known::default(), now).is_err(),
        "no authority"
    );
    // The same certificate, by what is read over what counted before.
    let mut known = known;
    assert_eq!(files.read_parts(&Part::ALL, &mut known), []);
    assert!(
        certificate.principal(&known, now).is_err(),
        "it was revoked"
    );

    // What can't be read changes nothing, and is told by its flag.
    fs::write(folder.path().join("crl.pem"), "nonsense").unwrap();
    let failed = files.read_parts(&Part::ALL, &mut known);
    let (part, mistakes) = &failed[0];
    assert_eq!((*part, mistakes[0].flag), (Part::Authorities, "client-crl"));
    assert!(
        certificate.principal(&known, now).is_err(),
        "it stays revoked"
    );
}
