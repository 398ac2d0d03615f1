//! The rules of a policy file. PURE.
//!
//! ```text
//! # one allowed command a line; its words are quoted as for a shell
//! /usr/bin/systemctl restart nginx-*      each word is a pattern for a whole word of the command: * ? [a-z]
//! /opt/tools/* --verbose ...              ... at the end: any further arguments
//! LANG=* REGION=eu-? /opt/report          in front: variables that the order may set
//! /bin/sh -c 'uptime; free'               a text for a shell is the third word of /bin/sh -c
//! ```
//!
//! In the first word no pattern holds a `/` or takes a leading dot, and none may hold `**` or `..`: `/opt/tools/*` is
//! neither `/opt/tools/../../bin/sh` nor `/opt/*/../sh`. A variable that no rule names is refused: with PATH, LD_PRELOAD or
//! BASH_ENV any allowed command could be made another one.

use glob::{MatchOptions, Pattern};
use kontrol_core::model::invalid::clip;
use std::collections::HashMap;

/// What stands for any further arguments.
const FURTHER: &str = "...";

/// A line that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(super) struct RuleError {
    line: usize,
    reason: String,
}

/// Which commands are allowed.
#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    variables: Vec<(String, Pattern)>,
    /// The program, part by part: a pattern that is matched with a whole path goes back from each slash to each star before
    /// it, and whoever dispatches could give it one that takes years.
    program: Vec<Pattern>,
    arguments: Vec<Pattern>,
    further: bool,
}

impl Rules {
    /// Reads the rules; all mistakes at once.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<RuleError>> {
        let (mut rules, mut mistakes) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match Rule::parse(line) {
                Ok(rule) => rules.extend(rule),
                Err(reason) => mistakes.push(RuleError {
                    line: index + 1,
                    reason,
                }),
            }
        }
        if mistakes.is_empty() {
            Ok(Self(rules))
        } else {
            Err(mistakes)
        }
    }

    /// Whether some rule allows this command with these variables.
    pub(super) fn allow(&self, argv: &[String], variables: &HashMap<String, String>) -> bool {
        self.0.iter().any(|rule| rule.allows(argv, variables))
    }
}

impl Rule {
    /// Reads a line; none when there is no rule in it.
    fn parse(line: &str) -> Result<Option<Self>, String> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        let pattern = |text: &str| {
            Pattern::new(text)
                .map_err(|error| format!("{:?} is no pattern: {}", clip(text), error.msg))
        };
        let mut rule = Self {
            variables: Vec::new(),
            program: Vec::new(),
            arguments: Vec::new(),
            further: false,
        };
        for word in &words {
            if rule.further {
                return Err(format!("{FURTHER} must come last"));
            }
            match word.split_once('=') {
                Some((name, value)) if rule.program.is_empty() && is_name(name) => {
                    rule.variables.push((name.to_owned(), pattern(value)?));
                }
                _ if word == FURTHER => rule.further = true,
                _ if rule.program.is_empty() && (word.contains("**") || climbs(word)) => {
                    return Err(format!(
                        "{:?} must name the program without ** and without ..",
                        clip(word)
                    ));
                }
                _ if rule.program.is_empty() => {
                    rule.program = word.split('/').map(pattern).collect::<Result<_, _>>()?;
                }
                _ => rule.arguments.push(pattern(word)?),
            }
        }
        match (words.is_empty(), rule.program.is_empty()) {
            (true, _) => Ok(None),
            (false, true) => Err("there is no program in it".into()),
            (false, false) => Ok(Some(rule)),
        }
    }

    fn allows(&self, argv: &[String], variables: &HashMap<String, String>) -> bool {
        let Some((program, arguments)) = argv.split_first() else {
            return false;
        };
        let fits = if self.further {
            arguments.len() >= self.arguments.len()
        } else {
            arguments.len() == self.arguments.len()
        };
        let no_leading_dot = MatchOptions {
            require_literal_leading_dot: true,
            ..MatchOptions::new()
        };
        let parts = program.split('/');
        fits && !climbs(program)
            && parts.clone().count() == self.program.len()
            && (self.program.iter().zip(parts))
                .all(|(pattern, part)| pattern.matches_with(part, no_leading_dot))
            && (self.arguments.iter().zip(arguments)).all(|(pattern, word)| pattern.matches(word))
            && variables.iter().all(|(name, value)| {
                let mut rules = self.variables.iter();
                rules.any(|(allowed, pattern)| allowed == name && pattern.matches(value))
            })
    }
}

