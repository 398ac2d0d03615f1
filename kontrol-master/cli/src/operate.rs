//! The operator's hand: `preview`, `run`, `hold`, `resume`, `evict` and `release`.
//!
//! All but `preview` change something, so that each is asked of a second master only when the first certainly did not do
//! it. What others wrote (a reason, who they are) is shown without control characters.

pub(super) mod evict;
pub(super) mod hold;
pub(super) mod preview;
pub(super) mod release;
pub(super) mod run;
pub(super) mod words;
