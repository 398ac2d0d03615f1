//! What can go wrong with a request, by what the caller must do about it. `rpc::status` turns it into a gRPC status.

use crate::cluster::store::StoreError;
use kontrol_core::model::{Invalid, action::ActionId};

/// Why a request was not done. The text is for the caller: it names the field or tells what to do next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A field is wrong: correct it. (INVALID_ARGUMENT)
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no such thing. (NOT_FOUND)
    #[error("{0}")]
    NotFound(String),
    /// Not now, or not here: try again, at another master. Nothing was stored, as far as is known: what it says may be
    /// said again. (UNAVAILABLE)
    #[error("{0}")]
    Unavailable(String),
    /// Another incarnation or pod took the caller's place. (FAILED_PRECONDITION)
    #[error("{0}")]
    Superseded(String),
    /// The caller is too slow, or there is too much of something. (RESOURCE_EXHAUSTED)
    #[error("{0}")]
    Exhausted(String),
    /// A bug, or a store that refuses: a person must look at the log. (INTERNAL)
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// There is no such action.
    pub fn no_action(id: &ActionId) -> Self {
        Self::NotFound(format!(
            "no action has the id {id}, or it is no longer in the history"
        ))
    }

    /// What a caller is told about a store that failed; the cause is for the log.
    pub fn from_store(error: &StoreError) -> Self {
        match error {
            StoreError::Refused(_) => {
                tracing::error!(%error, "a person must look at the store");
                Self::Internal("the store refuses the write; see the log of this master".to_owned())
            }
            StoreError::Unavailable(_)
            | StoreError::Indeterminate(_)
            | StoreError::Compacted(_)
            | StoreError::LeaseGone(_) => {
                tracing::debug!(%error, "the store failed");
                Self::Unavailable("the store can't be reached just now; try again".to_owned())
            }
        }
    }
}
