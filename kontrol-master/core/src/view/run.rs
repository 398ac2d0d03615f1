//! The record of the callback's run: who may call back while it goes on. PURE.

use crate::access::tokens::TokenDigest;
use serde::{Deserialize, Serialize};

/// The JSON of `callback`: it is there while a run goes on that was given a token. A digest tells nobody the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackRecord {
    /// The epoch of the leader that runs it: under another leader the token counts for nothing.
    pub epoch: i64,
    /// The digest of its token, `sha256:<hex>`.
    pub token: TokenDigest,
}

impl CallbackRecord {
    /// The record as the store has it.
    pub fn encode(&self) -> Vec<u8> {
        super::to_json(self)
    }
}
