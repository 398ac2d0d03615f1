//! What a process inherits from whatever started it, and should not depend on: blocked and ignored signals, and low limits.
//!
//! Who starts programs passes on what it has itself, a service manager as well as a test script. So each process of ours
//! starts clean, and what it changed for itself it takes back in the programs of others: see [`restore`].
//!
//! A signal with a handler is neither ignored nor deadly here, and has its default again in the next program (execve(2)).
//! That is how signals are reset below, for setting a default takes unsafe code.

use nix::sys::signal::SigSet;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::{FORBIDDEN, SIGCHLD, SIGXFSZ},
    flag,
};
use std::{
    fs, io,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

/// The soft limit of open files that this process was started with, where it raised that.
static OPEN_FILES: OnceLock<u64> = OnceLock::new();

/// Makes this process independent of what it inherited. Call it before there is a second thread, in each process.
pub fn start_clean() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    // Ignored, the first would have the kernel reap the children, whose ends nobody would learn. The second kills whoever
    // writes beyond the limit of a file's size, instead of failing the write.
    for signal in [SIGCHLD, SIGXFSZ] {
        flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Lets this process open as many files as it may: the usual soft limit is far below what a master with its pods takes, and
/// stands for programs that use select(2).
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Some(soft) = limit.current
        && limit.current != limit.maximum
        && setrlimit(Resource::Nofile, raised).is_ok()
    {
        // A second call finds them equal.
        let _ = OPEN_FILES.set(soft);
    }
}

/// The soft limit of open files that programs of others are to have, if not that of this process.
pub(super) fn open_files() -> Option<u64> {
    OPEN_FILES.get().copied()
}

/// Takes back, for the program that this process is about to become, what was changed on the way to it, and what it need
/// not know of whoever started the first of us.
pub(super) fn restore(open_files: Option<u64>) -> io::Result<()> {
    if let Some(soft) = open_files {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = Some(maximum.map_or(soft, |maximum| soft.min(maximum)));
        setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for signal in ignored(&status) {
        if !FORBIDDEN.contains(&signal) {
            // Fails for those that the C library keeps for itself.
            let _ = flag::register(signal, Arc::new(AtomicBool::new(false)));
        }
    }
    Ok(())
}

/// The signals that a process ignores, from its `/proc/<pid>/status`. The kernel tells SIGPIPE too, which Rust ignores.
fn ignored(status: &str) -> Vec<i32> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let mask = mask.unwrap_or(0);
    (1..=64)
        .filter(|signal| mask >> (signal - 1) & 1 == 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001006\n"), [2, 3, 13]);
        assert_eq!(ignored("SigIgn:\t8000000000000001\n"), [1, 64]);
        for none in ["", "SigIgn:\tx", "SigIgn:\t0000000000000000"] {
            assert_eq!(ignored(none), [0; 0]);
        }
    }
}
