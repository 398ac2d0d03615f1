//! What master and guard say to each other.
//!
//! Master to guard, lines on the guard's standard input; its end means that the master is gone:
//!
//! ```text
//! until never              there is no lease that could end
//! until <soft> <hard>      SIGTERM at soft, SIGKILL at hard: milliseconds of CLOCK_BOOTTIME
//! stop                     end the program now
//! ```
//!
//! Guard to master, one line in the report file:
//!
//! ```text
//! not-started <reason>
//! <who ended it> exited <code> | <who ended it> killed <signal> | <who ended it> not-run -1
//! ```
//!
//! CLOCK_BOOTTIME is one clock for both processes, and goes on while the machine sleeps, as leases do.

use super::Validity;
use rustix::time::{ClockId, clock_gettime};
use std::{fmt, str::FromStr};
use tokio::time::Instant;

/// The file in the run directory with the guard's report.
pub(super) const REPORT_FILE: &str = "report";
/// The file with the reason why the program was not executed.
pub(super) const NOT_STARTED_FILE: &str = "not-started";
/// The file with the pid of the program, which is the id of its process group too.
pub(super) const PID_FILE: &str = "pid";
/// Every file in the run directory that is not a document.
pub(super) const FILES: [&str; 3] = [REPORT_FILE, NOT_STARTED_FILE, PID_FILE];

/// Milliseconds of CLOCK_BOOTTIME.
pub(super) fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1000 + part(now.tv_nsec) / 1_000_000
}

/// Until when the program may run, for the guard's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    Forever,
    Until { soft: u64, hard: u64 },
}

impl Lease {
    /// What the validity means now.
    pub(super) fn new(validity: Validity) -> Self {
        // In this order: a pause in between makes the deadlines earlier, never later.
        let boottime = boottime_ms();
        Self::at(validity, boottime, Instant::now())
    }

    fn at(validity: Validity, boottime: u64, now: Instant) -> Self {
        let convert = |deadline: Instant| {
            let left = deadline.saturating_duration_since(now).as_millis();
            boottime.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
        };
        match validity {
            Validity::Forever => Self::Forever,
            Validity::Until { soft, hard } => Self::Until {
                soft: convert(soft),
                hard: convert(hard),
            },
        }
    }
}

/// What the master tells the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Until(Lease),
    Stop,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Until(Lease::Forever) => f.write_str("until never"),
            Self::Until(Lease::Until { soft, hard }) => write!(f, "until {soft} {hard}"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let number = |word: &str| word.parse::<u64>().map_err(|_| ());
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["until", "never"] => Ok(Self::Until(Lease::Forever)),
            ["until", soft, hard] => Ok(Self::Until(Lease::Until {
                soft: number(soft)?,
                hard: number(hard)?,
            })),
            ["stop"] => Ok(Self::Stop),
            _ => Err(()),
        }
    }
}

/// Who ended the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It ended by itself.
    Itself,
    /// The master said stop.
    Stop,
    /// The lease was not confirmed in time.
    Lease,
    /// The master is gone.
    MasterGone,
    /// The guard got a signal that asks it to end.
    Signal,
}

impl Cause {
    const ALL: [(Self, &str); 5] = [
        (Self::Itself, "itself"),
        (Self::Stop, "stop"),
        (Self::Lease, "lease"),
        (Self::MasterGone, "master-gone"),
        (Self::Signal, "signal"),
    ];
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Exited(i32),
    Killed(i32),
    /// Its end came before its start.
    NotRun,
}

impl Status {
    /// As a shell would tell it.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
            Self::NotRun => -1,
        }
    }
}

/// What the guard leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    NotStarted(String),
    Ended(Cause, Status),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(reason) => write!(f, "not-started {}", reason.replace('\n', " ")),
            Self::Ended(cause, status) => {
                let name = Cause::ALL.iter().find(|(known, _)| known == cause);
                f.write_str(name.map_or("", |(_, name)| name))?;
                match status {
                    Status::Exited(code) => write!(f, " exited {code}"),
                    Status::Killed(signal) => write!(f, " killed {signal}"),
                    Status::NotRun => f.write_str(" not-run -1"),
                }
            }
        }
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        if let Some(reason) = line.strip_prefix("not-started ") {
            return Ok(Self::NotStarted(reason.to_owned()));
        }
        let words: Vec<_> = line.split(' ').collect();
        let &[cause, how, number] = words.as_slice() else {
            return Err(());
        };
        let known = Cause::ALL.iter().find(|(_, name)| *name == cause);
        let (cause, _) = known.ok_or(())?;
        let number = number.parse().map_err(|_| ())?;
        let status = match how {
            "exited" => Status::Exited(number),
            "killed" => Status::Killed(number),
            "not-run" => Status::NotRun,
            _ => return Err(()),
        };
        Ok(Self::Ended(*cause, status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_pause_between_the_two_clocks_makes_deadlines_earlier() {
        let now = Instant::now();
        let validity = Validity::Until {
            soft: now + Duration::from_secs(3),
            hard: now + Duration::from_secs(4),
        };
        let (soft, hard) = (53_000, 54_000);
        assert_eq!(
            Lease::at(validity, 50_000, now),
            Lease::Until { soft, hard }
        );
        let paused = now + Duration::from_secs(1);
        let (soft, hard) = (52_000, 53_000);
        assert_eq!(
            Lease::at(validity, 50_000, paused),
            Lease::Until { soft, hard }
        );
        let overdue = now + Duration::from_secs(9);
        let (soft, hard) = (50_000, 50_000);
        assert_eq!(
            Lease::at(validity, 50_000, overdue),
            Lease::Until { soft, hard }
        );
    }

    #[test]
    fn an_unknown_line_is_no_order() {
        for line in [
            "",
            "until",
            "until 1",
            "until 1 x",
            "until -1 2",
            "stop now",
            "until 1 2 3",
        ] {
            assert_eq!(line.parse::<Order>(), Err(()), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn orders_read_back(soft: u64, hard: u64) {
            for order in [Order::Stop, Order::Until(Lease::Forever), Order::Until(Lease::Until { soft, hard })] {
                prop_assert_eq!(order.to_string().parse(), Ok(order));
            }
        }

        #[test]
        fn reports_read_back(reason in "[a-z :/]*", number in 0..256) {
            let refused = Report::NotStarted(reason);
            prop_assert_eq!(refused.to_string().parse(), Ok(refused));
            for (cause, _) in Cause::ALL {
                for status in [Status::Exited(number), Status::Killed(number), Status::NotRun] {
                    let report = Report::Ended(cause, status);
                    prop_assert_eq!(report.to_string().parse(), Ok(report));
                }
            }
        }
    }
}
