//! The last step before the user's program: sets what only the process itself can set, and becomes the program.
//!
//! The hidden subcommand `shim <pid of the guard> <run directory> <program> [argument...]`. The guard gave it a process
//! group of its own, its standard streams, and the environment of the program.

use super::{control::NOT_STARTED_FILE, program::explain};
use rustix::{
    process::{Signal, getppid, set_parent_process_death_signal},
    thread::set_no_new_privs,
};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The exit code of a program that was not executed, as shells have it.
const NOT_EXECUTED: u8 = 126;

/// The process of the shim. Returns only when the program could not be executed.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(guard), Some(directory), Some(program)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return ExitCode::from(2);
    };
    let program = PathBuf::from(program);
    let reason = match prepare(&guard) {
        Ok(()) => {
            // Resets the signal mask and SIGPIPE as well.
            let error = Command::new(&program).args(arguments).exec();
            explain(&program, &error)
        }
        Err(error) => format!("prepare the process: {error}"),
    };
    // Without the file the exit code still tells.
    let _ = fs::write(Path::new(&directory).join(NOT_STARTED_FILE), reason);
    ExitCode::from(NOT_EXECUTED)
}

fn prepare(guard: &OsString) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The guard may have died just before that.
    let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if parent.as_deref() != guard.to_str() {
        return Err(io::Error::other("the guard is gone"));
    }
    // With other privileges the program would be out of the guard's reach, and lose the death signal.
    set_no_new_privs(true)?;
    // Whatever started the master may have left descriptors open in it.
    close_fds::set_fds_cloexec(3, &[]);
    Ok(())
}
