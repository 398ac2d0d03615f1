//! What both programs stand on: processes under a guard, supervised tasks, the log, files that are followed, this host's
//! addresses, the command line, and the one way to dial a master.
//!
//! What always holds:
//!
//! 1. Nothing that [`process`] starts outlives this process, however that ends.
//! 2. Every task is named, supervised and joined; one that ends early stops the process ([`supervise`]).
//! 3. Logging drops and counts; it never blocks ([`logging`]).
//! 4. Looks at files are bounded, in size and in number ([`folder`]).
//! 5. Nothing shows a token or a key, and what a connection needs of them is read when it is made ([`dial`]).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod backoff;
pub mod bytes;
pub mod cause;
pub mod clock;
pub mod command_line;
pub mod connection;
pub mod dial;
pub mod duration;
pub mod folder;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod host;
pub mod logging;
pub mod process;
pub mod service;
pub mod supervise;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
