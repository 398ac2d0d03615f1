//! What must hold while things break: a tier with reporting pods and a recording callback, a fault, and then the
//! question whether anybody was lost, any seq changed, any callback overlapped or ran again for nothing.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod abuse;
mod action;
mod chaos;
mod detour;
mod held;
mod leader;
mod load;
mod restart;
mod rotation;
mod safeguard;
mod scene;
#[path = "../secured.rs"]
mod secured;
mod store;
mod storm;
mod upgrade;
