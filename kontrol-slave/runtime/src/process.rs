//! Programs of others, run so that nothing of them outlives this process: by actions on a slave, and by the callback on a
//! master.
//!
//! ```text
//! this process ──control socket──▶ guard ──▶ shim = exec ▶ the program      stdin: input, or nothing
//!    ▲                              │ polls the socket, its children, a clock     stdout, stderr ──▶ this process
//!    └──────── pid, report ─────────┘
//! ```
//!
//! What always holds, `kill -9` and SIGSTOP of this process included: when the guard has ended, so has everything that the
//! program started; and the program has ended at the time that the guard was last told. The guard is a process of its own
//! because one that is stopped cannot end anything. It kills at that time, from its own clock, and when the control socket
//! closes. A guard that does not, as when somebody stopped it, is killed.
//!
//! A guard that is killed itself takes the program's main process along (PR_SET_PDEATHSIG), which is why the shim forbids
//! the program to gain privileges: a set-user-ID program could be killed neither way. What else it leaves behind this
//! process kills, see [`reaper`], unless it is PID 1 or is killed as well: then a program that left its process group, as
//! daemons do, lives on. Only a program that runs as the same user, or runs the host out of memory, can bring that about.
//!
//! Guard and shim are hidden subcommands of both programs, see [`helper`].

mod control;
mod guard;
mod guarded;
mod inheritance;
pub mod reaper;
mod shim;
mod user;

pub use control::{Cause, Lease, Order, Report, Status};
pub use guarded::{End, Guarded, Pipes, Spec};
pub use inheritance::{raise_open_files, start_clean};
pub use shim::NOT_STARTED_FILE;
pub use user::{User, UserError};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    process::ExitCode,
};

/// Where programs are looked for when this one has no PATH itself.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The path by which a program runs its own executable again, even one that was replaced on disk meanwhile.
pub const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// What the name of a run directory begins with: the guard of a process that is gone removes nothing else.
pub const DIRECTORY_PREFIX: &str = "kontrol-run-";
/// The file in the run directory that becomes the program's standard input.
pub const INPUT_FILE: &str = "input.json";

/// Stands for an argument of a helper that is not given.
const NONE: &str = "-";

/// The guard or the shim, if that is what this process was started as. Call it before anything else, with one thread.
pub fn helper() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let main = match arguments.next().as_deref().and_then(OsStr::to_str)? {
        guard::NAME => guard::main,
        shim::NAME => shim::main,
        _ => return None,
    };
    Some(match start_clean() {
        Ok(()) => main(&mut arguments),
        Err(_) => ExitCode::FAILURE,
    })
}

/// Keeps what runs as the same user, programs of others among it, from reading this process: its variables, which may hold
/// secrets, and its memory. It also leaves no core dumps. See PR_SET_DUMPABLE in prctl(2).
pub fn keep_private() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// An argument that may be left out.
fn given(argument: Option<OsString>) -> Option<OsString> {
    argument.filter(|argument| argument != NONE)
}
