//! The examples of `deploy/`, run for real: each story with the programs that it is about, while things are killed.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod alerting;
mod configuration;
mod guide;
