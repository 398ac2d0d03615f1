//! What is deployed, started for real: packages and units on a small machine with systemd; and what Kubernetes is given.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod kubernetes;
mod systemd;
