//! Waiting for a condition, with a deadline and a last observation to tell of.

use anyhow::Result;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Looks until the probe succeeds. Past the deadline it panics, telling what was waited for and what was seen last.
pub async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> T {
    let end = Instant::now() + deadline;
    let mut last = String::from("nothing yet");
    loop {
        let look = Instant::now();
        match timeout(end.saturating_duration_since(look), probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => panic!(
                "no {what} within {deadline:?}; the last look was not over after {:?}; before it: {last}",
                look.elapsed()
            ),
        }
        if Instant::now() >= end {
            panic!("no {what} within {deadline:?}; last seen: {last}");
        }
        sleep(POLL).await;
    }
}

/// Looks for a whole time and panics as soon as the probe fails: for what must not happen.
pub async fn throughout(time: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<()>) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(error) = probe().await {
            panic!("{what} did not hold after {:?}: {error:#}", start.elapsed());
        }
        sleep(POLL * 4).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[tokio::test]
    async fn a_condition_that_comes_true_ends_the_wait() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "third look", async || {
            looks += 1;
            ensure!(looks == 3);
            Ok(looks)
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "no spring within 100ms; last seen: winter")]
    async fn a_deadline_tells_what_was_seen_last() {
        eventually(Duration::from_millis(100), "spring", async || {
            anyhow::bail!("winter") as Result<()>
        })
        .await;
    }

    #[tokio::test]
    #[should_panic(expected = "the last look was not over")]
    async fn a_probe_that_hangs_does_not_outlast_the_deadline() {
        eventually(Duration::from_millis(100), "answer", async || {
            std::future::pending::<Result<()>>().await
        })
        .await;
    }
}
