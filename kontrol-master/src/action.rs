//! Actions: commands that anyone dispatches to any master, run by the slaves, whichever master they are attached to.
//!
//! ```text
//! Dispatch ──▶ dispatch (one task) ──▶ switchboard ─┬─▶ session ──▶ slave attached here
//!                │  rollout            (one task)   └─▶ peer link ──▶ switchboard of another master ──▶ its slave
//!                └─▶ history: actions/<id> in the store
//! ```
//!
//! The master that took the dispatch carries the action: it alone decides who starts and how each target ended. Where
//! slaves are attached is in the memory of the masters, who tell each other over one stream for each pair; nothing of it
//! is in the store. Output never enters the store either: a slave sends no more than the carrier has given it credit for.
//! When the carrier dies, the leader adopts the action from its record (`custody`). Who carries is decided in the store: the
//! record names its carrier's candidacy, and is taken over only where that is gone. So a carrier whose lease surely stands
//! tells ends at once, and one that can't be sure tells none (`dispatch::standing`).

pub mod attachment;
pub mod cancel;
pub mod custody;
pub mod dispatch;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod history;
pub mod outlet;
pub mod peers;
mod request;
pub mod session;
pub mod switchboard;
mod targets;
pub(crate) mod wire;
