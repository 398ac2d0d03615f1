//! Reports a pod to its masters: the `kontrol-slave` program, the same agent for masters that report too, and, as a library,
//! for any Rust service that reports itself.
//!
//! # In a Rust service
//!
//! ```
//! # use serde_json::json;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let masters = "http://127.0.0.1:8000";
//! # let masters = "http://127.0.0.1:1"; // there is none
//! let pod = kontrol_slave::Slave::builder(masters).app("shop").role("web").start()?;
//! pod.set_payload(json!({"load": 0.4}))?;
//! // ... what the service is there for ...
//! pod.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The pod is on the roster as soon as a master answers ([`Slave::ready`]), and leaves it with the last line.
//! [`SlaveBuilder`] has all else that can be said of it, and [`SlaveBuilder::handler`] answers the actions of masters: a service
//! does what `kontrol-master exec` asks of it without starting a process. `examples/service.rs` is one that runs. [`embed`]
//! says what the library leaves alone.
//!
//! # Inside
//!
//! ```text
//!   flags, environment ──▶ config ──▶ identity ─┐ watch                      ┌─▶ keepalive ── link ──▶ a master of tier 1
//!   downward-API folder ──▶ identity::podinfo ──┤                            │
//!                                               ├──▶ agent (nonce, status) ──┼─▶ keepalive ── link ──▶ a master of tier 2
//!   JSON file ──▶ payload ──────────────────────┘ watch                      ├─▶ ...
//!                                                                            │
//!   the same connections ──▶ action: a session for each tier ──▶ executor ◀──┘
//!                                                                   ├─▶ kontrol_runtime::process: guard ──▶ a command
//!   a Rust service ──▶ embed ──▶ identity, payload, agent             └─▶ in a Rust service: its handler
//! ```
//!
//! What always holds:
//!
//! 1. Each tier has its own loop; none waits for another, and none for files or names beyond a bound.
//! 2. When to send is decided in [`keepalive::schedule`], which reads no clock and draws no lots itself.
//! 3. The steps of one attempt together take less than the interval they serve.
//! 4. `down` is said within two seconds of the token's end, or three where commands run, whatever is unreachable.
//! 5. Wrong settings are told all at once, before anything is contacted.
//! 6. No keepalive is lost to what it says: what masters refuse is told once, and what they took before goes on.
//! 7. A pod whose address nobody gave is known by one that its masters' hosts can dial, and follows when it changes.
//! 8. A token or certificate that is replaced costs no keepalive: what is shown is read at each connection, and a master that
//!    does not know it any more is connected to again, at once.
//! 9. Actions never hold up a keepalive, and none runs twice; what they are bound by, [`action`] says.
//! 10. Embedded in a service it touches nothing of the process that it was not given: no signal, child, log or variable.
//!
//! For services: [`embed`], whose names are here as well. For masters: [`agent`] (mixed mode and chain), and
//! [`config::PodArgs`] with [`program::follow_pod`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod action;
pub mod agent;
pub mod config;
pub mod embed;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod identity;
pub mod keepalive;
pub mod masters;
pub mod payload;
pub mod program;

pub use action::handler::{
    ActionCommand, ActionOutput, ActionReply, ActionRequest, ActionStream, Refused,
};
pub use embed::{Ended, Slave, SlaveBuilder, StartError, WrongSetting};
pub use keepalive::TierStatus;
pub use payload::PayloadError;
