//! A dispatch, checked: what a caller asked for within its limits, or the field that is wrong.

use kontrol_core::{
    json,
    limits::Limits,
    model::{
        Invalid, PodKey, Selector,
        action::{CommandRecord, Selection},
        invalid::{clip, key},
    },
    strict::{self, Numbers},
};
use kontrol_proto::v1::{Command, DispatchRequest};
use kontrol_slave::{action::variables, payload::from_proto};
use prost::Message;
use std::{borrow::Cow, time::Duration};

/// How long a command may run unless the caller says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a caller may let it run.
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most bytes of each stream that are passed on unless the caller says otherwise.
const DEFAULT_OUTPUT: u64 = 1024 * 1024;
/// Most that a caller may ask for.
const MAX_OUTPUT: u64 = 1024 * 1024 * 1024;
/// Longest command, with its variables.
const MAX_COMMAND_BYTES: usize = 512 * 1024;
/// Longest argument that Linux passes on, with its closing NUL (MAX_ARG_STRLEN with pages of 4 KiB).
const MAX_ARGUMENT_BYTES: usize = 128 * 1024;
/// Largest input, in bytes of JSON.
const MAX_INPUT_BYTES: usize = 1024 * 1024;
/// How much of a command the history keeps.
const KEPT_COMMAND_BYTES: usize = 16 * 1024;
/// Longest selector: each master keeps it for as long as the history does.
const MAX_SELECTOR_BYTES: usize = 128 * 1024;

/// A dispatch, checked.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) selection: Selection,
    pub(super) keys: Vec<PodKey>,
    pub(super) labels: Selector,
    pub(super) command: Command,
    pub(super) timeout: Duration,
    pub(super) max_output: u64,
    /// How many targets work on it at a time.
    pub(super) concurrency: usize,
    /// 0: no limit.
    pub(super) max_failures: u32,
    pub(super) detach: bool,
}

impl Request {
    /// Checks a dispatch.
    pub(super) fn new(request: DispatchRequest) -> Result<Self, Invalid> {
        let selector = request.selector.unwrap_or_default();
        let named = selector.keys.len() + selector.ids.len();
        let bytes = selector.encoded_len();
        if bytes > MAX_SELECTOR_BYTES {
            let reason = format!(
                "has {bytes} bytes, and {MAX_SELECTOR_BYTES} are the limit: choose by role or label, or dispatch several actions"
            );
            return Err(Invalid::new("selector", reason));
        }
        let selection = Selection {
            keys: selector.keys,
            ids: selector.ids,
            roles: selector.roles,
            labels: selector.labels.trim().to_owned(),
            all: selector.all,
        };
        let chosen = named > 0 || !selection.roles.is_empty() || !selection.labels.is_empty();
        if selection.all == chosen {
            let reason = if chosen {
                "says `all` and something else: `all` goes alone"
            } else {
                "is required: give keys, ids, roles, labels, or all"
            };
            return Err(Invalid::new("selector", reason));
        }
        let keys = selection.keys.iter().map(|text| key("selector.keys", text));
        let labels = selection.labels.parse();
        let concurrency = match request.concurrency {
            0 => usize::MAX,
            some => usize::try_from(some).unwrap_or(usize::MAX),
        };
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
            labels: labels.map_err(|error| Invalid::new("selector.labels", error))?,
            selection,
            command: command(request.command.unwrap_or_default())?,
            timeout: timeout(request.timeout)?,
            max_output: match request.max_output {
                0 => DEFAULT_OUTPUT,
                some if some <= MAX_OUTPUT => some,
                some => {
                    let reason = format!("is {some}, and {MAX_OUTPUT} is the limit");
                    return Err(Invalid::new("max_output", reason));
                }
            },
            concurrency,
            max_failures: request.max_failures,
            detach: request.detach,
        })
    }

    /// Checks the input against what this master takes.
    pub(super) fn check_depth(&self, limits: &Limits) -> Result<(), Invalid> {
        // It was made text of JSON here.
        let text = str::from_utf8(&self.command.input_json).unwrap_or_default();
        match limits.too_deep(json::depth_of_text(text)) {
            None => Ok(()),
            Some(reason) => Err(Invalid::new("command.input", reason)),
        }
    }

    /// What the history keeps of the command.
    pub(super) fn record(&self) -> CommandRecord {
        let mut room = KEPT_COMMAND_BYTES;
        let mut keep = |text: &String| {
            let mut end = text.len().min(room);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            room -= end;
            let cut = if end < text.len() { "…" } else { "" };
            format!("{}{cut}", &text[..end])
        };
        let mut env: Vec<String> = self.command.env.keys().cloned().collect();
        env.sort_unstable();
        CommandRecord {
            argv: self.command.argv.iter().map(&mut keep).collect(),
            shell: keep(&self.command.shell),
            env: env.iter().map(&mut keep).collect(),
        }
    }
}

