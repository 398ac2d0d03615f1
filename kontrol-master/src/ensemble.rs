//! What is done with the truth: keepalives are taken in, and the leader expires the silent and runs the callback.

pub mod callback;
pub mod explain;
pub mod keepalive;
pub mod operate;
pub mod preview;
pub mod state;
pub mod term;
