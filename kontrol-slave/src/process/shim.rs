//! The last step before the program: sets what only the process itself can set, and becomes the program.
//!
//! The hidden subcommand `shim <pid of the guard> <run directory or -> <user or -> <environment or -> <program>
//! [argument...]`. The guard gave it a process group of its own and its standard streams. The environment is the number of
//! a descriptor with the variables of the program: they may come from somebody who may do less than the shim, which with
//! LD_PRELOAD among its own would do whatever they say.

use super::{given, user};
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
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        process::CommandExt,
    },
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
    let (Some(guard), Some(directory), Some(user), Some(environment), Some(program)) = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    ) else {
        return ExitCode::from(2);
    };
    let program = PathBuf::from(program);
    let prepared = variables(given(Some(environment))).and_then(|variables| {
        prepare(&guard, given(Some(user)).as_deref(), &variables)?;
        Ok(variables)
    });
    let (code, reason) = match prepared {
        Ok(variables) => {
            let path = variables.iter().find(|(name, _)| name == "PATH");
            let path = path.map(|(_, value)| value.clone());
            // Resets the signal mask and SIGPIPE as well.
            let error = Command::new(&program)
                .args(arguments)
                .env_clear()
                .envs(variables)
                .exec();
            explain(&program, &path.unwrap_or_default(), &error)
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

/// The variables of the program: `NAME=value`, with a NUL behind each, in a file with this number; or those of the shim.
fn variables(descriptor: Option<OsString>) -> io::Result<Vec<(OsString, OsString)>> {
    let Some(descriptor) = descriptor else {
        return Ok(env::vars_os().collect());
    };
    let block = fs::read(Path::new("/proc/self/fd").join(descriptor))?;
    let pairs = block.split(|byte| *byte == 0).filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&pair[..equals]), text(&pair[equals + 1..])))
    });
    Ok(pairs.collect())
}

fn prepare(
    guard: &OsStr,
    user: Option<&OsStr>,
    variables: &[(OsString, OsString)],
) -> io::Result<()> {
    if let Some(identity) = user::identity(user)? {
        identity.assume()?;
        // What the slave stood in may be nobody else's business.
        let home = variables.iter().find(|(name, _)| name == "HOME");
        let home = home.map_or(OsStr::new(""), |(_, home)| home);
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
    // Whatever started the guard may have left descriptors open in it, and there are the shim's own.
    close_fds::set_fds_cloexec(3, &[]);
    Ok(())
}

/// Says why a program was not executed, and what to do about it; also as an exit code. `path`: where it was looked for.
fn explain(program: &Path, path: &OsStr, error: &io::Error) -> (u8, String) {
    let name = program.display();
    if program.as_os_str().as_bytes().contains(&b'/') {
        if !program.exists() {
            return (NOT_FOUND, format!("there is no file {name}"));
        }
    } else if !env::split_paths(path).any(|folder| folder.join(program).exists()) {
        // Whatever the error: it may be about a folder in PATH that this user can't enter.
        return (NOT_FOUND, format!("there is no program {name} in PATH"));
    }
    let reason = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOEXEC) => {
            format!("{name} has no first line that names its interpreter, such as #!/bin/sh")
        }
        Some(Errno::NOENT) => {
            format!("the interpreter named in the first line of {name} does not exist")
        }
        Some(Errno::ACCESS) => {
            format!("this user may not execute {name}, or the interpreter it names")
        }
        Some(Errno::TOOBIG) => {
            format!("the arguments and variables of {name} are more than Linux passes on")
        }
        _ => format!("{name}: {error}"),
    };
    (NOT_EXECUTED, reason)
}
