//! How an action reads: what runs, for which pods, by whom, and what became of it.

use super::super::text::{NOTHING, clean, or_nothing, proto_span, shorten};
use kontrol_proto::v1::{Action, ActionResult, ActionSummary, Command, Outcome, Selector};
use prost_types::Duration as ProtoDuration;

/// The principal that dispatched an action, where masters ask who calls: `ann (operator)`. Names of principals have no spaces.
pub(crate) fn principal(dispatcher: &str) -> Option<&str> {
    let (name, rest) = dispatcher.split_once(" (")?;
    let (role, _) = rest.split_once(')')?;
    let is_role = ["slave", "reader", "operator", "peer"].contains(&role);
    (is_role && !name.contains(' ')).then(|| &dispatcher[..name.len() + role.len() + 3])
}

/// Longest command within a line, in characters.
const MAX_COMMAND: usize = 60;
/// Longest name of who dispatched, in characters.
const MAX_WHO: usize = 40;

/// What runs, as one would type it, cut to fit into a line.
pub(in super::super) fn short_command(action: &Action) -> String {
    shorten(&command(action.command.as_ref()), MAX_COMMAND)
}

/// What runs, as one would type it.
pub(super) fn command(command: Option<&Command>) -> String {
    let words: Vec<&str> = match command {
        None => return NOTHING.to_owned(),
        Some(command) if command.shell.is_empty() => {
            command.argv.iter().map(String::as_str).collect()
        }
        Some(command) => vec!["sh", "-c", &command.shell],
    };
    // Nothing quotes a NUL.
    let text = shlex::try_join(words.iter().copied()).unwrap_or_else(|_| words.join(" "));
    or_nothing(&text.replace(['\n', '\t'], " "))
}

/// Which pods an action is for.
pub(super) fn selector(selector: Option<&Selector>) -> String {
    let Some(selector) = selector else {
        return NOTHING.to_owned();
    };
    if selector.all {
        return "every pod".to_owned();
    }
    let conditions = [
        ("keys", selector.keys.join(", ")),
        ("ids", selector.ids.join(", ")),
        ("roles", selector.roles.join(", ")),
        ("labels", selector.labels.clone()),
    ];
    let given: Vec<String> = conditions
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {names}"))
        .collect();
    or_nothing(&given.join("; "))
}

/// Who dispatched an action: `user@host` where the client says so, as this one does, else all that is known.
pub(in super::super) fn who(dispatcher: &str) -> String {
    let user = dispatcher.split(['(', ')']).find(|part| part.contains('@'));
    shorten(&or_nothing(user.unwrap_or(dispatcher)), MAX_WHO)
}

/// How many targets.
pub(in super::super) fn targets(count: u32) -> String {
    match count {
        1 => "1 target".to_owned(),
        count => format!("{count} targets"),
    }
}

/// How an action went: `200 targets: 198 ok, 1 failed, 1 unreachable in 2.3s`.
pub(in super::super) fn outcome(summary: &ActionSummary) -> String {
    let counts = [
        (summary.succeeded, "ok"),
        (summary.failed, "failed"),
        (summary.timed_out, "timed out"),
        (summary.cancelled, "cancelled"),
        (summary.refused, "refused"),
        (summary.unreachable, "unreachable"),
        (summary.lost, "lost"),
    ];
    let ended = counts
        .iter()
        .fold(0, |sum: u32, (count, _)| sum.saturating_add(*count));
    let open = (summary.targets.saturating_sub(ended), "not ended");
    let counts: Vec<String> = counts
        .into_iter()
        .chain([open])
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut text = targets(summary.targets);
    if !counts.is_empty() {
        text = format!("{text}: {}", counts.join(", "));
    }
    if summary.duration.is_some() {
        text = format!("{text} in {}", proto_span(summary.duration.as_ref()));
    }
    if summary.stopped {
        text += "; too many failed, so the rest did not start";
    }
    text
}

