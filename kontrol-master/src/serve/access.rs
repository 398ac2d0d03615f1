//! Who asks, and whether they may: on the way of every request, before anything of its body is read.
//!
//! ```text
//! request ──▶ identify: host name, token or certificate ──▶ gateway, metrics: authorize ──▶ body ──▶ guard: authorize ──▶ rpc
//!                                                            gRPC ─────────────────────────────────▶ guard, audit, streams
//! ```
//!
//! What a role may call stands in `kontrol_core::access::table`. Whoever may is still turned away when it is too much (see
//! `meter`), also of what is sent and has to wait for its rest (`upload`). A stream ends within seconds when what its caller
//! showed does not count any more (`lapse`). Without tokens and authorities everybody may call everything, and a master
//! listens on loopback alone, or was told `--insecure`.

mod audit;
pub mod certificate;
pub mod credentials;
mod guard;
pub mod hosts;
mod lapse;
mod meter;
#[cfg(test)]
mod tests;
mod upload;

pub use audit::Audit;
pub use credentials::{Credentials, Files, Known};
pub use guard::guarded;
pub use lapse::Lapsed;
pub use meter::{Admission, Meter};
pub(super) use upload::{Held, PATIENCE as UPLOAD_PATIENCE};

use crate::cluster::roster::Roster;
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use certificate::Certificate;
use hosts::Hosts;
use http::{
    Extensions, HeaderMap, StatusCode, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use kontrol_core::{
    access::{
        Principal, Role,
        table::{self, Access, Rule},
        tokens::{MAX_TOKEN_BYTES, TokenDigest},
    },
    model::invalid::clip,
};
use kontrol_runtime::supervise::{Children, Failure};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use upload::Uploads;

use super::gateway;

/// What the callback is called as a principal.
const CALLBACK: &str = "callback";
const SCHEME: &str = "bearer";
/// What everybody may ask for, under whatever host name: probes use all kinds of them, and learn nothing but one word.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// The connection that a request came over: an extension of it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The other end.
    pub peer: SocketAddr,
    /// The certificate that it showed, and that an authority of ours signed.
    pub certificate: Option<Arc<Certificate>>,
}

/// What a gate goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether principals are asked for at all: there are tokens, or an authority.
    pub authenticates: bool,
    /// Whether metrics and reflection are everybody's.
    pub open_metrics: bool,
}

/// Decides who comes in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    credentials: Credentials,
    hosts: Hosts,
    roster: Roster,
    audit: Audit,
    /// The looks after streams.
    looks: Children,
    meter: Meter,
    uploads: Uploads,
}

/// Who asks: an extension of every request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    gate: Gate,
    address: IpAddr,
    identity: Identity,
}

/// As whom somebody is known.
#[derive(Debug, Clone)]
enum Identity {
    /// Nobody is asked for anything.
    Anyone,
    /// It showed nothing.
    Nobody,
    /// What it showed does not count, and why.
    Refused(&'static str),
    /// It is known.
    Known(Arc<Principal>, Proof),
}

/// Whose calls, and whose bytes, are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Principal(Arc<Principal>),
    Address(IpAddr),
}

/// What shows who somebody is.
#[derive(Debug, Clone)]
enum Proof {
    Token(TokenDigest),
    /// The token of a run of the callback.
    Run(TokenDigest),
    Certificate(Arc<Certificate>),
}

impl Gate {
    /// A gate. `roster` knows the token of the callback that runs.
    pub fn new(
        settings: Settings,
        credentials: Credentials,
        hosts: Hosts,
        roster: Roster,
        audit: Audit,
        meter: Meter,
    ) -> Self {
        Self(Arc::new(Inner {
            settings,
            credentials,
            hosts,
            roster,
            uploads: Uploads::new(Arc::clone(audit.metrics())),
            audit,
            looks: Children::new("a look after a stream"),
            meter,
        }))
    }