fn timeout(timeout: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let Some(timeout) = timeout else {
        return Ok(DEFAULT_TIMEOUT);
    };
    let timeout = Duration::try_from(timeout).unwrap_or_default();
    if timeout.is_zero() {
        return Err(Invalid::new("timeout", "must be longer than nothing"));
    }
    if timeout > MAX_TIMEOUT {
        let days = MAX_TIMEOUT.as_secs() / 86_400;
        return Err(Invalid::new(
            "timeout",
            format!("is longer than {days} days"),
        ));
    }
    Ok(timeout)
}

fn command(mut command: Command) -> Result<Command, Invalid> {
    let shell = !command.shell.is_empty();
    if shell != command.argv.is_empty() {
        let reason = if shell {
            "has both argv and shell: give one of them"
        } else {
            "is required: give argv or shell"
        };
        return Err(Invalid::new("command", reason));
    }
    if command.argv.first().is_some_and(String::is_empty) {
        let reason = "begins with an empty text: the first one is the program";
        return Err(Invalid::new("command.argv", reason));
    }
    let arguments = command.argv.iter().chain([&command.shell]);
    let variables = command.env.iter();
    let mut bytes = 0;
    for text in arguments {
        check("command", text, text.len())?;
        bytes += text.len();
    }
    for (name, value) in variables {
        if let Some(why) = variables::unfit(name, shell) {
            let reason = format!("has {:?}, {why}", clip(name));
            return Err(Invalid::new("command.env", reason));
        }
        check("command.env", name, 0)?;
        check("command.env", value, name.len() + 1 + value.len())?;
        bytes += name.len() + value.len();
    }
    if bytes > MAX_COMMAND_BYTES {
        let reason =
            format!("has {bytes} bytes, and {MAX_COMMAND_BYTES} are the limit: give data as input");
        return Err(Invalid::new("command", reason));
    }
    let input = input(command.input.take(), &command.input_json)?;
    command.input_json = input.into();
    Ok(command)
}

/// The input as text, however it came; empty when there is none.
fn input(value: Option<prost_types::Value>, text: &[u8]) -> Result<Vec<u8>, Invalid> {
    const FIELD: &str = "command.input";
    let given = match (value, text) {
        (None, []) => return Ok(Vec::new()),
        (Some(value), []) => {
            let value = from_proto(value).map_err(|error| Invalid::new(FIELD, error))?;
            Cow::Owned(json::canonical(&value))
        }
        (None, text) => Cow::Borrowed(text),
        (Some(_), _) => return Err(Invalid::new(FIELD, "is given twice: give it or input_json")),
    };
    let checked = strict::exact(&given, Numbers::Exact);
    let text = checked.map_err(|fault| match fault.path.as_str() {
        _ if fault.malformed => Invalid::new("command.input_json", format!("is not JSON: {fault}")),
        "" => Invalid::new(FIELD, fault.reason),
        path => Invalid::new(format!("{FIELD}.{path}"), fault.reason),
    })?;
    if text.len() > MAX_INPUT_BYTES {
        let reason = format!(
            "has {} bytes of JSON, and {MAX_INPUT_BYTES} are the limit",
            text.len()
        );
        return Err(Invalid::new(FIELD, reason));
    }
    Ok(text.into_bytes())
}

