//! What went wrong in a call to etcd, by what may be done about it.
//!
//! The one question that matters for a write: is it certain that it was not applied? Certain is what never left this
//! process, and what etcd says before it proposes anything. Everything else is unclear, whatever its code: etcd answers
//! UNAVAILABLE both when it never took a write and when it lost sight of one.

use crate::cluster::store::StoreError;
use etcd_client::Error;
use kontrol_core::kv::{LeaseId, Revision};
use kontrol_runtime::cause::innermost;
use std::error::Error as _;
use tonic::{Code, ConnectError, Status};

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The token is not, or no longer, valid: authenticate and ask again. Nothing was applied.
    Token(String),
    /// Nothing was applied; another member may do better.
    Elsewhere(String),
    /// There is no connection, so nothing was applied; a new connection, or another member, may do better.
    Unreachable(String),
    /// No answer, or one that leaves it open. Another member may do better.
    Unclear(String),
    /// The revision is gone, or not yet there.
    Compacted,
    /// The lease is gone. Nothing was applied.
    Lease,
    /// No member will ever do it. Nothing was applied.
    Refused(String),
}

impl Failure {
    /// The error of a call that can't have written anything that matters.
    pub(super) fn of_read(self, revision: Revision) -> StoreError {
        self.into_error(None, revision, StoreError::Unavailable)
    }

    /// The error of a write.
    pub(super) fn of_write(self, lease: Option<LeaseId>) -> StoreError {
        self.into_error(lease, 0, StoreError::Indeterminate)
    }

    fn into_error(
        self,
        lease: Option<LeaseId>,
        revision: Revision,
        unclear: fn(String) -> StoreError,
    ) -> StoreError {
        match (self, lease) {
            (Self::Elsewhere(text) | Self::Unreachable(text), _) => StoreError::Unavailable(text),
            (Self::Unclear(text), _) => unclear(text),
            (Self::Compacted, _) => StoreError::Compacted(revision),
            (Self::Lease, Some(lease)) => StoreError::LeaseGone(lease),
            (Self::Lease, None) => StoreError::Refused("a lease that was not given is gone".into()),
            (Self::Token(text) | Self::Refused(text), _) => StoreError::Refused(text),
        }
    }

    /// The same, naming the member that said it.
    pub(super) fn at(self, member: &str) -> Self {
        let at = |text| format!("{member}: {text}");
        match self {
            Self::Token(text) => Self::Token(at(text)),
            Self::Elsewhere(text) => Self::Elsewhere(at(text)),
            Self::Unreachable(text) => Self::Unreachable(at(text)),
            Self::Unclear(text) => Self::Unclear(at(text)),
            Self::Refused(text) => Self::Refused(at(text)),
            Self::Compacted | Self::Lease => self,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => status.into(),
            // The client says so when etcd answers that the lease has no time left.
            Error::LeaseKeepAliveError(text) if text == "lease not found" => Self::Lease,
            Error::InvalidArgs(_)
            | Error::InvalidUri(_)
            | Error::InvalidMetadataValue(_)
            | Error::EndpointsNotManaged
            | Error::TransportError(_) => Self::Refused(error.to_string()),
            Error::IoError(_)
            | Error::WatchError(_)
            | Error::Utf8Error(_)
            | Error::LeaseKeepAliveError(_)
            | Error::ElectError(_)
            | Error::EndpointError(_)
            | Error::Internal(_) => Self::Unclear(error.to_string()),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if never_connected(&status) {
            return Self::Unreachable(deepest(&status));
        }
        let message = status.message();
        // etcd's own words, which are part of its API: its other clients go by them as well.
        let says = |text: &str| message.contains(text);
        match status.code() {
            Code::Unauthenticated => Self::Token(no_user(message)),
            Code::InvalidArgument
                if says("user name is empty") || says("revision of auth store is old") =>
            {
                Self::Token(no_user(message))
            }
            Code::InvalidArgument if says("authentication failed") => Self::Refused(
                "wrong user or password; check KONTROL_ETCD_USER and KONTROL_ETCD_PASSWORD".into(),
            ),
            Code::PermissionDenied => Self::Refused(format!(
                "{message}; give the user a role that may read and write the prefix /kontrol/"
            )),
            Code::OutOfRange if says("compacted") || says("future revision") => Self::Compacted,
            Code::NotFound if says("lease not found") => Self::Lease,
            Code::ResourceExhausted if says("database space exceeded") => Self::Refused(format!(
                "{message}; compact and defragment etcd, then disarm its alarm"
            )),
            Code::ResourceExhausted if says("too many requests") => {
                Self::Elsewhere(message.to_owned())
            }
            Code::FailedPrecondition if says("not leader") => Self::Elsewhere(message.to_owned()),
            // Asked before anything else is done, because every call here requires a leader.
            Code::Unavailable if says("no leader") => {
                Self::Elsewhere(format!("{message} (has etcd a majority of its members?)"))
            }
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::NotFound
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Unimplemented => Self::Refused(message.to_owned()),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unclear(deepest(&status)),
        }
    }
}

/// Told only when a new token did not help, so there is no user or no longer one.
fn no_user(message: &str) -> String {
    format!("{message} (etcd wants a user: set KONTROL_ETCD_USER and KONTROL_ETCD_PASSWORD)")
}

/// Whether no connection could be made, so that nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The message, with the innermost cause: `transport error` alone helps nobody.
fn deepest(status: &Status) -> String {
    let message = status.message();
    match status.source() {
        Some(source) => {
            let cause = innermost(source);
            if cause == message {
                cause
            } else {
                format!("{message}: {cause}")
            }
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_called_certain() {
        let unclear = [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable(
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            Status::unavailable("etcdserver: leader changed"),
            Status::unavailable("etcdserver: server stopped"),
            Status::unknown("transport error"),
            Status::cancelled("Timeout expired"),
            Status::deadline_exceeded("context deadline exceeded"),
            Status::internal("h2 protocol error"),
        ];
        for status in unclear {
            let failure = Failure::from(status);
            assert!(matches!(failure, Failure::Unclear(_)), "{failure:?}");
            let error = failure.clone().of_write(None);
            assert!(matches!(error, StoreError::Indeterminate(_)), "{error:?}");
            let error = failure.of_read(1);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
        for status in [
            Status::unavailable("etcdserver: no leader"),
            Status::resource_exhausted("etcdserver: too many requests"),
        ] {
            let error = Failure::from(status).of_write(None);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument(
                "etcdserver: authentication failed, invalid user ID or password",
            ),
            Status::invalid_argument("etcdserver: request is too large"),
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        ] {
            let error = Failure::from(status).of_write(None);
            assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
        }
    }
}