/// What became of the command on a target: `exit code 3`, `timed out after 1m`, `refused: too many commands`.
pub(in super::super) fn ending(result: &ActionResult, timeout: Option<&ProtoDuration>) -> String {
    let ending = match result.outcome() {
        Outcome::Unspecified => "not ended".to_owned(),
        Outcome::Exited if result.signal != 0 => {
            match signal_hook::low_level::signal_name(result.signal) {
                Some(name) => format!("ended by {name}"),
                None => format!("ended by signal {}", result.signal),
            }
        }
        Outcome::Exited => format!("exit code {}", result.exit_code),
        Outcome::TimedOut => format!("timed out after {}", proto_span(timeout)),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::Refused => "refused".to_owned(),
        Outcome::Unreachable => "unreachable".to_owned(),
        Outcome::Lost => "lost".to_owned(),
    };
    if result.error.is_empty() || result.outcome() == Outcome::TimedOut {
        ending
    } else {
        format!("{ending}: {}", clean(&result.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_it_is_typed() {
        let argv = |words: &[&str]| Command {
            argv: words.iter().map(|word| (*word).to_owned()).collect(),
            ..Command::default()
        };
        let shell = |text: &str| Command {
            shell: text.to_owned(),
            ..Command::default()
        };
        for (given, text) in [
            (argv(&["df", "-h", "/a b"]), "df -h '/a b'"),
            (argv(&["a\0", "b"]), "a\u{fffd} b"),
            (argv(&[]), "-"),
            (shell("a |\nb\u{1b}"), "sh -c 'a | b\u{fffd}'"),
        ] {
            assert_eq!(command(Some(&given)), text);
        }
        let action = Action {
            command: Some(argv(&["x".repeat(99).as_str()])),
            ..Action::default()
        };
        assert_eq!(short_command(&action).chars().count(), MAX_COMMAND + 1);
    }

    #[test]
    fn a_selector_tells_each_condition() {
        let mut conditions = Selector {
            roles: vec!["web".to_owned(), "db".to_owned()],
            labels: "tier=a".to_owned(),
            ..Selector::default()
        };
        assert_eq!(selector(Some(&conditions)), "roles web, db; labels tier=a");
        conditions.all = true;
        assert_eq!(selector(Some(&conditions)), "every pod");
        assert_eq!(selector(Some(&Selector::default())), "-");
    }

    #[test]
    fn who_dispatched_is_the_user_where_the_client_names_one() {
        let ours = "10.0.0.9:4711 kontrol-master/0.1.0 (ann@desk) tonic/0.14.9";
        assert_eq!(who(ours), "ann@desk");
        assert_eq!(who("10.0.0.9:4711 curl/8.1"), "10.0.0.9:4711 curl/8.1");
        assert_eq!(who(""), "-");
    }

    #[test]
    fn an_outcome_tells_each_count_that_is_not_zero() {
        let mut summary = ActionSummary {
            targets: 200,
            succeeded: 198,
            failed: 1,
            unreachable: 1,
            duration: Some(ProtoDuration {
                seconds: 2,
                nanos: 300_000_000,
            }),
            ..ActionSummary::default()
        };
        assert_eq!(
            outcome(&summary),
            "200 targets: 198 ok, 1 failed, 1 unreachable in 2.3s"
        );
        summary.failed = 0;
        summary.cancelled = 1;
        summary.stopped = true;
        summary.targets = 201;
        summary.duration = None;
        assert_eq!(
            outcome(&summary),
            "201 targets: 198 ok, 1 cancelled, 1 unreachable, 1 not ended; \
             too many failed, so the rest did not start"
        );
        assert_eq!(outcome(&ActionSummary::default()), "0 targets");
    }

    #[test]
    fn an_ending_tells_what_and_why() {
        let minute = ProtoDuration {
            seconds: 60,
            nanos: 0,
        };
        for (outcome, exit_code, signal, error, text) in [
            (Outcome::Exited, 3, 0, "", "exit code 3"),
            (Outcome::Exited, 137, 9, "", "ended by SIGKILL"),
            (Outcome::Exited, 168, 40, "", "ended by signal 40"),
            (Outcome::TimedOut, -1, 0, "too late", "timed out after 1m"),
            (Outcome::Cancelled, -1, 0, "", "cancelled"),
            (Outcome::Refused, -1, 0, "no\n", "refused: no\u{fffd}"),
            (Outcome::Unspecified, 0, 0, "", "not ended"),
        ] {
            let result = ActionResult {
                outcome: outcome.into(),
                exit_code,
                signal,
                error: error.to_owned(),
                ..ActionResult::default()
            };
            assert_eq!(ending(&result, Some(&minute)), text);
        }
    }

    #[test]
    fn the_principal_is_told_from_an_address() {
        let agent = "127.0.0.1 kontrol-master/0.1.0 (root@host)";
        assert_eq!(principal(agent), None);
        assert_eq!(
            principal(&format!("ann (operator) {agent}")),
            Some("ann (operator)")
        );
        for other in ["", "ann (root) x", "a b (operator)"] {
            assert_eq!(principal(other), None, "{other}");
        }
    }
}
