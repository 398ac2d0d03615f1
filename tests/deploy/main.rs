//! What is deployed, started for real: images and what is made of them. Where a machine lacks what it takes, a test says
//! SKIPPED.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod compose;
mod containers;
mod images;
