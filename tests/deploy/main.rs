//! The stories of `deploy/examples`, run for real: one module for each.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod healing;
