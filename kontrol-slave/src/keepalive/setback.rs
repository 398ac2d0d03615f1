//! One request to a master, and why it does not count where it doesn't.

use crate::masters::link::LinkError;
use kontrol_proto::v1::{
    PingRequest, PingResponse, keepalive_service_client::KeepaliveServiceClient,
};
use kontrol_runtime::dial::{self, Channel};
use std::{error::Error, time::Duration};
use tokio::time::timeout;
use tonic::{Code, Request, Status};

/// Why a keepalive does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setback {
    /// The master understood it and will not have it, and neither would another.
    Refused(String),
    /// So it is, and for what it says: something else may be taken.
    Unfit(String),
    /// The master does not know who says it, or not as one who may. It may once the connection is made with what the files
    /// hold now; and another master may already.
    Stranger(String),
    /// There is no address to be known by.
    Homeless(String),
    /// This master cannot count it now; another may.
    Failed(String),
}

impl Setback {
    fn broke(reason: &str) -> Self {
        Self::Failed(format!("the connection broke: {reason}"))
    }

    /// Of a call on this connection.
    pub(super) fn of(channel: &Channel, status: Status) -> Self {
        match status.source() {
            Some(source) => Self::broke(&channel.reason(source)),
            None => status.into(),
        }
    }
}

impl From<LinkError> for Setback {
    fn from(error: LinkError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Status> for Setback {
    fn from(status: Status) -> Self {
        // A status with a source was made on this side, of a broken connection.
        if let Some(source) = status.source() {
            return Self::broke(&dial::reason(source));
        }
        let said = format!("{}: {}", status.code().description(), status.message());
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Self::Unfit(status.message().to_owned()),
            Code::FailedPrecondition | Code::AlreadyExists => {
                Self::Refused(status.message().to_owned())
            }
            Code::PermissionDenied | Code::Unauthenticated => Self::Stranger(stranger(&status)),
            // Also UNIMPLEMENTED and NOT_FOUND: something that is no master answers there.
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Failed(said),
        }
    }
}

/// What is told of a master that does not let this slave in: what to look at, too.
pub(crate) fn stranger(status: &Status) -> String {
    let look = "look at --token-file, KONTROL_TOKEN and --cert";
    match (status.code(), status.message()) {
        (Code::Unauthenticated, "") => format!("the master does not know who asks: {look}"),
        (Code::Unauthenticated, said) => {
            format!("the master does not know who asks ({said}): {look}")
        }
        (_, "") => format!("the master does not allow it: {look}"),
        (_, said) => format!("the master does not allow it ({said}): {look}"),
    }
}

/// Sends one request, for `limit` at most; the master is told the limit too.
pub(super) async fn ping(
    channel: Channel,
    request: PingRequest,
    limit: Duration,
) -> Result<PingResponse, Setback> {
    let mut request = Request::new(request);
    request.set_timeout(limit);
    let mut client = KeepaliveServiceClient::new(channel.clone());
    match timeout(limit, client.ping(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Setback::of(&channel, status)),
        Err(_) => Err(Setback::Failed("no answer in time".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_master_that_is_busy_or_no_master_is_left_and_one_that_says_no_is_believed() {
        for code in [
            Code::Unavailable,
            Code::Unimplemented,
            Code::Internal,
            Code::ResourceExhausted,
        ] {
            let setback = Setback::from(Status::new(code, "x"));
            assert!(matches!(setback, Setback::Failed(_)), "{code:?}");
        }
        let setback = Setback::from(Status::invalid_argument("ip is required"));
        assert_eq!(setback, Setback::Unfit("ip is required".into()));
        let setback = Setback::from(Status::failed_precondition("another took its place"));
        assert_eq!(setback, Setback::Refused("another took its place".into()));
    }

    #[test]
    fn a_connection_that_broke_is_no_refusal_whatever_its_code() {
        let mut status = Status::permission_denied("h2");
        status.set_source(Arc::new(std::io::Error::other("reset")));
        let setback = Setback::from(status);
        assert_eq!(
            setback,
            Setback::Failed("the connection broke: reset".into())
        );
    }

    #[test]
    fn a_stranger_is_told_what_to_look_at() {
        for (status, words) in [
            (
                Status::unauthenticated("unknown token"),
                "does not know who asks (unknown token): look at --token-file",
            ),
            (
                Status::unauthenticated(""),
                "does not know who asks: look at",
            ),
            (
                Status::permission_denied("not for web-2"),
                "does not allow it (not for web-2)",
            ),
            (Status::permission_denied(""), "does not allow it: look at"),
        ] {
            let setback = Setback::from(status);
            assert!(
                matches!(&setback, Setback::Stranger(said) if said.contains(words)),
                "{setback:?}"
            );
        }
    }
}
