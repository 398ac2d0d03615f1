//! What may run here: anything, nothing, or what a file allows.
//!
//! ```text
//! # One allowed command a line, words as a shell reads them. * ? and [...] stand for any text, one character, and one of
//! # some characters of a word; ... at the end stands for any further words.
//! /usr/bin/uptime
//! systemctl restart *
//! /opt/app/heal ...
//! /bin/sh -c 'nginx -s reload'      a text for a shell is /bin/sh -c TEXT
//! ```
//!
//! The file is read at each action, so that an edit counts at once. One that can't be read allows nothing.

use glob::Pattern;
use std::{fs, path::PathBuf};

/// The largest file that is read.
const MAX_BYTES: usize = 1024 * 1024;
/// Stands for any further words.
const REST: &str = "...";

/// What may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    Any,
    /// Nothing.
    None,
    /// What this file allows.
    File(PathBuf),
}

/// Why a file of allowed commands is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It can't be read.
    #[error("can't read {0}: {1}")]
    Unreadable(String, String),
    /// A line makes no sense.
    #[error("line {line} of {file}: {reason}")]
    Line {
        /// The file.
        file: String,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Policy {
    /// The policy that a setting names: `any`, `none`, or a file.
    pub fn named(text: &str) -> Self {
        match text {
            "any" => Self::Any,
            "none" => Self::None,
            file => Self::File(file.into()),
        }
    }

    /// Whether the policy can be applied at all.
    pub fn check(&self) -> Result<(), PolicyError> {
        match self {
            Self::Any | Self::None => Ok(()),
            Self::File(_) => self.rules().map(drop),
        }
    }

    /// Whether this command may run; if not, why.
    pub fn allows(&self, argv: &[String]) -> Result<(), String> {
        match self {
            Self::Any => Ok(()),
            Self::None => Err("this slave runs no actions (--actions none)".to_owned()),
            Self::File(file) => {
                let rules = self.rules();
                let rules = rules
                    .map_err(|error| format!("this slave can't tell what it may run: {error}"))?;
                if rules.iter().any(|rule| rule.allows(argv)) {
                    Ok(())
                } else {
                    let file = file.display();
                    Err(format!(
                        "this slave runs only what {file} allows, and that is not this command"
                    ))
                }
            }
        }
    }

    fn rules(&self) -> Result<Vec<Rule>, PolicyError> {
        let Self::File(file) = self else {
            return Ok(Vec::new());
        };
        let name = file.display().to_string();
        let unreadable = |reason: String| PolicyError::Unreadable(name.clone(), reason);
        let size = fs::metadata(file)
            .map_err(|error| unreadable(error.to_string()))?
            .len();
        if size > MAX_BYTES as u64 {
            return Err(unreadable(format!("it has more than {MAX_BYTES} bytes")));
        }
        let text = fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
        rules(&text).map_err(|(line, reason)| PolicyError::Line {
            file: name,
            line,
            reason,
        })
    }
}

/// One allowed command.
#[derive(Debug)]
struct Rule {
    words: Vec<Pattern>,
    rest: bool,
}

impl Rule {
    fn allows(&self, argv: &[String]) -> bool {
        let fits = if self.rest {
            argv.len() >= self.words.len()
        } else {
            argv.len() == self.words.len()
        };
        fits && self
            .words
            .iter()
            .zip(argv)
            .all(|(pattern, word)| pattern.matches(word))
    }
}

/// The rules of a text, or the line that makes no sense and why. PURE.
fn rules(text: &str) -> Result<Vec<Rule>, (usize, String)> {
    let mut rules = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let wrong = |reason: String| (index + 1, reason);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = shlex::split(line).ok_or_else(|| wrong("a quote is not closed".into()))?;
        let rest = words.last().is_some_and(|word| word == REST);
        if rest {
            words.pop();
        }
        let words: Vec<Pattern> = words
            .iter()
            .map(|word| Pattern::new(word).map_err(|error| wrong(format!("{word:?}: {error}"))))
            .collect::<Result<_, _>>()?;
        if words.is_empty() {
            return Err(wrong("it names no program".into()));
        }
        rules.push(Rule { words, rest });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str, argv: &[&str]) -> bool {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        rules(text).unwrap().iter().any(|rule| rule.allows(&argv))
    }

    #[test]
    fn a_command_must_match_word_by_word() {
        let text = "# a comment\n\n/usr/bin/uptime\nsystemctl restart web-*\nheal ...\n/bin/sh -c 'nginx -s reload'\n";
        for argv in [
            &["/usr/bin/uptime"][..],
            &["systemctl", "restart", "web-1/a b"],
            &["heal"],
            &["heal", "a", "b"],
            &["/bin/sh", "-c", "nginx -s reload"],
        ] {
            assert!(allows(text, argv), "{argv:?}");
        }
        for argv in [
            &["/usr/bin/uptime", "-p"][..],
            &["uptime"],
            &["systemctl", "restart"],
            &["systemctl", "stop", "web-1"],
            &["systemctl", "restart", "web-1", "db"],
            &["/bin/sh", "-c", "nginx -s reload; rm -rf /"],
            &["#", "a", "comment"],
            &[],
        ] {
            assert!(!allows(text, argv), "{argv:?}");
        }
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for (text, line, said) in [
            ("a\nb 'c", 2, "quote"),
            ("a [", 1, "["),
            ("\n...\n", 2, "no program"),
        ] {
            let (number, reason) = rules(text).unwrap_err();
            assert_eq!(number, line);
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn a_file_counts_as_it_is_at_each_action_and_one_that_is_gone_allows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("allowed");
        let policy = Policy::named(path.to_str().unwrap());
        assert!(matches!(policy.check(), Err(PolicyError::Unreadable(..))));
        let argv = ["true".to_owned()];
        fs::write(&path, "false\n").unwrap();
        assert!(policy.check().is_ok());
        assert!(policy.allows(&argv).unwrap_err().contains("runs only what"));
        fs::write(&path, "true\n").unwrap();
        assert_eq!(policy.allows(&argv), Ok(()));
        fs::remove_file(&path).unwrap();
        assert!(policy.allows(&argv).unwrap_err().contains("can't tell"));
        assert_eq!(Policy::named("any").allows(&argv), Ok(()));
        assert!(Policy::named("none").allows(&argv).is_err());
    }
}
