//! Full-jitter exponential back-off (AWS Architecture Blog, "Exponential Backoff And Jitter"): a random delay below a
//! bound that doubles with each failure, so that many who fail together don't come back together.

use std::time::Duration;

/// Delays between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays below `base` at first, never above `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            failures: 0,
        }
    }

    /// The delay after one more failure.
    pub fn failed(&mut self) -> Duration {
        let bound = self
            .base
            .saturating_mul(1 << self.failures.min(16))
            .min(self.cap);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::random_range(0.0..=1.0))
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
