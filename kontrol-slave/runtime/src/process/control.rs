//! What a process and the guard of its program say to each other, over a socket that is the guard's standard input.
//!
//! To the guard, lines; the end of the stream means that the process is gone:
//!
//! ```text
//! environment <bytes>      then as many bytes: NAME=value with a NUL behind each; the program gets these and no others
//! input <bytes>            then as many bytes: the program's standard input
//! until never              nothing ends the program but itself
//! until <soft> <hard>      SIGTERM at soft, SIGKILL at hard: milliseconds of CLOCK_BOOTTIME; the first one starts it
//! stop                     end the program now
//! ```
//!
//! From the guard, lines:
//!
//! ```text
//! pid <pid>                the program's main process, and its process group
//! left <name>...           what the program left running, which is killed now; a space in a name is written as _
//! not-started <reason>
//! <who ended it> exited <code> | <who ended it> killed <signal> | <who ended it> not-run -1
//! ```
//!
//! CLOCK_BOOTTIME is one clock for both processes, and goes on while the machine sleeps, as leases do.

use rustix::time::{ClockId, clock_gettime};
use std::{fmt, str::FromStr};
use tokio::time::Instant;

/// How the line begins that names what a program left behind.
pub(super) const LEFT: &str = "left ";

/// Milliseconds of CLOCK_BOOTTIME.
pub(super) fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1000 + part(now.tv_nsec) / 1_000_000
}

/// Until when the program may run, for the guard's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// As long as it likes.
    Forever,
    /// Until these times, in milliseconds of CLOCK_BOOTTIME.
    Until {
        /// When it gets SIGTERM.
        soft: u64,
        /// When it gets SIGKILL.
        hard: u64,
    },
}

impl Lease {
    /// SIGTERM and SIGKILL at these moments.
    pub fn until(soft: Instant, hard: Instant) -> Self {
        // In this order: a pause in between makes the deadlines earlier, never later.
        let boottime = boottime_ms();
        Self::at(soft, hard, boottime, Instant::now())
    }

    fn at(soft: Instant, hard: Instant, boottime: u64, now: Instant) -> Self {
        let convert = |deadline: Instant| {
            let left = deadline.saturating_duration_since(now).as_millis();
            boottime.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
        };
        Self::Until {
            soft: convert(soft),
            hard: convert(hard),
        }
    }
}

/// What the guard is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// How long the program may run. The first one starts it.
    Until(Lease),
    /// End the program now.
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
pub enum Cause {
    /// It ended by itself.
    Itself,
    /// The guard was told to stop.
    Stop,
    /// Its time was over.
    Lease,
    /// The process that it ran for is gone.
    ParentGone,
    /// The guard got a signal that asks it to end.
    Signal,
}

impl Cause {
    const ALL: [(Self, &str); 5] = [
        (Self::Itself, "itself"),
        (Self::Stop, "stop"),
        (Self::Lease, "lease"),
        (Self::ParentGone, "parent-gone"),
        (Self::Signal, "signal"),
    ];
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Its end came before its start.
    NotRun,
}

impl Status {
    /// As a shell would tell it.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
            Self::NotRun => -1,
        }
    }
}

/// The last word of the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Why the program was not started.
    NotStarted(String),
    /// Who ended it, and how.
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
        let seconds = |seconds| now + Duration::from_secs(seconds);
        for (at, soft, hard) in [
            (now, 53_000, 54_000),
            (seconds(1), 52_000, 53_000),
            (seconds(9), 50_000, 50_000),
        ] {
            let lease = Lease::at(seconds(3), seconds(4), 50_000, at);
            assert_eq!(lease, Lease::Until { soft, hard });
        }
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
