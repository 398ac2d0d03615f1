//! Whether a connection has requests under way: HTTP/2 itself never ends one that has none.

use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// How many requests a connection has under way. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity(watch::Sender<usize>);

impl Default for Activity {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Activity {
    /// One more, until what this returns is dropped.
    pub(super) fn begin(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(self.clone())
    }

    /// Waits until there was none for this long.
    pub(super) async fn idle(&self, limit: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // The sender is `self`, so that neither fails.
            if count.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(limit) => return,
                begun = count.changed() => if begun.is_err() { return },
            }
        }
    }
}

/// A request under way: until the body of its response is dropped.
#[derive(Debug)]
pub(super) struct One(Activity);

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, advance};

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_nothing_was_under_way_for_the_time() {
        let limit = Duration::from_secs(10);
        let activity = Activity::default();
        let one = activity.begin();
        let waiting = activity.clone();
        let idle = tokio::spawn(async move { waiting.idle(limit).await });
        tokio::task::yield_now().await;
        advance(Duration::from_secs(100)).await;
        assert!(!idle.is_finished());
        drop(one);
        tokio::task::yield_now().await;
        advance(Duration::from_secs(9)).await;
        drop(activity.begin());
        let again = Instant::now();
        idle.await.unwrap();
        assert_eq!(again.elapsed(), limit);
    }
}
