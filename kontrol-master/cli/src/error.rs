//! Why a command failed: one line that tells what to do next, and the exit code.

use std::io;

/// Why a command failed.
#[derive(Debug)]
pub enum CliError {
    /// The command was given something it can't use.
    Usage(String),
    /// It went wrong.
    Failed(String),
    /// No master could be asked, or none could answer, each for a reason; later one may.
    Unreachable(String),
    /// A master that was to change something broke off, for a reason, before it said what became of it.
    Unclear(String),
    /// What became of an action is not known here.
    Lost(String),
    /// The answer could not be written.
    Write(io::Error),
}

impl CliError {
    /// What to tell the user; nothing when it is the reader who went away.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Usage(message) | Self::Failed(message) | Self::Lost(message) => {
                Some(message.clone())
            }
            Self::Unreachable(reasons) => Some(format!(
                "no master answers: {reasons}; start kontrol-master there, or name another with --endpoint or KONTROL_ENDPOINT"
            )),
            Self::Unclear(reason) => Some(format!(
                "{reason}, so it may or may not be done: look before you try again"
            )),
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Write(error) => Some(format!("cannot write the answer: {error}")),
        }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            // As of a target that is lost.
            Self::Lost(_) => 255,
            Self::Failed(_) | Self::Unreachable(_) | Self::Unclear(_) | Self::Write(_) => 1,
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}
