//! From what a master orders to what the guard is to run: the words, the environment, the input. PURE.

use super::{Settings, variables};
use crate::payload::from_proto;
use kontrol_proto::v1::{Command, attach_response::Run};
use kontrol_runtime::{
    process::{DEFAULT_PATH, Spec, User},
    service,
};
use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

/// Longest word, and longest `NAME=value`, with its closing NUL, that Linux passes on (MAX_ARG_STRLEN with pages of 4 KiB).
const MAX_WORD_BYTES: usize = 128 * 1024;

/// How long a command has between SIGTERM and SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Whose action it is, as the command is told.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) key: String,
    pub(super) id: String,
}

/// The words of a command; or why they are none.
pub(super) fn words(command: &Command) -> Result<Vec<String>, String> {
    let argv = match (command.argv.is_empty(), command.shell.is_empty()) {
        (false, true) => command.argv.clone(),
        (true, false) => vec!["/bin/sh".into(), "-c".into(), command.shell.clone()],
        (true, true) => return Err("there is no command".to_owned()),
        (false, false) => return Err("there is both argv and shell".to_owned()),
    };
    if argv[0].is_empty() || argv.iter().any(|word| word.contains('\0')) {
        return Err("the command has an empty name or a NUL character".to_owned());
    }
    if argv.iter().any(|word| word.len() >= MAX_WORD_BYTES) {
        return Err(
            "a word of the command has 128 KiB or more, which Linux passes on to no program; give long data as input".to_owned(),
        );
    }
    Ok(argv)
}

