//! The user's program as the configuration names it, checked before anything is bound.
//!
//! A name is resolved to a path here, once, so that what was checked is what runs.

use kontrol_runtime::process::DEFAULT_PATH;
use rustix::fs::{Access, access};
use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A program by its path, and its arguments.
    Exec(Vec<OsString>),
    /// A text for `/bin/sh -c`.
    Shell(String),
}

/// What is wrong with the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// There is nothing to run.
    #[error("is empty; give the path of an executable, or leave it out")]
    Empty,
    /// Its quotes don't match.
    #[error("is neither a file nor words to split: a quote in {0:?} is not closed")]
    Quotes(String),
    /// No such file, or no such program in PATH.
    #[error(
        "names {0:?}, which is neither a file nor a program in PATH; give the path of an executable"
    )]
    Missing(String),
    /// It is a directory or a device.
    #[error("names {0:?}, which is not a regular file; give the path of an executable")]
    NotAFile(String),
    /// This user may not execute it.
    #[error("names {0:?}, which this user may not execute; run: chmod +x {0:?}")]
    NotExecutable(String),
    /// It has a NUL, which no argument can hold.
    #[error("has a NUL character")]
    Nul,
}

impl Program {
    /// The program of `KONTROL_CALLBACK`: a path, or words quoted as for a shell when there is no such file.
    pub fn exec(text: &str) -> Result<Self, ProgramError> {
        let path = env::var_os("PATH").filter(|path| !path.is_empty());
        let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
        Self::exec_in(text, Some(Path::new(&path)))
    }

    fn exec_in(text: &str, path: Option<&Path>) -> Result<Self, ProgramError> {
        check_text(text)?;
        let words = if Path::new(text).exists() {
            vec![text.to_owned()]
        } else {
            shlex::split(text).ok_or_else(|| ProgramError::Quotes(text.to_owned()))?
        };
        let [name, arguments @ ..] = words.as_slice() else {
            return Err(ProgramError::Empty);
        };
        let mut argv = vec![resolve(name, path)?.into_os_string()];
        argv.extend(arguments.iter().map(OsString::from));
        Ok(Self::Exec(argv))
    }

    /// The program of `KONTROL_SHELL_CALLBACK`: a text for `/bin/sh -c`.
    pub fn shell(text: &str) -> Result<Self, ProgramError> {
        check_text(text)?;
        resolve("/bin/sh", None)?;
        Ok(Self::Shell(text.to_owned()))
    }

    /// The program and its arguments.
    pub fn argv(&self) -> Vec<OsString> {
        match self {
            Self::Exec(argv) => argv.clone(),
            Self::Shell(text) => ["/bin/sh", "-c", text].map(OsString::from).to_vec(),
        }
    }
}

impl fmt::Display for Program {
    /// As the configuration has it, more or less.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec(argv) => {
                let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
                f.write_str(&words.join(" "))
            }
            Self::Shell(text) => f.write_str(text),
        }
    }
}

fn check_text(text: &str) -> Result<(), ProgramError> {
    if text.trim().is_empty() {
        return Err(ProgramError::Empty);
    }
    if text.contains('\0') {
        return Err(ProgramError::Nul);
    }
    Ok(())
}

/// The path of a program: as given when that is a path or a file here, else the first match in PATH.
fn resolve(name: &str, path: Option<&Path>) -> Result<PathBuf, ProgramError> {
    let here = Path::new(name);
    if name.contains('/') || here.exists() {
        // A bare name would be looked up in PATH when it is executed.
        let full = std::path::absolute(here).unwrap_or_else(|_| here.to_owned());
        return check_file(&full).map(|()| full);
    }
    let mut found = Err(ProgramError::Missing(name.to_owned()));
    for directory in path
        .into_iter()
        .flat_map(|path| env::split_paths(path.as_os_str()))
    {
        let candidate = directory.join(name);
        match check_file(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(ProgramError::NotExecutable(name)) => {
                found = Err(ProgramError::NotExecutable(name));
            }
            Err(_) => {}
        }
    }
    found
}

fn check_file(path: &Path) -> Result<(), ProgramError> {
    let name = path.to_string_lossy().into_owned();
    match path.metadata() {
        Err(_) => Err(ProgramError::Missing(name)),
        Ok(metadata) if !metadata.is_file() => Err(ProgramError::NotAFile(name)),
        Ok(_) if access(path, Access::EXEC_OK).is_err() => Err(ProgramError::NotExecutable(name)),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn file(directory: &Path, name: &str, mode: u32) -> String {
        let path = directory.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn words(program: Program) -> Vec<String> {
        let argv = program.argv().into_iter();
        argv.map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn a_path_with_spaces_is_one_word() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "my callback", 0o755);
        assert_eq!(words(Program::exec(&path).unwrap()), [path]);
    }

    #[test]
    fn words_are_split_and_looked_up_in_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "notify-all", 0o755);
        let program = Program::exec_in("notify-all --to 'a b'", Some(directory.path())).unwrap();
        assert_eq!(words(program), [path.as_str(), "--to", "a b"]);
    }

    #[test]
    fn what_cannot_run_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let plain = file(directory.path(), "plain", 0o644);
        let in_path = |text: &str| Program::exec_in(text, Some(directory.path()));
        let home = directory.path().to_str().unwrap().to_owned();
        assert_eq!(in_path(" "), Err(ProgramError::Empty));
        assert_eq!(in_path("''"), Err(ProgramError::Missing(String::new())));
        assert_eq!(in_path("a 'b"), Err(ProgramError::Quotes("a 'b".into())));
        assert_eq!(in_path("none"), Err(ProgramError::Missing("none".into())));
        assert_eq!(
            in_path("/no/such file"),
            Err(ProgramError::Missing("/no/such".into()))
        );
        assert_eq!(in_path(&home), Err(ProgramError::NotAFile(home.clone())));
        assert_eq!(
            in_path("plain -x"),
            Err(ProgramError::NotExecutable(plain.clone()))
        );
        assert_eq!(
            in_path(&plain).unwrap_err().to_string(),
            format!("names {plain:?}, which this user may not execute; run: chmod +x {plain:?}")
        );
        assert_eq!(Program::shell("a\0b"), Err(ProgramError::Nul));
    }

    #[test]
    fn a_shell_text_is_left_to_the_shell() {
        let program = Program::shell("echo \"$HASH\" | tee log").unwrap();
        assert_eq!(
            words(program),
            ["/bin/sh", "-c", "echo \"$HASH\" | tee log"]
        );
    }
}
