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