/// What the guard is to run; or why it will not be run. Whether it may is the policy's to say.
pub(super) fn spec(
    run: &Run,
    pod: &Pod,
    settings: &Settings,
    inherited: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Spec, String> {
    let command = run.command.as_ref().ok_or("the order says no command")?;
    let argv = words(command)?;
    let input = input(command)?;

    let mut environment: Vec<(OsString, OsString)> = inherited
        .into_iter()
        .filter(|(name, _)| !is_setting(name) && !service::is_own(name))
        .collect();
    if !environment
        .iter()
        .any(|(name, path)| name == "PATH" && !path.is_empty())
    {
        set(&mut environment, "PATH", OsStr::new(DEFAULT_PATH));
    }
    if let Some(user) = &settings.user {
        set(&mut environment, "HOME", user.home.as_os_str());
        set(&mut environment, "USER", OsStr::new(&user.name));
        set(&mut environment, "LOGNAME", OsStr::new(&user.name));
    }
    for (name, value) in &command.env {
        if let Some(why) = variables::unfit(name, !command.shell.is_empty()) {
            return Err(format!("the variables have {name:?}, {why}"));
        }
        if value.contains('\0') {
            return Err(format!("the variable {name} has a NUL character"));
        }
        if name.len() + "=".len() + value.len() >= MAX_WORD_BYTES {
            return Err(format!(
                "the variable {name} has 128 KiB or more, which Linux passes on to no program; give long data as input"
            ));
        }
        set(&mut environment, name, OsStr::new(value));
    }
    environment.retain(|(name, _)| name != "INPUT");
    if let Some(input) = &input
        && "INPUT=".len() + input.len() < MAX_WORD_BYTES
    {
        set(&mut environment, "INPUT", OsStr::new(input));
    }
    for (name, value) in [
        ("KONTROL_ACTION", &run.action_id),
        ("KONTROL_KEY", &pod.key),
        ("KONTROL_ID", &pod.id),
    ] {
        set(&mut environment, name, OsStr::new(value));
    }
    Ok(Spec {
        guard: settings.guard.clone(),
        environment: Some(environment),
        // A line, as `read` wants it.
        input: input.map(|input| format!("{input}\n").into_bytes()),
        user: settings
            .user
            .clone()
            .filter(|user: &User| !user.is_current()),
        ..Spec::new(
            "kontrol-slave",
            argv.into_iter().map(OsString::from).collect(),
            GRACE,
        )
    })
}

/// The input as text: masters pass it on so, and older ones as a value.
pub(super) fn input(command: &Command) -> Result<Option<String>, String> {
    if !command.input_json.is_empty() {
        let text = String::from_utf8(command.input_json.to_vec());
        return text
            .map(Some)
            .map_err(|_| "the input is not UTF-8".to_owned());
    }
    let value = command.input.clone().map(from_proto).transpose();
    let value = value.map_err(|error| format!("the input {error}"))?;
    Ok(value.map(|value| value.to_string()))
}

/// How much memory it takes until it runs.
pub(super) fn bytes(spec: &Spec) -> usize {
    let words = spec.argv.iter().map(|word| word.len());
    let environment = spec.environment.iter().flatten();
    let variables = environment.map(|(name, value)| name.len() + value.len());
    words.chain(variables).sum::<usize>() + spec.input.as_ref().map_or(0, Vec::len)
}

/// The slave's own settings, secrets among them, are none of the command's business.
fn is_setting(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("KONTROL_") || name == "NAMESPACE"
}

fn set(environment: &mut Vec<(OsString, OsString)>, name: &str, value: &OsStr) {
    environment.retain(|(other, _)| other != name);
    environment.push((name.into(), value.into()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::to_proto;
    use serde_json::json;
    use std::collections::HashMap;

    fn settings() -> Settings {
        Settings::default()
    }

    fn run(command: Command) -> Run {
        Run {
            action_id: "a1".into(),
            command: Some(command),
            ..Run::default()
        }
    }

    fn shell(text: &str) -> Command {
        Command {
            shell: text.into(),
            ..Command::default()
        }
    }

    fn made(
        command: Command,
        settings: &Settings,
        inherited: &[(&str, &str)],
    ) -> Result<Spec, String> {
        let pod = Pod {
            key: "k".into(),
            id: "pod".into(),
        };
        let inherited = inherited
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        spec(&run(command), &pod, settings, inherited)
    }

    fn value(spec: &Spec, name: &str) -> Option<String> {
        let environment = spec.environment.as_ref().unwrap();
        let mut values = environment.iter().filter(|(other, _)| other == name);
        let value = values
            .next()
            .map(|(_, value)| value.to_str().unwrap().to_owned());
        assert!(values.next().is_none(), "{name} is there twice");
        value
    }

    #[test]
    fn nothing_of_the_slave_gets_into_the_environment_but_what_is_not_its_own() {
        let command = Command {
            env: HashMap::from([
                ("A".into(), "2".into()),
                ("KONTROL_TOKEN".into(), "x".into()),
            ]),
            input: Some(to_proto(&json!({"a": 1}))),
            ..shell("true")
        };
        let inherited = [
            ("KONTROL_TOKEN", "secret"),
            ("KONTROL_ACTIONS", "any"),
            ("NAMESPACE", "n"),
            ("NOTIFY_SOCKET", "/run/n"),
            ("A", "1"),
            ("HOME", "/root"),
            ("INPUT", "old"),
        ];
        let spec = made(command, &settings(), &inherited).unwrap();
        assert_eq!(spec.argv, ["/bin/sh", "-c", "true"]);
        assert_eq!(spec.guard_environment, []);
        for name in ["KONTROL_ACTIONS", "NAMESPACE", "NOTIFY_SOCKET"] {
            assert_eq!(value(&spec, name), None, "{name}");
        }
        for (name, expected) in [
            ("A", "2"),
            ("KONTROL_TOKEN", "x"),
            ("HOME", "/root"),
            ("PATH", DEFAULT_PATH),
            ("INPUT", r#"{"a":1}"#),
            ("KONTROL_ACTION", "a1"),
            ("KONTROL_KEY", "k"),
            ("KONTROL_ID", "pod"),
        ] {
            assert_eq!(value(&spec, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(spec.input.as_deref(), Some(b"{\"a\":1}\n".as_slice()));
    }

    #[test]
    fn an_input_that_comes_as_text_is_handed_on_as_it_is() {
        let text = r#"{"b":1.0,"a":"é"}"#;
        let with = |bytes: &'static [u8]| Command {
            input_json: bytes.into(),
            ..shell("true")
        };
        let spec = made(with(text.as_bytes()), &settings(), &[]).unwrap();
        assert_eq!(value(&spec, "INPUT").as_deref(), Some(text));
        assert_eq!(spec.input.unwrap(), format!("{text}\n").into_bytes());
        let reason = made(with(b"\"\xff\""), &settings(), &[]).unwrap_err();
        assert_eq!(reason, "the input is not UTF-8");
    }

    #[test]
    fn an_input_that_no_variable_holds_is_left_to_standard_input() {
        let long = "x".repeat(MAX_WORD_BYTES);
        let command = Command {
            input: Some(to_proto(&json!(long))),
            ..shell("true")
        };
        let spec = made(command, &settings(), &[]).unwrap();
        assert_eq!(value(&spec, "INPUT"), None);
        assert_eq!(spec.input.unwrap().len(), long.len() + 3);
    }

    #[test]
    fn what_is_refused_says_why() {
        let both = Command {
            argv: vec!["true".into()],
            ..shell("true")
        };
        let argv = |words: &[&str]| Command {
            argv: words.iter().map(|word| (*word).to_owned()).collect(),
            ..Command::default()
        };
        let env = |name: &str| Command {
            env: HashMap::from([(name.into(), String::new())]),
            ..shell("true")
        };
        for (command, said) in [
            (Command::default(), "no command"),
            (both, "both"),
            (argv(&[""]), "empty name"),
            (argv(&["a", "b\0"]), "NUL"),
            (env("A=B"), "variable"),
            (env(""), "variable"),
            (env("KONTROL_ID"), "itself"),
            (env("INPUT"), "itself"),
            (env("a.b"), "shell"),
        ] {
            let reason = made(command, &settings(), &[]).unwrap_err();
            assert!(reason.contains(said), "{reason}");
        }
    }
}
