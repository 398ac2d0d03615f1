//! The settings of actions.

use crate::action::{self, policy::Policy};
use kontrol_runtime::{
    command_line::{Mistake, given},
    process::{User, UserError},
};
use rustix::process::{Resource, geteuid, getrlimit};

/// The settings that say how actions run: the slave's, and those of a master that is a pod as well.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ActionArgs {
    /// What may run: `any`, `none`, or a file with one allowed command a line, its words as in a shell: `*`, `?` and
    /// `[...]` as in file names, `...` at the end for any further words, `NAME=value` in front for variables that an action
    /// may set. An edit counts at once. Default: any.
    #[arg(
        long,
        env = "KONTROL_ACTIONS",
        value_name = "any|none|FILE",
        hide_env_values = true
    )]
    pub actions: Option<String>,

    /// The user that commands run as; only root can run them as another. Default: for root `kontrol` where there is such a
    /// user, else the user that this program runs as.
    #[arg(
        long,
        env = "KONTROL_USER",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub user: Option<String>,

    /// How many commands run at once, each of which takes 4 open files; up to 4096 more wait. Default: 16.
    #[arg(
        long,
        env = "KONTROL_MAX_ACTIONS",
        value_name = "NUMBER",
        hide_env_values = true
    )]
    pub max_actions: Option<String>,
}

/// The user that root runs commands as, where there is one of that name.
const DEFAULT_USER: &str = "kontrol";
/// Most commands at once: each takes a guard and some descriptors.
const MOST_ACTIONS: usize = 1024;
/// Open files that one command takes in this process (two pipes, a socket, and its guard's pidfd), and that the rest of it
/// may take.
const FILES_EACH: u64 = 4;
const FILES_APART: u64 = 128;

impl ActionArgs {
    /// Checks the settings of actions; reads the file of allowed commands if there is one, and looks the user up.
    /// `trusted`: whether everybody who reaches the masters may run commands.
    pub fn check(&self, trusted: bool) -> Result<action::Settings, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let policy = Policy::named(given(self.actions.as_deref()).unwrap_or("any").trim());
        if let Err(reasons) = policy.check() {
            let mistake = |reason| Mistake::new("actions", reason);
            mistakes.extend(reasons.into_iter().map(mistake));
        }
        let user = self.user();
        let user = user.map_err(|mistake| mistakes.push(mistake)).ok();
        let at_once = match given(self.max_actions.as_deref()).map(|text| text.trim().parse()) {
            None => action::DEFAULT_AT_ONCE,
            Some(Ok(number)) if (1..=MOST_ACTIONS).contains(&number) => {
                if let Err(reason) = enough_files(number) {
                    mistakes.push(Mistake::new("max-actions", reason));
                }
                number
            }
            Some(_) => {
                let reason = format!("must be a number from 1 to {MOST_ACTIONS}");
                mistakes.push(Mistake::new("max-actions", reason));
                action::DEFAULT_AT_ONCE
            }
        };
        match user {
            Some(user) if mistakes.is_empty() => Ok(action::Settings {
                policy,
                trusted,
                user,
                at_once,
                ..action::Settings::default()
            }),
            Some(_) | None => Err(mistakes),
        }
    }

    fn user(&self) -> Result<Option<User>, Mistake> {
        let root = geteuid().is_root();
        let Some(name) = given(self.user.as_deref()).map(str::trim) else {
            return match User::find(DEFAULT_USER) {
                Ok(user) => Ok(Some(user).filter(|_| root)),
                Err(UserError::Unknown(_)) => Ok(None),
                // There may be one: as root nothing must run that should run as that user.
                Err(error) if root => Err(Mistake::new("user", error)),
                Err(_) => Ok(None),
            };
        };
        let user = User::find(name).map_err(|error| Mistake::new("user", error))?;
        if !root && !user.is_current() {
            let reason =
                format!("only root can run commands as {name}; this program does not run as root");
            return Err(Mistake::new("user", reason));
        }
        Ok(Some(user))
    }
}

/// Whether this process may open as many files as that many commands take.
fn enough_files(commands: usize) -> Result<(), String> {
    let needed = FILES_APART + FILES_EACH * commands as u64;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(format!(
            "{commands} commands at once take {needed} open files, and this process may have {limit}: raise that (ulimit -n, LimitNOFILE=) or run fewer"
        )),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_told_all_at_once_and_good_ones_pass() {
        let args = ActionArgs {
            actions: Some("/no/such/file".into()),
            user: Some("no-such-user".into()),
            max_actions: Some("0".into()),
        };
        let mistakes = args.check(true).unwrap_err();
        let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
        for flag in ["--actions: ", "--user: ", "--max-actions: "] {
            assert!(
                lines.iter().any(|line| line.starts_with(flag)),
                "{flag} in {lines:?}"
            );
        }
        let args = ActionArgs {
            actions: Some(" none ".into()),
            user: None,
            max_actions: Some("3".into()),
        };
        let actions = args.check(false).unwrap();
        assert_eq!((actions.policy, actions.at_once), (Policy::None, 3));
        assert!(!actions.trusted);
    }
}
