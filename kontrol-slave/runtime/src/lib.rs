//! What both programs stand on: processes under a guard, supervised tasks, the log, files that are followed, this host's
//! addresses, and the command line.
//!
//! What always holds:
//!
//! 1. Nothing that [`process`] starts outlives this process, however that ends.
//! 2. Every task is named, supervised and joined; one that ends early stops the process ([`supervise`]).
//! 3. Logging drops and counts; it never blocks ([`logging`]).
//! 4. Looks at files are bounded, in size and in number ([`folder`]).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod backoff;
pub mod cause;
pub mod clock;
pub mod command_line;
pub mod connection;
pub mod duration;
pub mod folder;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod host;
pub mod logging;
pub mod process;
pub mod supervise;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
