//! Reading the command line of a program, and saying in one line what is wrong with it.

use crate::logging;
use clap::{Command, Parser, builder::Resettable};
use std::{ffi::OsStr, fmt, process::ExitCode};

/// Exit code of wrong settings.
pub const WRONG_SETTINGS: u8 = 2;

/// Longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// A setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub struct Mistake {
    /// The flag that puts it right, without dashes.
    pub flag: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl Mistake {
    /// A wrong setting and the reason.
    pub fn new(flag: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            flag,
            reason: one_line(&reason.to_string()),
        }
    }
}

/// What is said as one line that ends somewhere, after a KiB: what it quotes can be a whole file that somebody put there by
/// mistake, or whatever the code of others says.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for letter in text.chars() {
        if line.len() >= MAX_REASON_BYTES {
            line.push('…');
            break;
        } else if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

/// A setting that was given and is not blank.
pub fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}

/// A flag that is on or off, as its variable says it; set to nothing it is off. Anything else is a mistake: who writes `none`
/// or `00` must not have said yes.
pub fn switch(text: &str) -> Result<bool, &'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "y" | "yes" | "t" | "true" | "on" => Ok(true),
        "" | "0" | "n" | "no" | "f" | "false" | "off" => Ok(false),
        _ => Err("must be yes or no (true or false, on or off, 1 or 0)"),
    }
}

/// Reads the command line and the environment. A variable that is set to nothing counts as one that is not set, and so does
/// one that Kubernetes made of a Service.
pub fn parse<P: Parser>() -> Result<P, clap::Error> {
    let matches = without_absent_variables(P::command()).try_get_matches()?;
    P::from_arg_matches(&matches).map_err(|error| error.format(&mut P::command()))
}

fn without_absent_variables(command: Command) -> Command {
    let is_absent = |name: &OsStr| {
        std::env::var_os(name)
            .is_some_and(|value| value.is_empty() || is_service_link(name, &value))
    };
    command
        .mut_args(|arg| {
            if arg.get_env().is_some_and(is_absent) {
                arg.env(Resettable::Reset)
            } else {
                arg
            }
        })
        .mut_subcommands(without_absent_variables)
}

/// Whether a variable is that of a Service: one that is called `kontrol` puts `KONTROL_PORT=tcp://10.96.0.10:8000` into every
/// pod of its namespace. Of the variables of a Service no other has the name of a setting; a test holds that.
fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    let protocols = ["tcp://", "udp://", "sctp://"];
    name.to_string_lossy().ends_with("_PORT")
        && protocols.iter().any(|protocol| value.starts_with(protocol))
}

/// Says what is wrong with the settings, a line for each mistake.
pub fn refuse_settings(program: &str, mistakes: &[Mistake]) -> ExitCode {
    for mistake in mistakes {
        logging::say(format_args!("{program}: {mistake}"));
    }
    ExitCode::from(WRONG_SETTINGS)
}

/// Says why the program failed.
pub fn fail(program: &str, error: &dyn fmt::Display) -> ExitCode {
    logging::say(format_args!("{program}: {error}"));
    ExitCode::FAILURE
}

/// Shows what the parser of the command line has to say: help and version as they are, a mistake as one line.
pub fn refuse(program: &str, error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Whoever asked for help and closed the pipe has seen enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let line = in_one_line(program, &error.to_string());
    logging::say(format_args!("{program}: {line}"));
    ExitCode::from(WRONG_SETTINGS)
}

/// What is wrong, from what the parser says: its first paragraph, which is a sentence and maybe a list, its tip, and where to
/// read more.
fn in_one_line(program: &str, text: &str) -> String {
    let mut lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| line.is_empty());
    let paragraph: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let mut line = match &paragraph[..] {
        [] => "the command line is wrong".to_owned(),
        [head, list @ ..] if head.ends_with(':') => format!("{head} {}", list.join(", ")),
        lines => lines.join(" "),
    };
    if let Some(text) = line.strip_prefix("error: ") {
        line = text.to_owned();
    }
    let mut command = program.to_owned();
    for more in lines {
        if let Some(tip) = more.strip_prefix("tip: ") {
            line = format!("{line}; {tip}");
        }
        // The words before the first that stands for another.
        if let Some(usage) = more.strip_prefix("Usage: ") {
            let is_word = |word: &&str| !word.starts_with(['[', '<', '-']);
            let words: Vec<&str> = usage.split(' ').take_while(is_word).collect();
            command = words.join(" ");
            if usage.contains("[-- <") && line.starts_with("unexpected argument") {
                line.push_str("; what is to be run goes behind --");
            }
        }
    }
    format!("{line}; see {command} --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_service_makes_is_a_service_link() {
        let is_link = |name: &str, value: &str| is_service_link(name.as_ref(), value.as_ref());
        for protocol in ["tcp", "udp", "sctp"] {
            assert!(is_link(
                "KONTROL_PORT",
                &format!("{protocol}://10.96.0.10:8000")
            ));
        }
        assert!(!is_link("KONTROL_PORT", "8000"));
        assert!(!is_link("KONTROL_PORT", "x"), "that is a mistake to tell");
        assert!(
            !is_link("KONTROL_MASTER", "tcp://10.96.0.10:8000"),
            "that one somebody wrote"
        );
    }

    #[test]
    fn a_mistake_is_one_line_whatever_it_quotes() {
        let mistake = |reason: &str| Mistake::new("ttl", reason).to_string();
        assert_eq!(
            mistake("`1\n\u{1b}ä` is no time"),
            "--ttl: `1\\n\\u{1b}ä` is no time"
        );
        let long = mistake(&"ä".repeat(100_000));
        assert!(long.ends_with('…') && long.len() < MAX_REASON_BYTES + 16);
    }

    #[test]
    fn what_the_parser_says_fits_in_one_line() {
        for (text, line) in [
            (
                "error: unexpected argument '-x' found\n\n  tip: a similar one is '-y'\n\nUsage: k exec [OPTIONS]\n",
                "unexpected argument '-x' found; a similar one is '-y'; see k exec --help",
            ),
            (
                "error: invalid value 'x' for '--output <OUTPUT>'\n  [possible values: a, b]\n\nFor more",
                "invalid value 'x' for '--output <OUTPUT>' [possible values: a, b]; see k --help",
            ),
            (
                "error: the following required arguments were not provided:\n  <POD>\n  <ID>\n\nUsage: k",
                "the following required arguments were not provided: <POD>, <ID>; see k --help",
            ),
            (
                "error: unexpected argument 'ls' found\n\nUsage: k exec [OPTIONS] [-- <COMMAND>...]\n",
                "unexpected argument 'ls' found; what is to be run goes behind --; see k exec --help",
            ),
            ("", "the command line is wrong; see k --help"),
        ] {
            assert_eq!(in_one_line("k", text), line);
        }
    }
}
