//! Which variables a command can be given. PURE.
//!
//! What a caller sets is there in the command, or is refused: by the master that takes the dispatch, and by the slave, whose
//! master may be older.

/// Those that tell a command about itself.
const OWN: [&str; 4] = ["INPUT", "KONTROL_ACTION", "KONTROL_KEY", "KONTROL_ID"];
/// Those that a shell sets anew when it starts: the first as POSIX has it, the others where `/bin/sh` is bash, in which they
/// change by themselves or can't be set.
const OF_THE_SHELL: [&str; 34] = [
    "IFS",
    "OPTIND",
    "PPID",
    "PWD",
    "_",
    "BASH",
    "BASHOPTS",
    "BASHPID",
    "BASH_ARGC",
    "BASH_ARGV",
    "BASH_ARGV0",
    "BASH_COMMAND",
    "BASH_EXECUTION_STRING",
    "BASH_LINENO",
    "BASH_SOURCE",
    "BASH_SUBSHELL",
    "BASH_VERSINFO",
    "BASH_VERSION",
    "COMP_WORDBREAKS",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "HISTCMD",
    "LINENO",
    "OLDPWD",
    "OPTERR",
    "POSIXLY_CORRECT",
    "PS1",
    "PS2",
    "PS4",
    "RANDOM",
    "SECONDS",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
];

/// Why a command would not find a variable of this name as it was given, if so; `shell`: its text is run by a shell.
pub fn unfit(name: &str, shell: bool) -> Option<&'static str> {
    let word = |first: char| first.is_ascii_alphabetic() || first == '_';
    let is_word =
        name.starts_with(word) && name.chars().all(|one| word(one) || one.is_ascii_digit());
    if name.is_empty() || name.contains('=') {
        Some("which can't be the name of a variable")
    } else if name.contains('\0') {
        Some("which has a NUL character")
    } else if OWN.contains(&name) {
        Some("which kontrol itself sets: take another name")
    } else if shell && OF_THE_SHELL.contains(&name) {
        Some("which a shell sets anew: take another name, or give argv")
    } else if shell && !is_word {
        Some(
            "which a shell may not pass on: take a name of letters, digits and underscores, or give argv",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What the shell of this host makes of a variable.
    fn arrives(name: &str) -> bool {
        let output = Command::new("/bin/sh")
            .args(["-c", "env -0"])
            .env(name, "/as/given")
            .output()
            .unwrap();
        let wanted = format!("{name}=/as/given");
        output
            .stdout
            .split(|byte| *byte == 0)
            .any(|one| one == wanted.as_bytes())
    }

    #[test]
    fn what_a_shell_drops_is_unfit_for_it_and_fit_for_a_program() {
        for name in [
            "A",
            "_a1",
            "PATH",
            "HOME",
            "LC_ALL",
            "KONTROL_X",
            "NAMESPACE",
        ] {
            assert_eq!(
                (unfit(name, true), unfit(name, false)),
                (None, None),
                "{name}"
            );
            assert!(name == "PATH" || arrives(name), "{name}");
        }
        for name in [
            "a.b",
            "a-b",
            "1",
            "é",
            "a b",
            "IFS",
            "PWD",
            "PPID",
            "RANDOM",
            "BASH_VERSION",
            "_",
        ] {
            assert_eq!(unfit(name, false), None, "{name}");
            assert!(unfit(name, true).unwrap().contains("shell"), "{name}");
        }
        assert!(!arrives("PWD"));
    }

    #[test]
    fn what_can_be_no_variable_or_is_kontrols_own_is_unfit() {
        for (name, why) in [
            ("", "can't"),
            ("A=B", "can't"),
            ("A\0", "NUL"),
            ("INPUT", "itself"),
            ("KONTROL_ACTION", "itself"),
            ("KONTROL_KEY", "itself"),
            ("KONTROL_ID", "itself"),
        ] {
            for shell in [false, true] {
                assert!(unfit(name, shell).unwrap().contains(why), "{name:?}");
            }
        }
    }
}