    /// Waits for the end of what looks after streams, once the token is cancelled and they have ended.
    pub async fn joined(self, token: CancellationToken) -> Result<(), Failure> {
        self.0.looks.clone().joined(token).await
    }

    fn caller(&self, request: &Request) -> Caller {
        let link = request.extensions().get::<Link>();
        let certificate = link.and_then(|link| link.certificate.as_ref());
        Caller {
            gate: self.clone(),
            // Only what is no connection has no link, and nothing of that kind comes by here.
            address: link.map_or(IpAddr::from([0; 4]), |link| link.peer.ip()),
            identity: self.identity(request.headers(), certificate),
        }
    }

    fn identity(&self, headers: &HeaderMap, certificate: Option<&Arc<Certificate>>) -> Identity {
        if !self.0.settings.authenticates {
            return Identity::Anyone;
        }
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let proof = match (shown.next(), shown.next(), certificate) {
            (Some(_), Some(_), _) => return Identity::Refused("there are two tokens: show one"),
            (Some(value), None, _) => match token(value.as_bytes()) {
                Some(token) => {
                    let digest = TokenDigest::of(token);
                    // A token of the file wins: the callback's are drawn by lot, and never the same.
                    if self.0.credentials.now().tokens().find(&digest).is_some() {
                        Proof::Token(digest)
                    } else {
                        Proof::Run(digest)
                    }
                }
                None => {
                    return Identity::Refused(
                        "the header `authorization` must be `Bearer <token>`, the token without spaces",
                    );
                }
            },
            (None, _, Some(certificate)) if certificate.names_a_role() => {
                Proof::Certificate(Arc::clone(certificate))
            }
            (None, _, _) => return Identity::Nobody,
        };
        match self.principal(&proof) {
            Ok((principal, _)) => Identity::Known(principal, proof),
            Err(reason) => Identity::Refused(reason),
        }
    }

    /// Whom something shows, as of now, and until when at the most; or why it does not count.
    fn principal(
        &self,
        proof: &Proof,
    ) -> Result<(Arc<Principal>, Option<SystemTime>), &'static str> {
        const EXPIRED: &str =
            "the token has expired: have a new one made (kontrol-master token new)";
        let now = SystemTime::now();
        let known = self.0.credentials.now();
        match proof {
            Proof::Token(digest) => {
                let entry = known.tokens().find(digest);
                let entry = entry.ok_or("the token was taken out of the file of tokens")?;
                if !entry.counts(now) {
                    return Err(EXPIRED);
                }
                let until = entry.until.map(SystemTime::from);
                Ok((Arc::clone(&entry.principal), until))
            }
            Proof::Run(digest) => {
                if !self.0.roster.connected() {
                    return Err(
                        "this master knows no such token; it is out of touch with the store, and can't tell whether the callback of such a token runs",
                    );
                }
                let view = self.0.roster.peek();
                let run = view.callback_token().filter(|run| run.is(digest));
                run.ok_or("this master knows no such token")?;
                let principal = Principal::new(CALLBACK, Role::Operator);
                let principal = principal.map_err(|_| "the callback has no name")?;
                Ok((Arc::new(principal), None))
            }
            Proof::Certificate(certificate) => {
                let principal = certificate.principal(&known, now)?;
                Ok((principal, Some(certificate.until())))
            }
        }
    }
}

/// The token of a header, if that is what it holds.
fn token(header: &[u8]) -> Option<&str> {
    let (scheme, token) = str::from_utf8(header).ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    let is_token = !token.is_empty()
        && token.len() <= MAX_TOKEN_BYTES
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case(SCHEME) && is_token).then_some(token)
}

