//! What is deployed, started for real: packages and units on a small machine with systemd, and the stories of
//! `deploy/examples`, one module for each.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod healing;
mod systemd;