fn check(field: &str, text: &str, bytes: usize) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(field, "has a NUL character"));
    }
    if bytes >= MAX_ARGUMENT_BYTES {
        let reason = format!(
            "has a text of {bytes} bytes, and Linux passes on less than {MAX_ARGUMENT_BYTES}: give data as input"
        );
        return Err(Invalid::new(field, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_proto::v1::Selector as Wanted;
    use kontrol_slave::payload::to_proto;
    use std::collections::HashMap;

    fn all() -> DispatchRequest {
        DispatchRequest {
            selector: Some(Wanted {
                all: true,
                ..Wanted::default()
            }),
            command: Some(Command {
                argv: vec!["true".into()],
                ..Command::default()
            }),
            ..DispatchRequest::default()
        }
    }

    fn with(change: impl FnOnce(&mut DispatchRequest)) -> Result<Request, Invalid> {
        let mut request = all();
        change(&mut request);
        Request::new(request)
    }

    fn command_with(change: impl FnOnce(&mut Command)) -> Result<Request, Invalid> {
        with(|request| change(request.command.get_or_insert_default()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let request = Request::new(all()).unwrap();
        assert_eq!(
            (request.timeout, request.max_output),
            (DEFAULT_TIMEOUT, DEFAULT_OUTPUT)
        );
        assert_eq!((request.concurrency, request.max_failures), (usize::MAX, 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(MAX_ARGUMENT_BYTES);
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        for (wrong, field, said) in [
            (with(|r| r.selector = None), "selector", "is required"),
            (
                with(|r| r.selector.as_mut().unwrap().ids = vec!["a".into()]),
                "selector",
                "goes alone",
            ),
            (
                with(|r| {
                    r.selector = Some(Wanted {
                        keys: vec!["!".into()],
                        ..Wanted::default()
                    })
                }),
                "selector.keys",
                "\"!\"",
            ),
            (
                with(|r| {
                    r.selector = Some(Wanted {
                        labels: "a in".into(),
                        ..Wanted::default()
                    })
                }),
                "selector.labels",
                "",
            ),
            (with(|r| r.command = None), "command", "is required"),
            (command_with(|c| c.shell = "x".into()), "command", "both"),
            (
                command_with(|c| c.argv = vec![String::new()]),
                "command.argv",
                "program",
            ),
            (
                command_with(|c| c.argv.push("a\0".into())),
                "command",
                "NUL",
            ),
            (
                command_with(|c| c.argv.push(long.clone())),
                "command",
                "Linux",
            ),
            (
                command_with(|c| c.argv.extend(vec!["x".repeat(100_000); 6])),
                "command",
                "input",
            ),
            (
                command_with(|c| c.env = HashMap::from([("A=B".into(), String::new())])),
                "command.env",
                "name",
            ),
            (
                command_with(|c| c.env = HashMap::from([("A".into(), "b\0".into())])),
                "command.env",
                "NUL",
            ),
            (
                command_with(|c| c.env = HashMap::from([("KONTROL_ID".into(), "x".into())])),
                "command.env",
                "\"KONTROL_ID\", which kontrol itself sets",
            ),
            (
                command_with(|c| {
                    c.argv.clear();
                    c.shell = "true".into();
                    c.env = HashMap::from([("app.name".into(), "x".into())]);
                }),
                "command.env",
                "shell",
            ),
            (
                with(|r| r.timeout = seconds(0)),
                "timeout",
                "longer than nothing",
            ),
            (
                with(|r| r.timeout = seconds(-1)),
                "timeout",
                "longer than nothing",
            ),
            (
                with(|r| r.timeout = seconds(8 * 86_400)),
                "timeout",
                "7 days",
            ),
            (
                with(|r| r.max_output = MAX_OUTPUT + 1),
                "max_output",
                "limit",
            ),
        ] {
            let invalid = wrong.unwrap_err();
            assert_eq!(invalid.field, field, "{invalid}");
            assert!(invalid.reason.contains(said), "{invalid}");
        }
    }

    #[test]
    fn a_variable_that_reaches_the_command_is_taken() {
        for name in [
            "KONTROL_TOKEN",
            "NAMESPACE",
            "PATH",
            "HOME",
            "app.name",
            "é",
            "PWD",
        ] {
            let env = HashMap::from([(name.to_owned(), "x".to_owned())]);
            let request = command_with(|c| c.env.clone_from(&env)).unwrap();
            assert_eq!(request.command.env, env);
        }
    }

    #[test]
    fn an_input_comes_as_a_value_or_as_text_and_goes_on_as_text() {
        let text = |text: &str| input(None, text.as_bytes());
        let value = |value: serde_json::Value| input(Some(to_proto(&value)), b"");
        let (large, deep) = ("x".repeat(1024 * 1024), "[".repeat(31) + &"]".repeat(31));
        assert_eq!(input(None, b"").unwrap(), b"");
        assert_eq!(
            text(r#" {"b":1.0, "a":[ ]}"#).unwrap(),
            br#"{"b":1.0,"a":[]}"#
        );
        assert_eq!(
            value(serde_json::json!({"b": 1, "a": []})).unwrap(),
            br#"{"a":[],"b":1}"#
        );
        assert_eq!(value(serde_json::Value::Null).unwrap(), b"null");
        let longest = "x".repeat(MAX_INPUT_BYTES - 2);
        assert_eq!(value(longest.into()).unwrap().len(), MAX_INPUT_BYTES);
        let both = input(Some(to_proto(&serde_json::Value::Null)), b"null");
        for (refused, field, said) in [
            (both, "command.input", "is given twice"),
            (text("{"), "command.input_json", "EOF"),
            (text("\u{1}"), "command.input_json", "expected value"),
            (
                text(r#"{"a":[{"id":9007199254740993}]}"#),
                "command.input.a[0].id",
                "does not fit a double",
            ),
            (
                text(r#"{"a":1,"a":1}"#),
                "command.input.a",
                "is given twice",
            ),
            (text(&deep), "command.input", "nests too deeply"),
            (
                text(&format!("{large:?}")),
                "command.input",
                "1048576 are the limit",
            ),
            (
                value(large.into()),
                "command.input",
                "1048576 are the limit",
            ),
        ] {
            let invalid = refused.unwrap_err();
            assert!(invalid.field.starts_with(field), "{invalid}");
            assert!(invalid.reason.contains(said), "{invalid}");
        }
    }

    #[test]
    fn the_history_keeps_no_values_of_variables_and_the_start_of_a_long_command() {
        let request = command_with(|c| {
            c.argv.push("é".repeat(KEPT_COMMAND_BYTES));
            c.env = HashMap::from([("TOKEN".into(), "secret".into())]);
            c.input = Some(prost_types::Value {
                kind: Some(prost_types::value::Kind::BoolValue(true)),
            });
        });
        let record = request.unwrap().record();
        assert_eq!(record.argv[0], "true");
        assert!(record.argv[1].ends_with('…') && record.argv[1].len() <= KEPT_COMMAND_BYTES + 3);
        assert_eq!(record.env, ["…"], "no room was left for the name");
        assert!(!serde_json::to_string(&record).unwrap().contains("secret"));
    }
}
