//! The one way from a master to another: how it is dialled, what is shown to it, and how long a silent connection is trusted.

use kontrol_core::view::PeerMaster;
use kontrol_runtime::{
    dial::{self, Channel, Credentials, Target},
    host::{HostPort, MASTER_PORT},
};
use std::{error::Error, time::Duration};
use tonic::{Code, Status};

/// How often a silent connection is asked whether its other end is still there, and how long that may take to answer.
const PING: Duration = Duration::from_secs(2);

/// Dials other masters. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    credentials: Credentials,
}

impl Dialer {
    /// What is shown to the others, and whom to trust.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials }
    }

    /// Connects to a master, within the limit. Errors are UNAVAILABLE, and say why.
    pub async fn dial(&self, master: &PeerMaster, limit: Duration) -> Result<Channel, Status> {
        let address = &master.address;
        let HostPort { host, port } = address.parse().map_err(|_| {
            Status::unavailable(format!(
                "its address {address:?} is none that can be dialled"
            ))
        })?;
        let target = Target {
            host,
            port: port.unwrap_or(MASTER_PORT),
            tls: master.tls,
            address: None,
        };
        let options = dial::Options {
            limit,
            ping: PING,
            ping_timeout: PING,
            while_idle: true,
            user_agent: None,
        };
        dial::connect(target, &self.credentials, options)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// What a status says, for the log: what broke the connection where one did, and what to look at where the other master does
/// not let this one in.
pub fn reason(status: &Status) -> String {
    let said = status.message();
    match (status.source(), status.code()) {
        (Some(source), _) => dial::reason(source),
        (None, Code::Unauthenticated | Code::PermissionDenied) => format!(
            "it does not let this master in ({said}): look at --token-file, KONTROL_TOKEN and --cert, which must be those of a peer"
        ),
        (None, _) => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_runtime::testing::Authority;
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;
    use tonic::transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming};
    use tonic_health::{
        pb::{HealthCheckRequest, health_client::HealthClient},
        server::health_reporter,
    };

    const LIMIT: Duration = Duration::from_secs(20);

    fn master(address: String, tls: bool) -> PeerMaster {
        PeerMaster {
            id: "m1".to_owned(),
            address,
            instance: "1".to_owned(),
            tls,
        }
    }

    #[tokio::test]
    async fn a_master_is_dialled_as_it_says_that_it_speaks() {
        let (authority, folder) = (Authority::new("one"), tempfile::tempdir().unwrap());
        let (cert, key) = authority.sign(&["localhost"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
        let serve = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(health_reporter().1)
            .serve_with_incoming(TcpIncoming::from(listener));
        let _server = AbortOnDropHandle::new(tokio::spawn(serve));
        let credentials = Credentials::none().with_ca(authority.install(folder.path()));
        let dialer = Dialer::new(credentials);
        let ask = async |channel: Channel| {
            let mut client = HealthClient::new(channel);
            client.check(HealthCheckRequest::default()).await
        };
        let channel = dialer.dial(&master(address.clone(), true), LIMIT).await;
        ask(channel.unwrap()).await.unwrap();
        let channel = dialer.dial(&master(address.clone(), false), LIMIT).await;
        assert!(ask(channel.unwrap()).await.is_err(), "in clear text");
        let trusting_nobody = Dialer::default();
        let error = trusting_nobody
            .dial(&master(address, true), LIMIT)
            .await
            .unwrap_err();
        assert!(error.message().contains("--ca"), "{error}");
    }

    #[tokio::test]
    async fn what_can_not_be_dialled_and_whoever_does_not_let_us_in_are_told() {
        let dialer = Dialer::default();
        let error = dialer.dial(&master("a b".to_owned(), false), LIMIT).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(reason(&error).contains("\"a b\""), "{error}");
        let told = reason(&Status::unauthenticated("no token"));
        assert!(told.contains("(no token): look at --token-file"), "{told}");
    }
}
