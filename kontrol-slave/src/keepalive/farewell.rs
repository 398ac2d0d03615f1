//! The goodbye: `down`, said to one master of the tier within a fixed time, however many of them are unreachable.
//!
//! The connection in use is asked first. Each time one fails, or is silent for a while, the next address is asked *as
//! well*: a master that is merely slow may still answer, and the first answer ends it. Hearing it twice is harmless.

use super::{Setback, ping};
use crate::masters::{
    Endpoint,
    link::{Attached, Link, open},
};
use futures::{StreamExt, stream::FuturesUnordered};
use kontrol_proto::v1::{PingRequest, PingResponse};
use kontrol_runtime::dial::Credentials;
use std::{net::SocketAddr, time::Duration};
use tokio::time::{sleep, timeout};

/// The time for all of it. With the last keepalive before it, it stays well below two seconds.
const WHOLE: Duration = Duration::from_millis(1300);
/// How long one address may be silent before the next is asked as well.
const STAGGER: Duration = Duration::from_millis(250);
/// The time for a lookup.
const LOOKUP: Duration = Duration::from_millis(500);
/// Most addresses that are asked at a time.
const AT_ONCE: usize = 8;

/// A way to a master.
enum Way {
    /// A connection that exists.
    Connected(Attached),
    /// An address to connect to.
    Dial(Endpoint, SocketAddr),
}

/// Says goodbye on the link. `request` makes a new one for each address.
pub(super) async fn say(
    link: &mut Link,
    request: impl FnMut() -> PingRequest,
) -> Result<(), String> {
    match timeout(WHOLE, ask(link, request)).await {
        Ok(result) => result,
        Err(_) => Err("no master answered in time".into()),
    }
}

async fn ask(link: &mut Link, mut request: impl FnMut() -> PingRequest) -> Result<(), String> {
    let mut asked = FuturesUnordered::new();
    let mut reason = String::from("no master is connected");
    let mut current = link.current().cloned();
    // From here on the address in use comes last in the round.
    link.leave();
    let credentials = link.credentials();
    let mut more = true;
    loop {
        if more {
            let way = match current.take() {
                Some(attached) => Ok(Way::Connected(attached)),
                None => link.next(LOOKUP).await.map(|(endpoint, address)| {
                    more = !link.exhausted();
                    Way::Dial(endpoint, address)
                }),
            };
            match way {
                Ok(way) => asked.push(go(way, credentials.clone(), request())),
                Err(error) => (more, reason) = (false, error.to_string()),
            }
        }
        // Waiting is all that happens here: the requests live in the set, whichever arm wins.
        loop {
            tokio::select! {
                biased;
                Some(result) = asked.next() => match result {
                    Ok(_) => return Ok(()),
                    Err(Setback::Refused(said) | Setback::Unfit(said)) => return Err(said),
                    // A stranger is no stranger any more where the connection is made anew.
                    Err(Setback::Failed(said) | Setback::Homeless(said) | Setback::Stranger(said)) => {
                        reason = said;
                        if more {
                            break;
                        }
                    }
                },
                () = sleep(STAGGER), if more && asked.len() < AT_ONCE => break,
                else => return Err(reason),
            }
        }
    }
}

async fn go(
    way: Way,
    credentials: Credentials,
    request: PingRequest,
) -> Result<PingResponse, Setback> {
    let attached = match way {
        Way::Connected(attached) => attached,
        Way::Dial(endpoint, address) => open(endpoint, address, &credentials, WHOLE).await?,
    };
    ping(attached.channel(), request, WHOLE).await
}
