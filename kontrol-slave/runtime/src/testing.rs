//! What tests of processes wait for and look at, here and in the crates above, and
//! an authority that signs certificates.

mod authority;

pub use authority::{Authority, Pair, write};
/// How the certificates of [`Authority`] can be made different.
pub use rcgen;

use std::{fmt::Display, fs, time::Duration};
use tokio::time::{Instant, sleep};

/// More than anything takes, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until it is so.
///
/// # Panics
/// When it is not so for half a minute.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in {DEADLINE:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs; a dead one that nobody reaped doesn't.
pub fn alive(pid: impl Display) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(None | Some('Z' | 'X')))
}
