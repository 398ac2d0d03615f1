//! What may run here, whoever asks: anything, nothing, or what a file of `rules` allows.
//!
//! The file is read again for each action, so that an edit counts at once. It fails closed: while it can't be read, or
//! has a mistake, nothing runs.

#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod rules;

use kontrol_runtime::folder::{Content, Reader, read_now};
use rules::Rules;
use std::{collections::HashMap, path::PathBuf, sync::LazyLock};

/// The largest file that is read.
const MAX_BYTES: usize = 1024 * 1024;

/// How many of its mistakes whoever dispatches is told.
const MAX_TOLD: usize = 3;

/// Reads it, for all actions that start.
static READER: LazyLock<Reader> = LazyLock::new(|| Reader::new(4));

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

impl Policy {
    /// The policy that a setting names: `any`, `none`, or a file.
    pub fn named(text: &str) -> Self {
        match text {
            "any" => Self::Any,
            "none" => Self::None,
            file => Self::File(file.into()),
        }
    }

    /// Whether the policy can be applied at all; if not, everything that is wrong with its file. Blocks.
    pub fn check(&self) -> Result<(), Vec<String>> {
        match self {
            Self::Any | Self::None => Ok(()),
            Self::File(path) => {
                let name = path.display();
                let told = |reason| format!("{name}: {reason}");
                rules(read_now(path, MAX_BYTES))
                    .map(drop)
                    .map_err(|reasons| reasons.into_iter().map(told).collect())
            }
        }
    }

    /// Whether a command may run now with the variables that are asked for; if not, why.
    pub(super) async fn judge(
        &self,
        argv: &[String],
        variables: &HashMap<String, String>,
    ) -> Result<(), String> {
        let path = match self {
            Self::Any => return Ok(()),
            Self::None => return Err("this slave runs no actions (--actions none)".to_owned()),
            Self::File(path) => path,
        };
        let name = path.display();
        let content = READER.read(path, MAX_BYTES).await;
        match rules(content) {
            Ok(rules) if rules.allow(argv, variables) => Ok(()),
            Ok(rules) if rules.allow(argv, &HashMap::new()) => Err(format!(
                "this slave runs only what {name} allows, and that is not this command with these variables"
            )),
            Ok(_) => Err(format!(
                "this slave runs only what {name} allows, and that is not this command"
            )),
            Err(reasons) => {
                let told = &reasons[..reasons.len().min(MAX_TOLD)];
                let more = reasons.len() - told.len();
                let more = if more > 0 {
                    format!("; and {more} more")
                } else {
                    String::new()
                };
                let told = told.join("; ");
                Err(format!(
                    "this slave runs only what {name} allows, and that is nothing: {told}{more}"
                ))
            }
        }
    }
}

fn rules(content: Content) -> Result<Rules, Vec<String>> {
    match content {
        Content::Missing => Err(vec!["the file does not exist".to_owned()]),
        Content::Failed(error) => Err(vec![format!("can't read it: {error}")]),
        Content::Read { bytes, .. } if bytes.len() > MAX_BYTES => {
            Err(vec![format!("it has more than {MAX_BYTES} bytes")])
        }
        Content::Read { bytes, .. } => {
            let text = String::from_utf8(bytes).map_err(|_| vec!["it is not UTF-8".to_owned()])?;
            Rules::parse(&text)
                .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_file_counts_as_it_is_at_each_action_and_one_that_is_gone_allows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("allowed");
        let policy = Policy::named(path.to_str().unwrap());
        assert!(policy.check().unwrap_err()[0].contains("does not exist"));
        let (argv, mut variables) = (["true".to_owned()], HashMap::new());
        let refused = async |policy: &Policy, variables: &HashMap<_, _>| {
            policy.judge(&argv, variables).await.unwrap_err()
        };
        fs::write(&path, "false\n").unwrap();
        assert!(policy.check().is_ok());
        assert!(refused(&policy, &variables).await.ends_with("this command"));
        fs::write(&path, "true\n").unwrap();
        assert_eq!(policy.judge(&argv, &variables).await, Ok(()));
        variables.insert("BASH_ENV".into(), "/tmp/x".into());
        let reason = refused(&policy, &variables).await;
        assert!(reason.ends_with("with these variables"), "{reason}");
        fs::write(&path, "'").unwrap();
        let reason = refused(&policy, &variables).await;
        assert!(reason.contains("line 1: a quote"), "{reason}");
        fs::write(&path, "[a\n".repeat(10_000)).unwrap();
        let reason = refused(&policy, &variables).await;
        assert!(
            reason.ends_with("; and 9997 more") && reason.len() < 1024,
            "{reason}"
        );
        fs::remove_file(&path).unwrap();
        let reason = refused(&policy, &variables).await;
        assert!(reason.contains("does not exist"), "{reason}");
        assert_eq!(Policy::named("any").judge(&argv, &variables).await, Ok(()));
        let reason = refused(&Policy::named("none"), &variables).await;
        assert!(reason.contains("--actions none"));
    }
}
