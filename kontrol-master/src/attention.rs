//! Whether this process stood still lately. Peers that it did not answer meanwhile have closed their connections, and will
//! be back: their going is no sign of death.

use crate::liveness::{Attention, TICK};
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
pub struct WakefulnessTask(watch::Sender<Option<Instant>>);

impl Wakefulness {
    /// A handle and its task.
    pub fn new() -> (Self, WakefulnessTask) {
        let (sender, receiver) = watch::channel(None);
        (Self(receiver), WakefulnessTask(sender))
    }

    /// Whether a pause of this process ended after that moment.
    pub fn stood_still_since(&self, moment: Instant) -> bool {
        self.0.borrow().is_some_and(|end| end >= moment)
    }
}

impl WakefulnessTask {
    /// Pays attention until the token is cancelled.
    pub async fn run(self, token: CancellationToken) {
        let mut attention = Attention::new(Instant::now());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Some(blind) = attention.tick(Instant::now())
                && blind.length() >= NEGLIGIBLE
            {
                self.0.send_replace(Some(blind.end()));
            }
        }
    }
}
