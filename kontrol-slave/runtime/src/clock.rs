//! The clock that leases are judged by: CLOCK_BOOTTIME, which goes on while the machine is suspended, as the store's
//! leases do. The guard of the callback goes by the same clock, so that both stop at the same moment.
//!
//! The runtime's timers stand still while the machine sleeps. They decide when to look again, and never whether a lease
//! is over.

use rustix::time::{ClockId, clock_gettime};
use std::{
    ops::{Add, Sub},
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep};

/// The longest sleep before another look: how late the end of a suspension is noticed.
const LOOK: Duration = Duration::from_millis(200);

/// A moment of a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Milliseconds since the machine was started, as the guard is told them.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long after another moment this one is; zero when it is before.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// A clock that counts the sleep of the machine. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    Boottime,
    /// The runtime's clock, which a test may pause, and how long the machine was suspended beside it.
    #[cfg(any(test, feature = "testing"))]
    Virtual(std::sync::Arc<Virtual>),
}

#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
struct Virtual {
    start: tokio::time::Instant,
    suspended: std::sync::Mutex<Duration>,
}

#[cfg(any(test, feature = "testing"))]
fn lock(suspended: &std::sync::Mutex<Duration>) -> std::sync::MutexGuard<'_, Duration> {
    let locked = suspended.lock();
    locked.unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Clock {
    /// The moment that is now.
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::Boottime => {
                let now = clock_gettime(ClockId::Boottime);
                let part = |value: i64| u64::try_from(value).unwrap_or(0);
                Moment(
                    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec)),
                )
            }
            #[cfg(any(test, feature = "testing"))]
            Source::Virtual(clock) => {
                // A minute at least, so that moments before the start of a test are told apart.
                let suspended = Duration::from_secs(60) + *lock(&clock.suspended);
                Moment(clock.start.elapsed() + suspended)
            }
        }
    }

    /// Sleeps until a moment, with the machine or without. Cancel safe.
    pub async fn sleep_until(&self, moment: Moment) {
        loop {
            let left = moment.saturating_since(self.now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }

    /// A clock that follows the runtime's, paused or not.
    #[cfg(any(test, feature = "testing"))]
    pub fn of_runtime() -> Self {
        Self(Source::Virtual(std::sync::Arc::new(Virtual {
            start: tokio::time::Instant::now(),
            suspended: std::sync::Mutex::default(),
        })))
    }

    /// The machine was suspended for so long.
    #[cfg(any(test, feature = "testing"))]
    pub fn suspend(&self, length: Duration) {
        match &self.0 {
            Source::Boottime => unreachable!("only a test's clock is suspended"),
            Source::Virtual(clock) => *lock(&clock.suspended) += length,
        }
    }
}

/// A moment of the runtime's clock as wall-clock time, for display.
pub fn wall(at: Instant) -> SystemTime {
    let (now, wall) = (Instant::now(), SystemTime::now());
    if at > now {
        wall + (at - now)
    } else {
        wall - (now - at)
    }
}

/// Wall-clock time in milliseconds since 1970, for display.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_suspension_ends_a_sleep_at_the_next_look() {
        let clock = Clock::of_runtime();
        let (start, moment) = (Instant::now(), clock.now() + Duration::from_secs(10));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(moment).await }
        });
        sleep(Duration::from_secs(1)).await;
        clock.suspend(Duration::from_secs(60));
        sleeper.await.unwrap();
        assert!(start.elapsed() <= Duration::from_secs(1) + LOOK);
        clock.sleep_until(moment).await;
    }

    #[test]
    fn the_clock_counts_the_sleep_of_the_machine() {
        let boottime = || clock_gettime(ClockId::Boottime);
        let (before, now, after) = (boottime(), Clock::default().now(), boottime());
        let millis = |time: rustix::time::Timespec| {
            u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap()
        };
        assert!((millis(before)..=millis(after)).contains(&now.millis()));
    }

    /// Where the two clocks differ, as behind the sleep of a machine.
    #[test]
    fn the_clock_counts_the_sleep_of_a_machine_that_slept() {
        let slept = |program: &std::ffi::OsStr| {
            let mut command = std::process::Command::new("unshare");
            command.args(["--user", "--map-root-user", "--time", "--boottime", "86400"]);
            command.args(["--fork", "--"]).arg(program);
            command
        };
        if !slept("true".as_ref())
            .output()
            .is_ok_and(|output| output.status.success())
        {
            eprintln!("SKIPPED: this host makes no namespaces of time");
            return;
        }
        let test = "clock::tests::the_clock_counts_the_sleep_of_the_machine";
        let this = std::env::current_exe().unwrap();
        let output = slept(this.as_os_str())
            .args(["--exact", test])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }
}
