//! The one way from a master to another: how it is dialled, and how long a silent connection is trusted.

use kontrol_core::view::PeerMaster;
use kontrol_runtime::cause::innermost;
use std::time::Duration;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How often a silent connection is asked whether its other end is still there, and how long that may take to answer.
const PING: Duration = Duration::from_secs(2);

/// Connects to a master, within the limit. Errors are UNAVAILABLE, and say why.
pub async fn dial(master: &PeerMaster, limit: Duration) -> Result<Channel, Status> {
    let address = &master.address;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::unavailable(format!("its address {address:?}: {error}")))?
        .connect_timeout(limit)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await;
    channel.map_err(|error| Status::unavailable(innermost(&error)))
}
