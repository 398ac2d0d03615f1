//! What is deployed, started for real: packages and units on a small machine with systemd, and the stories of
//! `deploy/examples`, each with the programs that it is about, while things are killed.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod alerting;
mod configuration;
mod guide;
mod healing;
mod systemd;
