//! From domain errors to gRPC statuses, in one table. The HTTP gateway maps the statuses on.

use crate::cluster::error::Error;
use tonic::{Code, Status};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) => Code::InvalidArgument,
            Error::NotFound(_) => Code::NotFound,
            Error::Unavailable(_) => Code::Unavailable,
            Error::Superseded(_) => Code::FailedPrecondition,
            Error::Exhausted(_) => Code::ResourceExhausted,
            Error::Internal(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
