//! The one table of who may call what. It fails closed: what is not in it, nobody may call.
//!
//! A test of the master holds it against the descriptors of every service that is served.

use super::Role::{self, Operator, Peer, Reader, Slave};

/// Who may call something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, known or not.
    Everyone,
    /// Principals of these roles.
    Roles(&'static [Role]),
}

/// How heavy a call is, and what becomes of it when there is too much: keepalives are served before everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It keeps pods alive, or masters together: nothing sheds it.
    Vital,
    /// It reads.
    Read,
    /// It changes something, or has commands run: it is audited.
    Act,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The full name of the rpc, as its path has it: `package.Service/Rpc`.
    pub rpc: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it is.
    pub kind: Kind,
}

/// Name in the table of `/metrics`, which is no rpc.
pub const METRICS: &str = "metrics";
/// What the names of the reflection services begin with.
const REFLECTION: &str = "grpc.reflection.";

const REPORT: Access = Access::Roles(&[Slave, Peer]);
const READ: Access = Access::Roles(&[Reader, Operator]);
const OPERATE: Access = Access::Roles(&[Operator]);
const MASTERS: Access = Access::Roles(&[Peer]);

const fn rule(rpc: &'static str, access: Access, kind: Kind) -> Rule {
    Rule { rpc, access, kind }
}

/// Every rule.
pub const RULES: [Rule; 29] = [
    rule("kontrol.v1.KeepaliveService/Ping", REPORT, Kind::Vital),
    rule(
        "kontrol.v1.KeepaliveService/PingStream",
        REPORT,
        Kind::Vital,
    ),
    rule("kontrol.v1.EnsembleService/GetEnsemble", READ, Kind::Read),
    rule("kontrol.v1.EnsembleService/ListPods", READ, Kind::Read),
    rule("kontrol.v1.EnsembleService/GetPod", READ, Kind::Read),
    rule("kontrol.v1.EnsembleService/ExplainPod", READ, Kind::Read),
    rule("kontrol.v1.EnsembleService/GetState", READ, Kind::Read),
    rule("kontrol.v1.EnsembleService/PutState", OPERATE, Kind::Act),
    rule("kontrol.v1.EnsembleService/Watch", READ, Kind::Read),
    rule("kontrol.v1.ActionService/Attach", REPORT, Kind::Vital),
    rule("kontrol.v1.ActionService/Dispatch", OPERATE, Kind::Act),
    rule("kontrol.v1.ActionService/GetAction", READ, Kind::Read),
    rule("kontrol.v1.ActionService/ListActions", READ, Kind::Read),
    rule("kontrol.v1.ActionService/CancelAction", OPERATE, Kind::Act),
    rule("kontrol.v1.OperateService/HoldCallback", OPERATE, Kind::Act),
    rule(
        "kontrol.v1.OperateService/ResumeCallback",
        OPERATE,
        Kind::Act,
    ),
    rule("kontrol.v1.OperateService/RunCallback", OPERATE, Kind::Act),
    rule(
        "kontrol.v1.OperateService/PreviewCallback",
        READ,
        Kind::Read,
    ),
    rule("kontrol.v1.OperateService/EvictPod", OPERATE, Kind::Act),
    rule(
        "kontrol.v1.OperateService/ReleaseSafeguard",
        OPERATE,
        Kind::Act,
    ),
    rule(
        "kontrol.internal.v1.PeerService/Relay",
        MASTERS,
        Kind::Vital,
    ),
    rule(
        "kontrol.internal.v1.PeerService/Inspect",
        MASTERS,
        Kind::Vital,
    ),
    rule(
        "kontrol.internal.v1.ExchangeService/Exchange",
        MASTERS,
        Kind::Vital,
    ),
    rule(
        "kontrol.internal.v1.ExchangeService/Cancel",
        MASTERS,
        Kind::Vital,
    ),
    rule("grpc.health.v1.Health/Check", Access::Everyone, Kind::Vital),
    rule("grpc.health.v1.Health/Watch", Access::Everyone, Kind::Read),
    rule(METRICS, READ, Kind::Read),
    rule(
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        READ,
        Kind::Read,
    ),
    rule(
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        READ,
        Kind::Read,
    ),
];

/// The rule of an rpc, if the table has one.
pub fn find(rpc: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.rpc == rpc)
}

impl Rule {
    /// Whether it describes this master rather than the ensemble: what `--open-metrics` opens to everybody.
    pub fn is_self_description(&self) -> bool {
        self.rpc == METRICS || self.rpc.starts_with(REFLECTION)
    }

    /// Whether a principal of this role may call it.
    pub fn allows(&self, role: Role) -> bool {
        match self.access {
            Access::Everyone => true,
            Access::Roles(roles) => roles.contains(&role),
        }
    }

    /// The roles that may, for a person: `operator`, `reader or operator`.
    pub fn roles(&self) -> String {
        let roles = match self.access {
            Access::Everyone => return "everybody".to_owned(),
            Access::Roles(roles) => roles,
        };
        let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        roles.join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_rpc_has_one_rule_and_an_unknown_one_none() {
        let names: BTreeSet<&str> = RULES.iter().map(|rule| rule.rpc).collect();
        assert_eq!(names.len(), RULES.len());
        for rpc in [
            "",
            "kontrol.v1.KeepaliveService",
            "kontrol.v1.KeepaliveService/ping",
            "a.B/C",
        ] {
            assert_eq!(find(rpc), None, "{rpc}");
        }
    }

    #[test]
    fn what_is_audited_takes_an_operator_and_what_masters_say_takes_a_master() {
        for rule in &RULES {
            let may: Vec<Role> = Role::ALL
                .into_iter()
                .filter(|role| rule.allows(*role))
                .collect();
            if rule.kind == Kind::Act {
                assert_eq!(may, [Operator], "{}", rule.rpc);
            }
            if rule.rpc.starts_with("kontrol.internal.") {
                assert_eq!(may, [Peer], "{}", rule.rpc);
            }
            if rule.access == Access::Everyone {
                assert!(rule.rpc.starts_with("grpc.health."), "{}", rule.rpc);
            }
        }
    }
}
