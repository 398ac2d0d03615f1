//! One connection to one member: TCP to its address, TLS for its name, the user's token.
//!
//! It is made eagerly, so that what goes wrong is told with its cause; and with the files of TLS read anew.

use super::{
    failure::{Failure, innermost},
    tls,
};
use crate::store::EtcdOptions;
use etcd_client::{Channel, Client, ConnectOptions, Error};
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, transport::Endpoint};

/// How long TCP and TLS may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take until etcd has checked the password, which it makes costly.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pings on a connection with open streams. etcd hangs up on who pings more often than every 5 s, or without a stream.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of the member at this address, authenticated.
pub(super) async fn open(
    name: String,
    address: SocketAddr,
    options: Arc<EtcdOptions>,
) -> Result<Client, Failure> {
    match timeout(WHOLE_TIMEOUT, connect(&name, address, &options)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Unreachable("does not let us in in time".into())),
    }
}

async fn connect(
    name: &str,
    address: SocketAddr,
    options: &EtcdOptions,
) -> Result<Client, Failure> {
    let refused = |error: tonic::transport::Error| Failure::Refused(innermost(&error));
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    // The name is what the certificate is checked for; only the connector knows the address.
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{name}"))
        .map_err(refused)?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    if let Some(files) = &options.tls {
        let files = tls::read(files).await.map_err(Failure::Refused)?;
        endpoint = endpoint.tls_config(files).map_err(refused)?;
    }
    let dial = tower::service_fn(move |_| async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let channel = match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(dial)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(Failure::Unreachable(unreachable(&innermost(&error)))),
        Err(_) => return Err(Failure::Unreachable("no connection in time".into())),
    };
    // A member without a leader says so at once, rather than after a time-out.
    let with_leader = ConnectOptions::new().with_require_leader(true);
    let mut client = Client::from_channel(Channel::Tonic(channel), Some(with_leader)).await?;
    if let (Some(user), Some(password)) = (&options.user, &options.password) {
        match client
            .update_user(Some((user.clone(), password.clone())))
            .await
        {
            // As etcd's own clients do: whoever turns authentication on later is served with this password.
            Err(Error::GRpcStatus(status))
                if status.code() == Code::FailedPrecondition
                    && status.message().contains("not enabled") =>
            {
                tracing::warn!(
                    member = name,
                    "etcd has no authentication, the password is not used"
                );
            }
            result => result?,
        }
    }
    Ok(client)
}

/// Adds what to look at, where the cause alone leaves that open.
fn unreachable(cause: &str) -> String {
    if cause.contains("InvalidContentType") {
        return format!(
            "{cause} (it does not speak TLS: is KONTROL_ETCD_CACERT meant for another etcd?)"
        );
    }
    if cause.contains("certificate") {
        return format!(
            "{cause} (is it in the authority of KONTROL_ETCD_CACERT, valid, and for this name?)"
        );
    }
    cause.to_owned()
}
