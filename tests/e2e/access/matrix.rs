//! Every rpc, by everybody, over gRPC and over HTTP. The rpcs and their routes come from the descriptors; what each role may
//! do is said here once more, in the words of the contract.

use super::{HOST, Secured, token};
use http_body_util::{BodyExt, Full};
use kontrol_proto::v1::{PingRequest, PingStreamRequest, PingStreamResponse, ping_stream_response};
use kontrol_runtime::{
    dial::{Channel, Credentials},
    testing::{Authority, write},
};
use kontrol_tests::small;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use std::{collections::BTreeMap, fmt, time::Duration};
use tokio::time::timeout;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

/// How long an answer may take: the machine is busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pod that everybody says to be.
const POD: &str = "web-1";

/// An rpc, and what it is called over HTTP.
struct Rpc {
    path: String,
    routes: Vec<(String, String)>,
}

fn rpcs() -> Vec<Rpc> {
    let sets = [
        kontrol_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut all = Vec::new();
    for set in sets {
        let pool = DescriptorPool::decode(set).unwrap();
        for method in pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
        {
            all.push(Rpc {
                path: format!("{}/{}", method.parent_service().full_name(), method.name()),
                routes: routes(&pool, &method),
            });
        }
    }
    all
}

/// The HTTP methods and paths of an rpc, with something for each variable.
fn routes(pool: &DescriptorPool, method: &MethodDescriptor) -> Vec<(String, String)> {
    let Some(extension) = pool.get_extension_by_name("google.api.http") else {
        return Vec::new();
    };
    let options = method.options();
    if !options.has_extension(&extension) {
        return Vec::new();
    }
    let rule = options.get_extension(&extension);
    let rule = rule.as_message().unwrap();
    let more = rule.get_field_by_name("additional_bindings").unwrap();
    let more = more.as_list().unwrap().iter().filter_map(Value::as_message);
    std::iter::once(rule).chain(more).map(route).collect()
}

fn route(rule: &DynamicMessage) -> (String, String) {
    let method = ["get", "put", "post", "delete", "patch"]
        .into_iter()
        .find(|method| rule.has_field_by_name(method))
        .unwrap();
    let path = rule.get_field_by_name(method).unwrap();
    let mut path = path.as_str().unwrap().to_owned();
    while let (Some(begin), Some(end)) = (path.find('{'), path.find('}')) {
        path.replace_range(begin..=end, "2kce4V");
    }
    (method.to_uppercase(), path)
}

/// What the contract says of a role (design, 6).
fn may(role: &str, rpc: &str) -> bool {
    let (service, name) = rpc.split_once('/').unwrap();
    let reports = service == "kontrol.v1.KeepaliveService" || name == "Attach";
    let reads = [
        "Get",
        "List",
        "Explain",
        "Watch",
        "Preview",
        "ServerReflectionInfo",
    ]
    .iter()
    .any(|verb| name.starts_with(verb));
    let internal = service.starts_with("kontrol.internal.");
    if service == "grpc.health.v1.Health" {
        return true;
    }
    match role {
        "slave" => reports && !internal,
        "reader" => reads && !internal,
        "operator" => !reports && !internal,
        "peer" => internal || reports,
        _ => false,
    }
}

/// Somebody who tries, and what must come of it.
struct Somebody {
    who: String,
    credentials: Credentials,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    /// What the role may.
    Role(&'static str),
    /// The role may call, but not speak for this pod.
    OtherPod,
    /// Nobody knows who that is.
    Unknown,
    /// TLS does not come about.
    NoTls,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    LetIn,
    Unauthenticated,
    Denied,
    NoTls,
    Odd(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn of_code(code: Code) -> Outcome {
    if code == Code::Unauthenticated {
        Outcome::Unauthenticated
    } else if code == Code::PermissionDenied {
        Outcome::Denied
    } else if [Code::Internal, Code::Unimplemented, Code::Unknown].contains(&code) {
        Outcome::Odd(format!("{code:?}"))
    } else {
        Outcome::LetIn
    }
}

impl Expected {
    fn outcome(self, rpc: &str) -> Outcome {
        let is_open = may("nobody", rpc);
        match self {
            Self::NoTls => Outcome::NoTls,
            Self::Unknown if is_open => Outcome::LetIn,
            Self::Unknown => Outcome::Unauthenticated,
            Self::Role(role) if may(role, rpc) => Outcome::LetIn,
            Self::Role(_) => Outcome::Denied,
            // Attach says a key, and no pod of that key lives here: `own` has one.
            Self::OtherPod if rpc.ends_with("/Attach") => Outcome::LetIn,
            Self::OtherPod if rpc.starts_with("kontrol.v1.KeepaliveService/") => Outcome::Denied,
            Self::OtherPod if is_open => Outcome::LetIn,
            Self::OtherPod => Outcome::Denied,
        }
    }
}

fn ping() -> PingRequest {
    PingRequest {
        app: "web".into(),
        id: POD.into(),
        ip: "127.0.0.9".into(),
        role: "front".into(),
        ..PingRequest::default()
    }
}

fn message(rpc: &str) -> Vec<u8> {
    match rpc {
        "kontrol.v1.KeepaliveService/Ping" => ping().encode_to_vec(),
        "kontrol.v1.KeepaliveService/PingStream" => PingStreamRequest::from(ping()).encode_to_vec(),
        _ => Vec::new(),
    }
}

async fn exchange(
    channel: &mut Channel,
    request: http::Request<Full<bytes::Bytes>>,
) -> Result<http::Response<tonic::body::Body>, Outcome> {
    let request = request.map(tonic::body::Body::new);
    let ready = channel.ready().await.map_err(|_| Outcome::NoTls)?;
    match timeout(PATIENCE, ready.call(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(_)) => Err(Outcome::NoTls),
        Err(_) => Err(Outcome::Odd("no answer".into())),
    }
}

async fn by_grpc(channel: &mut Channel, rpc: &str) -> Outcome {
    let message = message(rpc);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0], &length[..], &message].concat();
    let request = http::Request::post(format!("https://{HOST}/{rpc}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::from(body))
        .unwrap();
    let response = match exchange(channel, request).await {
        Ok(response) => response,
        Err(outcome) => return outcome,
    };
    if let Some(status) = Status::from_header_map(response.headers()) {
        return of_code(status.code());
    }
    let mut body = response.into_body();
    // The first word of a stream is enough; a unary call has its status behind its one message.
    while let Ok(Some(frame)) = timeout(PATIENCE, body.frame()).await {
        let Ok(frame) = frame else {
            return Outcome::NoTls;
        };
        if let Some(trailers) = frame.trailers_ref() {
            return of_code(Status::from_header_map(trailers).unwrap().code());
        }
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if rpc.ends_with("/PingStream") {
            let answer = PingStreamResponse::decode(&data[5..]).unwrap();
            let Some(ping_stream_response::Result::Error(error)) = answer.result else {
                return Outcome::LetIn;
            };
            return of_code(error.code.into());
        }
        if rpc.ends_with("/Watch") {
            return Outcome::LetIn;
        }
    }
    Outcome::Odd("the answer broke off".into())
}

async fn by_http(channel: &mut Channel, rpc: &str, method: &str, path: &str) -> Outcome {
    let body = if rpc.ends_with("/Ping") {
        format!(r#"{{"app":"web","id":"{POD}","ip":"127.0.0.9","role":"front"}}"#)
    } else if method == "GET" || method == "DELETE" {
        String::new()
    } else {
        "{}".to_owned()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(format!("https://{HOST}{path}"))
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap();
    match exchange(channel, request).await {
        Ok(response) => match response.status().as_u16() {
            401 => Outcome::Unauthenticated,
            403 => Outcome::Denied,
            404 if path.contains("2kce4V") => Outcome::LetIn,
            status @ (404 | 405 | 421 | 500..) => Outcome::Odd(format!("{status}")),
            _ => Outcome::LetIn,
        },
        Err(outcome) => outcome,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_call_what_the_contract_says_and_nothing_else() {
    let _permit = small().await;
    let roles = ["slave", "reader", "operator", "peer"];
    let tokens: BTreeMap<&str, (String, String)> =
        roles.iter().map(|role| (*role, token(role, POD))).collect();
    let other = token("slave", "db-*");
    let expired = {
        let (secret, line) = token("operator", "old");
        (secret, format!("{line} until:2001-01-01T00:00:00Z"))
    };
    let mut lines: Vec<&str> = tokens.values().map(|(_, line)| line.as_str()).collect();
    lines.extend([other.1.as_str(), expired.1.as_str()]);
    let secured = Secured::start(&[], &lines).await;
    let foreign = Authority::new("foreign");
    let ours = &secured.ours;
    let mut all = vec![
        Somebody {
            who: "nobody".into(),
            credentials: secured.nobody(),
            expected: Expected::Unknown,
        },
        Somebody {
            who: "a wrong token".into(),
            credentials: secured.with_token("kontrol_wrong"),
            expected: Expected::Unknown,
        },
        Somebody {
            who: "an expired token".into(),
            credentials: secured.with_token(&expired.0),
            expected: Expected::Unknown,
        },
        Somebody {
            who: "the token of another pod".into(),
            credentials: secured.with_token(&other.0),
            expected: Expected::OtherPod,
        },
        Somebody {
            who: "the certificate of another pod".into(),
            credentials: secured.with_pair(&secured.client(ours, "other", "db-1", "kontrol:slave")),
            expected: Expected::OtherPod,
        },
        Somebody {
            who: "a certificate without a role".into(),
            credentials: secured.with_pair(&secured.client(ours, "norole", "x", "Example")),
            expected: Expected::Unknown,
        },
        Somebody {
            who: "a certificate of an unknown role".into(),
            credentials: secured.with_pair(&secured.client(ours, "root", "x", "kontrol:root")),
            expected: Expected::Unknown,
        },
        Somebody {
            who: "a certificate of a foreign authority".into(),
            credentials: secured.with_pair(&secured.client(
                &foreign,
                "foreign",
                POD,
                "kontrol:operator",
            )),
            expected: Expected::NoTls,
        },
        Somebody {
            who: "an expired certificate".into(),
            credentials: secured.with_pair(&write(
                secured.dir.path(),
                "expired",
                &ours.sign_as(&[], |params| {
                    params.not_before = kontrol_runtime::testing::rcgen::date_time_ymd(2000, 1, 1);
                    params.not_after = kontrol_runtime::testing::rcgen::date_time_ymd(2001, 1, 1);
                }),
            )),
            expected: Expected::NoTls,
        },
    ];
    for role in roles {
        all.push(Somebody {
            who: format!("a token of the role {role}"),
            credentials: secured.with_token(&tokens[role].0),
            expected: Expected::Role(role),
        });
        let organization = format!("kontrol:{role}");
        all.push(Somebody {
            who: format!("a certificate of the role {role}"),
            credentials: secured.with_pair(&secured.client(ours, role, POD, &organization)),
            expected: Expected::Role(role),
        });
    }

    let rpcs = rpcs();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for somebody in &all {
        let mut channel = secured.dial(&somebody.credentials).await.ok();
        for rpc in &rpcs {
            let expected = somebody.expected.outcome(&rpc.path);
            let mut judge = |face: String, outcome: Outcome| {
                asked += 1;
                if outcome != expected {
                    wrong.push(format!(
                        "{} {} {face}: {outcome}, not {expected}",
                        somebody.who, rpc.path
                    ));
                }
            };
            let outcome = match &mut channel {
                Some(channel) => by_grpc(channel, &rpc.path).await,
                None => Outcome::NoTls,
            };
            judge("gRPC".into(), outcome);
            for (method, path) in &rpc.routes {
                let outcome = match &mut channel {
                    Some(channel) => by_http(channel, &rpc.path, method, path).await,
                    None => Outcome::NoTls,
                };
                judge(format!("{method} {path}"), outcome);
            }
        }
    }
    assert!(wrong.is_empty(), "{:#?}", wrong);
    assert!(asked > 800, "only {asked} calls were made");
}
