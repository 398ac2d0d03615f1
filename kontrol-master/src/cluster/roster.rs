//! The roster: this master's own copy of the ensemble, kept in step with the store by one task.
//!
//! Readers take an immutable [`View`](kontrol_core::view::View) for the price of a pointer; every view is the ensemble at exactly one revision,
//! so that all masters that are at one revision compute one digest. Changes go out in batches, one for each batch of
//! the store, to whoever follows ([`Feed::follow`]); who can't keep up is told so and cut off.

mod complaint;
pub mod feed;
pub mod gauges;
pub mod history;
pub mod mirror;

pub use feed::{Feed, Followed, Lagged, Notice, Notices, Place};
pub use history::History;
pub use mirror::{Changes, Mirror, Roster};
