//! The pure core of a master: what is decided, and on what. It awaits nothing, reads no clock, and knows neither the network
//! nor the store: time arrives as an argument, effects leave as return values. Instants are tokio's, so that tests with a
//! virtual clock reach in here as well.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod access;
pub mod contest;
pub mod damper;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod json;
pub mod kv;
pub mod limits;
pub mod liveness;
pub mod model;
pub mod plan;
pub mod rollout;
pub mod safeguard;
pub mod schedule;
pub mod settings;
pub mod strict;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod traffic;
pub mod view;