/// Whether a path leads up on its way.
fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// Whether this is what a shell takes for the name of a variable.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = |byte: u8| byte == b'_' || byte.is_ascii_alphabetic();
    bytes.next().is_some_and(first) && bytes.all(|byte| first(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allowed(rules: &str, argv: &[&str], variables: &[(&str, &str)]) -> bool {
        let argv: Vec<String> = argv.iter().map(|word| (*word).into()).collect();
        let variables = variables.iter().map(|(n, v)| ((*n).into(), (*v).into()));
        Rules::parse(rules)
            .unwrap()
            .allow(&argv, &variables.collect())
    }

    #[test]
    fn a_rule_is_about_every_word() {
        let rules = "# services\n\nsystemctl restart nginx-*  # the front\n";
        assert!(allowed(rules, &["systemctl", "restart", "nginx-1"], &[]));
        assert!(allowed(rules, &["systemctl", "restart", "nginx-"], &[]));
        for argv in [
            &["systemctl", "restart"][..],
            &["systemctl", "restart", "nginx-1", "sshd"],
            &["systemctl", "restart", "xnginx-1"],
            &["systemctl", "stop", "nginx-1"],
            &["/tmp/systemctl", "restart", "nginx-1"],
            &[],
        ] {
            assert!(!allowed(rules, argv, &[]), "{argv:?}");
        }
    }

    #[test]
    fn further_arguments_are_allowed_by_dots() {
        assert!(allowed("ls -l ...", &["ls", "-l"], &[]));
        assert!(allowed("ls -l ...", &["ls", "-l", "a b", ""], &[]));
        assert!(!allowed("ls -l ...", &["ls"], &[]));
    }

    #[test]
    fn a_pattern_for_the_program_stays_in_its_folder() {
        let rules = "/opt/tools/* ...";
        assert!(allowed(rules, &["/opt/tools/x", "/etc/passwd"], &[]));
        assert!(!allowed(rules, &["/opt/tools/../../bin/sh"], &[]));
        assert!(!allowed(rules, &["/opt/tools/deep/x"], &[]));
        assert!(!allowed(rules, &["/opt/tools/.x"], &[]));
        assert!(!allowed("/opt/*/run", &["/opt/../run"], &[]));
        assert!(!allowed("/opt/[!a]./run", &["/opt/../run"], &[]));
        assert!(allowed("cat *", &["cat", "/etc/passwd"], &[]));
        assert!(Rules::parse("/opt/[a/]b").is_err());
    }

    /// It would not end in a lifetime if each star could go back.
    #[test]
    fn no_command_makes_a_rule_think_for_long() {
        let rules = format!("/{}z/* {}z", "*a".repeat(16), "*a".repeat(16));
        let long = "a".repeat(2000);
        for program in [
            format!("/{long}/x"),
            format!("/{long}z/x"),
            format!("/{long}"),
        ] {
            let runs = program.contains('z');
            for word in [format!("{long}z"), long.clone()] {
                let fits = runs && word.ends_with('z');
                assert_eq!(allowed(&rules, &[&program, &word], &[]), fits);
            }
        }
    }

    #[test]
    fn a_shell_text_is_one_word() {
        let rules = "/bin/sh -c 'uptime; free -[mg]'";
        assert!(allowed(rules, &["/bin/sh", "-c", "uptime; free -m"], &[]));
        assert!(!allowed(rules, &["/bin/sh", "-c", "uptime; free -k"], &[]));
    }

    #[test]
    fn a_variable_must_be_named() {
        let rules = "LANG=* REGION=eu-? report a=b";
        let argv = ["report", "a=b"];
        assert!(allowed(rules, &argv, &[]));
        assert!(allowed(rules, &argv, &[("LANG", "C"), ("REGION", "eu-1")]));
        assert!(!allowed(rules, &argv, &[("REGION", "us-1")]));
        assert!(!allowed(
            rules,
            &argv,
            &[("LANG", "C"), ("LD_PRELOAD", "/tmp/x.so")]
        ));
    }

    #[test]
    fn an_empty_file_allows_nothing() {
        assert!(!allowed("", &["true"], &[]));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let text = "ok\necho 'a\nls ... -l\nA=b\n[z-\n...\n/opt/**/x\n/opt/../x";
        let mistakes = Rules::parse(text).unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 7, "{lines:?}");
        for (line, said) in lines.iter().zip([
            "line 2: a quote is not closed",
            "line 3: ... must come last",
            "line 4: there is no program",
            "line 5: \"[z-\" is no pattern",
            "line 6: there is no program",
            "line 7: \"/opt/**/x\" must name",
            "line 8: \"/opt/../x\" must name",
        ]) {
            assert!(line.starts_with(said), "{line}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_of_plain_words_allows_just_these(words in prop::collection::vec("[a-z0-9 '\"/.-]{1,6}", 1..4), other in prop::collection::vec("[a-z/]{0,3}", 0..4)) {
            prop_assume!(!words.iter().any(|word| word == FURTHER) && !climbs(&words[0]));
            let line = shlex::try_join(words.iter().map(String::as_str)).unwrap();
            let rules = Rules::parse(&line).unwrap();
            prop_assert!(rules.allow(&words, &HashMap::new()));
            prop_assert_eq!(rules.allow(&other, &HashMap::new()), other == words);
        }

        #[test]
        fn no_text_breaks_it(text in "\\PC{0,40}") {
            let _ = Rules::parse(&text);
        }
    }
}
