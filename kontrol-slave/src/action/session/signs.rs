//! How often a quiet channel shows that it lives. PURE: time comes as an argument.
//!
//! Proxies cut what is quiet for longer than their time-out, and count neither HTTP/2's own pings nor what passes beside the
//! channel. What that time-out is nobody tells the slave; but a channel that is cut again and again after the same silence
//! does.

use std::time::Duration;

/// How often, unless channels are cut sooner: the time-outs that proxies have by default are half a minute and more.
const EVERY: Duration = Duration::from_secs(20);
/// The shortest silence that is taken for a time-out. What breaks sooner is broken.
const SHORTEST: Duration = Duration::from_millis(500);
/// How many channels in a row make it no accident.
const ALIKE: u32 = 3;

/// How often a channel shows life, as far as that was learned.
#[derive(Debug)]
pub(super) struct Signs {
    every: Duration,
    /// After what silence the last channel was cut, and how many in a row after about that.
    cut: (Duration, u32),
}

impl Signs {
    pub(super) fn new() -> Self {
        Self {
            every: EVERY,
            cut: (Duration::ZERO, 0),
        }
    }

    /// How long a channel may be quiet.
    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// A channel was cut after such a silence; true when that changed how often it shows life.
    pub(super) fn cut(&mut self, quiet: Duration) -> bool {
        let (before, count) = self.cut;
        let is_alike = quiet.abs_diff(before) <= quiet.max(before) / 4;
        self.cut = (quiet, if is_alike { count + 1 } else { 1 });
        let every = quiet / 2;
        let is_learned = self.cut.1 >= ALIKE && quiet >= SHORTEST && every < self.every;
        if is_learned {
            self.every = every;
        }
        is_learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(millis: &[u64]) -> Duration {
        let mut signs = Signs::new();
        for millis in millis {
            signs.cut(Duration::from_millis(*millis));
        }
        signs.every()
    }

    #[test]
    fn cuts_after_the_same_silence_are_learned_and_accidents_are_not() {
        for (cuts, every) in [
            (&[][..], EVERY),
            (&[2000, 2100], EVERY),
            (&[2000, 2100, 1900], Duration::from_millis(950)),
            (&[2000, 9000, 2000, 2000], EVERY),
            (&[9000, 2000, 2000, 2000], Duration::from_secs(1)),
            (&[30_000, 30_000, 30_000], Duration::from_secs(15)),
            (&[60_000, 60_000, 60_000], EVERY),
            // A master that breaks at once.
            (&[3, 3, 3, 3], EVERY),
            (&[0, 0, 0, 0], EVERY),
        ] {
            assert_eq!(after(cuts), every, "{cuts:?}");
        }
    }

    #[test]
    fn what_was_learned_is_not_forgotten() {
        let learned = after(&[1000, 1000, 1000]);
        assert_eq!(after(&[1000, 1000, 1000, 8000, 8000, 8000]), learned);
    }
}
