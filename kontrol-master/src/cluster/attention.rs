//! Whether this process stood still lately, or its machine slept. Peers that it did not answer meanwhile have closed
//! their connections and will be back, so that a closed connection is no sign of death.

use kontrol_core::liveness::TICK;
use kontrol_runtime::clock::Clock;
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// A pause as short as this makes no peer lose its patience.
const NEGLIGIBLE: Duration = Duration::from_millis(1500);

/// Tells whether this process stood still. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wakefulness(watch::Receiver<Option<Instant>>);

/// The task behind [`Wakefulness`].
#[derive(Debug)]
pub struct WakefulnessTask {
    ended: watch::Sender<Option<Instant>>,
    clock: Clock,
}

impl Wakefulness {
    /// A handle and its task.
    pub fn new() -> (Self, WakefulnessTask) {
        Self::by(Clock::default())
    }

    fn by(clock: Clock) -> (Self, WakefulnessTask) {
        let (ended, receiver) = watch::channel(None);
        (Self(receiver), WakefulnessTask { ended, clock })
    }

    /// Whether a pause of this process ended after that moment.
    pub fn stood_still_since(&self, moment: Instant) -> bool {
        self.0.borrow().is_some_and(|end| end >= moment)
    }
}

impl WakefulnessTask {
    /// Pays attention until the token is cancelled.
    pub async fn run(self, token: CancellationToken) {
        let mut last = self.clock.now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = self.clock.now();
            if now.saturating_since(last + TICK) >= NEGLIGIBLE {
                self.ended.send_replace(Some(Instant::now()));
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn the_sleep_of_the_machine_is_a_pause_too() {
        let clock = Clock::of_runtime();
        let (wakefulness, task) = Wakefulness::by(clock.clone());
        let token = CancellationToken::new();
        let task = tokio::spawn(task.run(token.clone()));
        let start = Instant::now();
        sleep(Duration::from_secs(2)).await;
        clock.suspend(NEGLIGIBLE / 2);
        sleep(Duration::from_secs(2)).await;
        assert!(!wakefulness.stood_still_since(start));
        clock.suspend(NEGLIGIBLE);
        sleep(2 * TICK).await;
        assert!(wakefulness.stood_still_since(start));
        assert!(!wakefulness.stood_still_since(Instant::now()));
        token.cancel();
        task.await.unwrap();
    }
}
