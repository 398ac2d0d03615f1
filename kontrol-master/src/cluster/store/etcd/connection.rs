//! One connection to one member: TCP to its address, TLS for its name, the user's token.
//!
//! It is made eagerly, so that what goes wrong is told with its cause; and with the files of TLS read anew.

use super::{failure::Failure, tls};
use crate::cluster::store::EtcdOptions;
use etcd_client::{Channel, Client, ConnectOptions, Error};
use hyper_util::rt::TokioIo;
use kontrol_runtime::cause::innermost;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
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
    let dialled = Arc::new(AtomicBool::new(false));
    let has_dialled = Arc::clone(&dialled);
    let dial = tower::service_fn(move |_| {
        let dialled = Arc::clone(&has_dialled);
        async move {
            let stream = TcpStream::connect(address).await?;
            dialled.store(true, Ordering::Relaxed);
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(dial)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            let cause = innermost(&error);
            // With TCP up, it is TLS that failed.
            let is_tls = options.tls.is_some() && dialled.load(Ordering::Relaxed);
            let text = if is_tls { tls_failed(&cause) } else { cause };
            return Err(Failure::Unreachable(text));
        }
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

/// Adds what to look at, which the cause alone leaves open.
fn tls_failed(cause: &str) -> String {
    if cause.contains("certificate") {
        format!(
            "{cause} (is it signed by KONTROL_ETCD_CACERT, not yet over, and for this very name?)"
        )
    } else {
        format!("{cause} (does this etcd speak TLS? KONTROL_ETCD_CACERT is for one that does)")
    }
}
