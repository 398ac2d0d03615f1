//! What is deployed, started for real: images and what is made of them, packages and units on a small machine with systemd,
//! what Kubernetes is given, and the stories of `deploy/examples`, each with the programs that it is about, while things
//! are killed. Where a machine lacks what it takes, a test says SKIPPED.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod alerting;
mod compose;
mod configuration;
mod containers;
mod guide;
mod healing;
mod images;
mod kubernetes;
mod release;
#[path = "../secured.rs"]
mod secured;
mod systemd;
