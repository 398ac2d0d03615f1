//! The last step before the program: sets what only the process itself can set, and becomes the program.
//!
//! The hidden subcommand `shim <pid of the guard> <run directory or -> <user or -> <program> [argument...]`. The guard gave
//! it a process group of its own, its standard streams, and the environment of the program.

use super::{given, user::Identity};
use rustix::{
    io::Errno,
    process::{Signal, getppid, set_parent_process_death_signal},
    thread::set_no_new_privs,
};
use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The hidden subcommand.
pub(super) const NAME: &str = "shim";
/// The file in the run directory with the reason why the program was not executed.
pub const NOT_STARTED_FILE: &str = "not-started";
/// The exit codes of a program that was not executed, or is not there, as shells have them.
const NOT_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The process of the shim. Returns only when the program could not be executed.
pub(super) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(guard), Some(directory), Some(user), Some(program)) = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    ) else {
        return ExitCode::from(2);
    };
    let program = PathBuf::from(program);
    let (code, reason) = match prepare(&guard, given(Some(user)).as_deref()) {
        Ok(()) => {
            // Resets the signal mask and SIGPIPE as well.
            let error = Command::new(&program).args(arguments).exec();
            let found = error.kind() != io::ErrorKind::NotFound;
            let code = if found { NOT_EXECUTED } else { NOT_FOUND };
            (code, explain(&program, &error))
        }
        Err(error) => (NOT_EXECUTED, format!("prepare the process: {error}")),
    };
    // Where neither can be written, the exit code still tells.
    match given(Some(directory)) {
        Some(directory) => drop(fs::write(
            Path::new(&directory).join(NOT_STARTED_FILE),
            reason,
        )),
        None => drop(writeln!(io::stderr(), "kontrol: {reason}")),
    }
    ExitCode::from(code)
}

fn prepare(guard: &OsStr, user: Option<&OsStr>) -> io::Result<()> {
    if let Some(user) = user {
        let identity = user.to_str().and_then(|user| user.parse::<Identity>().ok());
        let identity = identity.ok_or(io::ErrorKind::InvalidInput)?;
        identity.assume()?;
        // What the slave stood in may be nobody else's business.
        let home = env::var_os("HOME").unwrap_or_default();
        env::set_current_dir(home).or_else(|_| env::set_current_dir("/"))?;
    }
    // Behind the change of users, which takes it back.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The guard may have died just before that.
    let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if parent.as_deref() != guard.to_str() {
        return Err(io::Error::other("the guard is gone"));
    }
    // With other privileges the program would be out of the guard's reach, and lose the death signal.
    set_no_new_privs(true)?;
    // Whatever started this process may have left descriptors open in it.
    close_fds::set_fds_cloexec(3, &[]);
    Ok(())
}

/// Says why a program was not executed, and what to do about it.
fn explain(program: &Path, error: &io::Error) -> String {
    let exists = program.exists();
    let by_path = program.components().count() > 1;
    let program = program.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOEXEC) => {
            format!("{program} has no first line that names its interpreter, such as #!/bin/sh")
        }
        Some(Errno::NOENT) if exists => {
            format!("the interpreter named in the first line of {program} does not exist")
        }
        Some(Errno::NOENT) if by_path => format!("there is no file {program}"),
        Some(Errno::NOENT) => format!("there is no program {program} in PATH"),
        Some(Errno::ACCESS) => {
            format!("this user may not execute {program}, or the interpreter it names")
        }
        Some(Errno::TOOBIG) => {
            format!("the arguments and variables of {program} are more than Linux passes on")
        }
        _ => format!("{program}: {error}"),
    }
}
