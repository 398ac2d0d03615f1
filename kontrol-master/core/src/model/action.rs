//! An action: its id, what becomes of it, and how the store keeps it. PURE.
//!
//! `actions/<id>` holds a [`Record`] as JSON: a [`Head`], which every master keeps in memory, and the results of the
//! targets, which are read when somebody asks.

mod id;
mod record;
mod result;

pub use id::{ActionId, NotAnId};
pub use record::{CommandRecord, Head, MAX_RECORD_BYTES, Record, ResultRecord, Selection, State};
pub use result::{Counts, Ended, Outcome};