impl Caller {
    /// Who asks, as the gate has found. A request that came past the gate is refused.
    pub fn of(extensions: &Extensions) -> Result<Self, Status> {
        let caller = extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("nobody looked at who asks"))
    }

    /// The principal, where one is known.
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        match &self.identity {
            Identity::Known(principal, _) => Some(principal),
            Identity::Anyone | Identity::Nobody | Identity::Refused(_) => None,
        }
    }

    /// With whom it is counted.
    fn who(&self) -> Who {
        match self.principal() {
            Some(principal) => Who::Principal(Arc::clone(principal)),
            None => Who::Address(self.address.to_canonical()),
        }
    }

    /// Whether it may call this; what it is told when it may not. A refusal is audited.
    pub fn authorize(&self, rpc: &str) -> Result<(), Status> {
        let refused = match self.judge(rpc) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        self.gate.0.audit.refused(self, rpc, &refused);
        Err(refused)
    }

    /// Whether it may report, and attach as, a pod of this id; what it is told when it may not.
    /// `rpc`: how it says so.
    pub fn speaks_for(&self, id: &str, rpc: &str) -> Result<(), Status> {
        match self.principal() {
            Some(principal) if !principal.speaks_for(id) => {
                let refused = Status::permission_denied(foreign(principal, id));
                self.gate.0.audit.refused(self, rpc, &refused);
                Err(refused)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn judge(&self, rpc: &str) -> Result<(), Status> {
        let rule = table::find(rpc);
        let is_open = |rule: &Rule| {
            rule.access == Access::Everyone
                || self.gate.0.settings.open_metrics && rule.is_self_description()
        };
        match (&self.identity, rule) {
            (Identity::Anyone, _) => Ok(()),
            (_, Some(rule)) if is_open(rule) => Ok(()),
            (Identity::Nobody, _) => Err(Status::unauthenticated(
                "this master must know who asks: send `authorization: Bearer <token>`, or a client certificate",
            )),
            (Identity::Refused(reason), _) => Err(Status::unauthenticated(*reason)),
            (Identity::Known(principal, _), Some(rule)) if !rule.allows(principal.role()) => {
                Err(Status::permission_denied(format!(
                    "{principal} may not call {rpc}: that takes the role {}",
                    rule.roles()
                )))
            }
            (Identity::Known(..), Some(_)) => Ok(()),
            // Nobody may call what nobody thought of.
            (Identity::Known(..), None) => Err(Status::unimplemented(format!(
                "this master serves no {rpc}, or nobody may call it"
            ))),
        }
    }
}

/// What a principal is told that says it was another pod.
fn foreign(principal: &Principal, id: &str) -> String {
    let id = clip(id);
    format!(
        "{principal} may not speak for the pod {id:?}: give that pod a token or a certificate of its own"
    )
}

/// The first thing that happens to a request: who asks, and under what name.
pub async fn identify(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if let Err(name) = gate.check_host(&request) {
        let status = Status::permission_denied(format!(
            "{name:?} is no name of this master; if it is, add it to --hosts (KONTROL_HOSTS): a web page elsewhere could call itself so"
        ));
        return gateway::refusal(StatusCode::MISDIRECTED_REQUEST, &status);
    }
    let caller = gate.caller(&request);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

impl Gate {
    /// Refuses the name that a web page was given to reach this master from somebody's browser (DNS rebinding). gRPC over
    /// HTTP/2 is out of a page's reach.
    fn check_host(&self, request: &Request) -> Result<(), String> {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let is_http2 = request.version() == Version::HTTP_2;
        if is_grpc && is_http2 || PROBES.contains(&request.uri().path()) {
            return Ok(());
        }
        let header = request.headers().get(HOST).map(|host| host.to_str());
        let authority = match (request.uri().authority(), header) {
            (Some(authority), None) => authority.as_str(),
            (None, Some(Ok(host))) => host,
            // Both are said: neither may be foreign.
            (Some(authority), Some(Ok(host))) => {
                self.0.hosts.check(authority.as_str())?;
                host
            }
            (_, Some(Err(_))) => return Err("(no text)".to_owned()),
            // HTTP/1.0, which no browser speaks.
            (None, None) => return Ok(()),
        };
        self.0.hosts.check(authority)
    }
}
