//! The harness of the end-to-end tests: real etcd, real masters, real slaves, each a process of its own.
//!
//! ```text
//! test ── Cluster ── Master (process) x N ─┐
//!      ├─ Slave (process)                  ├── Etcd (process) x 1 or 3
//!      ├─ Fleet (pods in this process) ────┘
//!      └─ Recorder (callback script + its log) ── history::violations
//! ```
//!
//! Written against what users see (protobuf, HTTP, flags, etcd keys), never against the programs' insides. What holds:
//! whatever a test starts is killed by pid when it ends, panics included; what a process wrote is shown when its test
//! fails; nothing waits for a time to pass where a condition can be waited for.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of the harness is a failed test"
)]

pub mod action;
pub mod client;
pub mod cluster;
pub mod crew;
pub mod etcd;
pub mod fault;
pub mod fleet;
pub mod history;
pub mod house;
pub mod keeper;
pub mod load;
pub mod machine;
pub mod net;
pub mod node;
pub mod pod;
pub mod ports;
pub mod process;
pub mod script;
pub mod storm;
pub mod wait;

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Says aloud that this test is skipped, and why.
pub fn skip(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    // Straight to the descriptor: the test runner hides what a test that passes prints.
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "SKIPPED {test}: {why}").unwrap();
}

/// What a slow machine may add to a bound of the contract: scheduling, one poll, one round trip.
pub const SLACK: Duration = Duration::from_millis(1500);

/// A deadline for what should happen soon, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

/// How many shares of the machine there are: a small test takes one, a heavy one three.
const ALL_SHARES: u32 = 6;
static SHARES: Semaphore = Semaphore::const_new(ALL_SHARES as usize);

/// Waits until the machine has room for a test with a few processes. Hold the permit until the test ends.
pub async fn small() -> SemaphorePermit<'static> {
    SHARES.acquire().await.unwrap()
}

/// Waits until the machine has room for a test that loads it: several masters under faults, or thousands of pods.
pub async fn heavy() -> SemaphorePermit<'static> {
    SHARES.acquire_many(3).await.unwrap()
}

/// Waits until the machine is free for a test that fills it: hundreds of processes. Hold the permit until the test ends.
pub async fn whole() -> SemaphorePermit<'static> {
    SHARES.acquire_many(ALL_SHARES).await.unwrap()
}
