//! The token of a run: the callback calls any master back with it, while it runs and no longer.
//!
//! The store has its digest, so that every master knows it, and a new leader's epoch ends it.

use super::storing::Storing;
use crate::cluster::store::StoreError;
use kontrol_core::{
    access::tokens::Token,
    kv::{Op, Outcome, Txn},
    view::{CALLBACK, CallbackRecord},
};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How often it is tried to take a token back, and how long each try may take.
const ATTEMPTS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(1);

/// Why a run gets no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotIssued {
    /// The store says that another master leads.
    #[error("another master leads")]
    Deposed,
    /// The store does not take it.
    #[error("the token of the run can't be stored: {0}")]
    Store(#[from] StoreError),
}

impl Storing {
    /// A token for the run that is about to start, which every master knows; none where nobody is asked who it is.
    pub(super) async fn issue(&self) -> Result<Option<Token>, NotIssued> {
        if !self.context.settings.authenticates {
            return Ok(None);
        }
        let token = Token::of(rand::random());
        let record = CallbackRecord {
            epoch: self.fence.epoch(),
            token: token.digest(),
        };
        let txn = Txn {
            compares: Vec::new(),
            ops: vec![Op::put(CALLBACK, record.encode())],
            otherwise: Vec::new(),
        };
        match self.context.store.commit(self.fence.guard(txn)).await? {
            Outcome::Committed(revision) => {
                // The callback's first call may come at once, and here.
                self.context.roster.caught_up(revision, LIMIT).await;
                Ok(Some(token))
            }
            Outcome::Conflict(_) => Err(NotIssued::Deposed),
        }
    }

    /// The run has ended. A record that can't be deleted now is replaced at the next run, and counts for nothing under the
    /// next leader.
    pub(super) async fn take_back(&self) {
        let mut trouble = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(LIMIT / 10).await;
            }
            let txn = Txn {
                compares: Vec::new(),
                ops: vec![Op::Delete(CALLBACK.to_owned())],
                otherwise: Vec::new(),
            };
            let done = self.context.store.commit(self.fence.guard(txn));
            match timeout(LIMIT, done).await {
                // Under another leader it counts for nothing.
                Ok(Ok(Outcome::Committed(_) | Outcome::Conflict(_))) => return,
                Ok(Err(error)) => trouble = error.to_string(),
                Err(_) => trouble = "no answer in time".to_owned(),
            }
        }
        tracing::warn!(
            trouble,
            "the token of the callback's run can't be taken back; it counts until the next run"
        );
    }
}
