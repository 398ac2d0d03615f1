//! The last step before the program: sets what only the process itself can set, and becomes the program.
//!
//! The hidden subcommand `shim <pid of the guard> <run directory or -> <user or -> <open files or -> <environment or ->
//! <program> [argument...]`. The guard gave it a process group of its own and its standard streams. The environment is the number of
//! a descriptor with the variables of the program: they may come from somebody who may do less than the shim, which with
//! LD_PRELOAD among its own would do whatever they say.
//!
//! Only what the kernel itself executes is run: execvp(3) would hand a file that has lost its first line, or all of them, to
//! /bin/sh, and what never ran would count as done.

use super::{DEFAULT_PATH, given, inheritance, user};
use nix::unistd::execve;
use rustix::{
    io::Errno,
    process::{Signal, getppid, set_parent_process_death_signal},
    thread::set_no_new_privs,
};
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs,
    io::{self, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The hidden subcommand.
pub(super) const NAME: &str = "shim";
/// The file in the run directory with the reason why the program was not executed.
pub const NOT_STARTED_FILE: &str = "not-started";
/// The exit codes of a program that was not executed, or is not there, as shells have them.
const NOT_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The process of the shim. Returns only when the program could not be executed.
pub(super) fn main(arguments: &mut dyn Iterator<Item = OsString>) -> ExitCode {
    let (
        Some(guard),
        Some(directory),
        Some(user),
        Some(open_files),
        Some(environment),
        Some(program),
    ) = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    )
    else {
        return ExitCode::from(2);
    };
    let program = PathBuf::from(program);
    let prepared = variables(given(Some(environment))).and_then(|variables| {
        prepare(&guard, given(Some(user)).as_deref(), &variables)?;
        let open_files = given(Some(open_files)).and_then(|limit| limit.to_str()?.parse().ok());
        inheritance::restore(open_files)?;
        Ok(variables)
    });
    let (code, reason) = match prepared {
        Ok(variables) => {
            let path = variables
                .iter()
                .find(|(name, value)| name == "PATH" && !value.is_empty());
            let path = path.map_or_else(|| DEFAULT_PATH.into(), |(_, value)| value.clone());
            let words: Vec<OsString> = std::iter::once(program.clone().into_os_string())
                .chain(arguments)
                .collect();
            let errno = execute(&words, &path, &variables);
            explain(&program, &path, errno)
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

/// Becomes the program; or tells why not. A name without a slash is looked for in PATH.
fn execute(words: &[OsString], path: &OsStr, variables: &[(OsString, OsString)]) -> Errno {
    let text = |text: Vec<u8>| CString::new(text).map_err(|_| Errno::INVAL);
    let words = words.iter().map(|word| word.as_bytes().to_vec());
    let words: Result<Vec<_>, _> = words.map(text).collect();
    let variables = variables
        .iter()
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let variables: Result<Vec<_>, _> = variables.map(text).collect();
    let (words, variables) = match (words, variables) {
        (Ok(words), Ok(variables)) => (words, variables),
        (Err(errno), _) | (_, Err(errno)) => return errno,
    };
    let Some(program) = words.first() else {
        return Errno::INVAL;
    };
    let run = |file: &CString| match execve(file, &words, &variables) {
        Ok(never) => match never {},
        Err(errno) => Errno::from_raw_os_error(errno as i32),
    };
    if program.as_bytes().contains(&b'/') {
        return run(program);
    }
    let name = OsStr::from_bytes(program.as_bytes());
    let mut found = Errno::NOENT;
    for folder in env::split_paths(path) {
        // An empty one is the working directory.
        let file = if folder.as_os_str().is_empty() {
            Path::new(".").join(name)
        } else {
            folder.join(name)
        };
        let Ok(file) = CString::new(file.into_os_string().into_vec()) else {
            continue;
        };
        match run(&file) {
            // It is not there, or it is and this user may not: another may be.
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => found = Errno::ACCESS,
            errno => return errno,
        }
    }
    found
}

/// Says why a program was not executed, and what to do about it; also as an exit code. `path`: where it was looked for.
fn explain(program: &Path, path: &OsStr, errno: Errno) -> (u8, String) {
    let name = program.display();
    if program.as_os_str().as_bytes().contains(&b'/') {
        if !program.exists() {
            return (NOT_FOUND, format!("there is no file {name}"));
        }
    } else if !env::split_paths(path).any(|folder| folder.join(program).exists()) {
        // Whatever the error: it may be about a folder in PATH that this user can't enter.
        return (NOT_FOUND, format!("there is no program {name} in PATH"));
    }
    let reason = match errno {
        Errno::NOEXEC => {
            format!("{name} has no first line that names its interpreter, such as #!/bin/sh")
        }
        Errno::NOENT => {
            format!("the interpreter named in the first line of {name} does not exist")
        }
        Errno::ACCESS => {
            format!("this user may not execute {name}, or the interpreter it names")
        }
        Errno::TOOBIG => {
            format!("the arguments and variables of {name} are more than Linux passes on")
        }
        other => format!("{name}: {}", io::Error::from(other)),
    };
    (NOT_EXECUTED, reason)
}
