//! The table against what is served, and what a gate makes of what is shown. Certificates and sockets are in `tests/e2e`.

use super::*;
use crate::cluster::{advertise::Advertised, store::embedded::EmbeddedStore};
use kontrol_core::access::tokens::{Token, Tokens};
use prost_reflect::DescriptorPool;
use std::collections::BTreeSet;
use tokio::sync::watch;
use tonic::Code;

fn served() -> BTreeSet<String> {
    let sets = [
        kontrol_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut rpcs = BTreeSet::new();
    for set in sets {
        let pool = DescriptorPool::decode(set).unwrap();
        for service in pool.services() {
            let names = service
                .methods()
                .map(|rpc| format!("{}/{}", service.full_name(), rpc.name()));
            rpcs.extend(names.collect::<Vec<_>>());
        }
    }
    rpcs
}

#[test]
fn every_rpc_that_is_served_has_its_rule_and_no_rule_is_left_over() {
    let rules = table::RULES.iter().map(|rule| rule.rpc.to_owned());
    let rules: BTreeSet<String> = rules.filter(|rpc| rpc != table::METRICS).collect();
    assert_eq!(served(), rules);
}

fn gate(tokens: &str, settings: Settings) -> Gate {
    gate_with(tokens, settings, Meter::default())
}

/// A caller of whom nothing is asked, behind this meter.
pub(super) fn anyone(meter: Meter) -> Caller {
    let open = Settings {
        authenticates: false,
        open_metrics: false,
    };
    caller(&gate_with("", open, meter), &[])
}

fn gate_with(tokens: &str, settings: Settings, meter: Meter) -> Gate {
    let known = Known::of_tokens(Tokens::parse(tokens).unwrap());
    let (credentials, _) = Credentials::follow(Files::default(), known);
    let hosts = Hosts::new(
        &[],
        watch::channel(Advertised::default()).1,
        credentials.clone(),
    );
    let (roster, _) = Roster::new(Arc::new(EmbeddedStore::memory()));
    Gate::new(
        settings,
        credentials,
        hosts,
        roster,
        Audit::new(Arc::default()),
        meter,
    )
}

const ASKS: Settings = Settings {
    authenticates: true,
    open_metrics: false,
};

fn token_of(role: Role) -> Token {
    Token::of([role as u8 + 1; 32])
}

fn everybody() -> String {
    let lines = Role::ALL.map(|role| format!("{role} x {}\n", token_of(role).digest()));
    lines.concat()
}

fn caller(gate: &Gate, headers: &[&str]) -> Caller {
    let mut request = Request::new(axum::body::Body::empty());
    for value in headers {
        request
            .headers_mut()
            .append(AUTHORIZATION, value.parse().unwrap());
    }
    gate.caller(&request)
}

#[tokio::test]
async fn each_role_may_call_what_the_table_says_and_nothing_else() {
    let gate = gate(&everybody(), ASKS);
    for role in Role::ALL {
        let caller = caller(&gate, &[&format!("Bearer {}", token_of(role).as_str())]);
        for rule in &table::RULES {
            let code = caller
                .judge(rule.rpc)
                .map_or_else(|status| status.code(), |()| Code::Ok);
            let expected = if rule.allows(role) {
                Code::Ok
            } else {
                Code::PermissionDenied
            };
            assert_eq!(code, expected, "{role} {}", rule.rpc);
        }
        let unknown = caller.judge("kontrol.v1.FutureService/Run").unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn whoever_shows_nothing_that_counts_gets_nothing_but_health() {
    let gate = gate(&everybody(), ASKS);
    let good = format!("Bearer {}", token_of(Role::Operator).as_str());
    let long = format!("Bearer {}", "x".repeat(5000));
    for headers in [
        &[][..],
        &["Bearer wrong"],
        &["Bearer"],
        &["Bearer  "],
        &["Basic YTpi"],
        &["Bearer a b"],
        &[&long],
        &[&good, &good],
        &[&good[7..]],
        &["bearer kontrol_", ""],
    ] {
        let caller = caller(&gate, headers);
        assert_eq!(caller.principal(), None, "{headers:?}");
        for rule in &table::RULES {
            match caller.judge(rule.rpc) {
                Ok(()) => assert!(rule.rpc.starts_with("grpc.health."), "{}", rule.rpc),
                Err(status) => assert_eq!(status.code(), Code::Unauthenticated),
            }
        }
        let unknown = caller.judge("kontrol.v1.FutureService/Run").unwrap_err();
        assert_eq!(unknown.code(), Code::Unauthenticated);
    }
    assert!(
        caller(&gate, &[&good.replace("Bearer", "bEARER")])
            .principal()
            .is_some()
    );
}

#[tokio::test]
async fn metrics_and_reflection_can_be_opened_and_nothing_else_with_them() {
    let open = Settings {
        open_metrics: true,
        ..ASKS
    };
    let gate = gate(&everybody(), open);
    let nobody = caller(&gate, &[]);
    let opened: Vec<&str> = table::RULES
        .iter()
        .filter(|rule| nobody.judge(rule.rpc).is_ok() && rule.access != Access::Everyone)
        .map(|rule| rule.rpc)
        .collect();
    assert_eq!(
        opened,
        [
            "metrics",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        ]
    );
}

#[tokio::test]
async fn without_authentication_everybody_may_everything() {
    let open = Settings {
        authenticates: false,
        open_metrics: false,
    };
    let gate = gate("", open);
    for headers in [&[][..], &["Bearer anything"], &["Basic YTpi"]] {
        let caller = caller(&gate, headers);
        assert!(
            table::RULES
                .iter()
                .all(|rule| caller.judge(rule.rpc).is_ok())
        );
        assert!(caller.speaks_for("web-1", "x").is_ok());
    }
}

#[tokio::test]
async fn a_slave_speaks_for_its_own_pod() {
    let gate = gate(
        &format!("slave web-* {}", token_of(Role::Slave).digest()),
        ASKS,
    );
    let slave = caller(
        &gate,
        &[&format!("Bearer {}", token_of(Role::Slave).as_str())],
    );
    assert!(slave.speaks_for("web-1", "x").is_ok());
    let refused = slave.speaks_for("db-1", "x").unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("db-1"), "{refused:?}");
}

/// An authority, what it signed for a reader, and that it revoked it.
fn revoked(folder: &std::path::Path) -> (Files, Certificate) {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        DnType, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
    };
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
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(
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
    let (known, mistakes) = files.read_over(known);
    assert_eq!(mistakes, []);
    assert!(
        certificate.principal(&known, now).is_err(),
        "it was revoked"
    );

    // What can't be read changes nothing, and is told by its flag.
    std::fs::write(folder.path().join("crl.pem"), "nonsense").unwrap();
    let (known, mistakes) = files.read_over(known);
    assert_eq!(mistakes[0].flag, "client-crl");
    assert!(
        certificate.principal(&known, now).is_err(),
        "it stays revoked"
    );
}
