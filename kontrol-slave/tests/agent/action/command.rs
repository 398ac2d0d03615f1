//! What a command finds, and what is told of it.

use super::{Pair, config};
use crate::master::channel::{Taken, argv, run, shell, within};
use kontrol_proto::v1::{Command, Outcome};
use kontrol_runtime::process::User;
use kontrol_slave::{action::Settings, payload::to_proto};
use serde_json::json;
use std::{collections::HashMap, fs, io::Write, os::unix::fs::PermissionsExt, time::Duration};

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let mut pair = Pair::start().await;
    let taken = pair
        .channel
        .whole(shell("a1", "echo out; echo err >&2; exit 3"))
        .await;
    assert_eq!((taken.out(), taken.err()), ("out\n", "err\n"));
    assert_eq!(taken.outcome(), (Outcome::Exited, 3));
    let result = taken.result();
    assert_eq!(
        (result.stdout_bytes, result.stderr_bytes, result.truncated),
        (4, 4, false)
    );
    assert_eq!((result.signal, result.error.as_str()), (0, ""));
    assert!(result.duration.is_some());
    let killed = pair.channel.whole(shell("a2", "kill -SEGV $$")).await;
    assert_eq!(
        (killed.outcome(), killed.result().signal),
        ((Outcome::Exited, 139), 11)
    );
    pair.stop().await;
}

#[tokio::test]
async fn output_may_be_anything_and_need_not_end_a_line() {
    let mut pair = Pair::start().await;
    let taken = pair
        .channel
        .whole(shell("a1", r"printf '\0\377\r\n\001'; printf '\200' >&2"))
        .await;
    assert_eq!(
        (&taken.stdout[..], &taken.stderr[..]),
        (&b"\0\xff\r\n\x01"[..], &b"\x80"[..])
    );
    pair.stop().await;
}

#[tokio::test]
async fn the_environment_is_the_slaves_without_its_settings() {
    let mut pair = Pair::start().await;
    let command = Command {
        argv: vec!["env".into()],
        env: HashMap::from([("GREETING".into(), "a=b\nc".into())]),
        input: Some(to_proto(&json!({"n": 1}))),
        ..Command::default()
    };
    let taken = pair.channel.whole(run("a1", command)).await;
    let lines: Vec<&str> = taken.out().lines().collect();
    for line in [
        "GREETING=a=b",
        "c",
        "INPUT={\"n\":1}",
        "KONTROL_ACTION=a1",
        "KONTROL_KEY=2kce4N",
        "KONTROL_ID=web-1",
    ] {
        assert!(lines.contains(&line), "{line} in {lines:?}");
    }
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.starts_with("KONTROL_"))
            .count(),
        3
    );
    assert!(lines.iter().any(|line| line.starts_with("PATH=")));
    pair.stop().await;
}

#[tokio::test]
async fn input_comes_on_standard_input_which_is_empty_without() {
    let mut pair = Pair::start().await;
    // Longer than a variable, a pipe, or a socket holds.
    let long = "x".repeat(1_000_000);
    let command = |input: Option<&serde_json::Value>| Command {
        shell: r#"cat; printf "%s" "${INPUT-none}""#.into(),
        input: input.map(to_proto),
        ..Command::default()
    };
    let taken = pair
        .channel
        .whole(run("a1", command(Some(&json!(long)))))
        .await;
    assert_eq!(taken.out(), format!("\"{long}\"\nnone"));
    let taken = pair.channel.whole(run("a2", command(None))).await;
    assert_eq!(taken.out(), "none");
    pair.stop().await;
}

#[tokio::test]
async fn a_command_has_its_streams_and_nothing_else_and_gains_no_privileges() {
    let mut pair = Pair::start().await;
    let text =
        "ls /proc/self/fd; grep NoNewPrivs /proc/self/status >&2; ps -o pid=,pgid= -p $$ >&2";
    let taken = pair.channel.whole(shell("a1", text)).await;
    // The last is that of ls itself, on the folder.
    assert_eq!(taken.out(), "0\n1\n2\n3\n");
    let mut lines = taken.err().lines();
    assert_eq!(lines.next(), Some("NoNewPrivs:\t1"));
    let ids: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(ids[0], ids[1], "it leads a process group");
    pair.stop().await;
}

#[tokio::test]
async fn what_is_not_found_or_not_executable_ends_as_in_a_shell() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let plain = plain.to_str().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).unwrap();
    let empty = empty.to_str().unwrap();
    for (id, program, code, said) in [
        (
            "a1",
            "no-such-program",
            127,
            "kontrol: there is no program no-such-program in PATH\n".to_owned(),
        ),
        (
            "a2",
            "/no/such/file",
            127,
            "kontrol: there is no file /no/such/file\n".to_owned(),
        ),
        (
            "a3",
            plain,
            126,
            format!("kontrol: this user may not execute {plain}, or the interpreter it names\n"),
        ),
        (
            "a4",
            empty,
            126,
            format!(
                "kontrol: {empty} has no first line that names its interpreter, such as #!/bin/sh\n"
            ),
        ),
    ] {
        let taken = pair.channel.whole(argv(id, &[program])).await;
        assert_eq!(taken.outcome(), (Outcome::Exited, code), "{program}");
        assert_eq!(taken.err(), said);
    }
    pair.stop().await;
}

#[tokio::test]
async fn commands_run_as_the_user_at_home() {
    if !rustix::process::geteuid().is_root() {
        let mut stderr = std::io::stderr().lock();
        writeln!(
            stderr,
            "SKIPPED commands_run_as_the_user_at_home: only root can be somebody else"
        )
        .unwrap();
        return;
    }
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = User::find("nobody").unwrap();
    let user = |home: &std::path::Path| User {
        home: home.into(),
        ..nobody.clone()
    };
    let config = Settings {
        user: Some(user(home.path())),
        ..config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    let text =
        "id -u; id -G; echo $USER $LOGNAME $HOME; pwd; echo opened > /dev/stderr; cat /dev/stdin";
    let command = Command {
        shell: text.into(),
        input: Some(to_proto(&json!(7))),
        ..Command::default()
    };
    let taken = pair.channel.whole(run("a1", command)).await;
    let home = home.path().display();
    let id = |flag| {
        let id = std::process::Command::new("id")
            .args([flag, "nobody"])
            .output();
        String::from_utf8(id.unwrap().stdout).unwrap()
    };
    let (uid, groups) = (id("-u"), id("-G"));
    let expected = format!("{uid}{groups}nobody nobody {home}\n{home}\n7\n");
    assert_eq!((taken.out(), taken.err()), (expected.as_str(), "opened\n"));
    // Its guard is out of its reach.
    let taken = pair.channel.whole(shell("a2", "kill -9 $PPID")).await;
    assert!(
        taken.err().to_lowercase().contains("not permitted"),
        "{}",
        taken.err()
    );
    pair.stop().await;

    let config = Settings {
        user: Some(user("/no/such/home".as_ref())),
        ..super::config()
    };
    let mut pair = Pair::start_with(Some(config)).await;
    assert_eq!(pair.channel.whole(shell("a1", "pwd")).await.out(), "/\n");
    pair.stop().await;
}

#[tokio::test]
async fn output_beyond_the_limit_is_thrown_away_and_marked() {
    let mut pair = Pair::start().await;
    let order = kontrol_proto::v1::attach_response::Run {
        max_output: 1000,
        ..shell("a1", "head -c 5000000 /dev/zero; echo short >&2")
    };
    let taken = pair.channel.whole(order).await;
    assert_eq!((taken.stdout.len(), taken.err()), (1000, "short\n"));
    assert_eq!(taken.truncated, [true, false]);
    let result = taken.result();
    assert_eq!((result.stdout_bytes, result.truncated), (5_000_000, true));
    assert_eq!(taken.outcome(), (Outcome::Exited, 0));
    pair.stop().await;
}

#[tokio::test]
async fn a_full_window_holds_the_command_until_there_is_credit() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("written");
    let text = format!("head -c 300000 /dev/zero; touch {}", mark.display());
    let order = kontrol_proto::v1::attach_response::Run {
        window: 100_000,
        ..shell("a1", &text)
    };
    pair.channel.run(order).await;
    let mut taken = Taken::default();
    while taken.stdout.len() < 100_000 {
        taken.take(pair.channel.next().await.unwrap());
    }
    assert!(pair.channel.is_silent().await);
    assert_eq!(taken.stdout.len(), 100_000);
    assert!(!mark.exists(), "the command waits");
    pair.channel.credit("a1", taken.offsets()).await;
    pair.channel.finish("a1", &mut taken).await;
    assert_eq!(taken.stdout.len(), 300_000);
    assert!(mark.exists());
    pair.stop().await;
}

#[tokio::test]
async fn a_command_that_closes_its_output_goes_on() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "exec >&- 2>&-; while [ ! -e {}/go ]; do sleep 0.01; done; exit 5",
        folder.path().display()
    );
    pair.channel.run(shell("a1", &text)).await;
    let mut taken = Taken::default();
    pair.channel.step("a1", &mut taken).await;
    assert!(pair.channel.is_silent().await && taken.started);
    fs::write(folder.path().join("go"), "").unwrap();
    pair.channel.finish("a1", &mut taken).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 5));
    pair.stop().await;
}

#[tokio::test]
async fn a_timeout_ends_even_what_ignores_sigterm() {
    let mut pair = Pair::start().await;
    let text = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let taken = pair
        .channel
        .whole(within(Duration::from_millis(500), shell("a1", text)))
        .await;
    assert_eq!(
        (taken.outcome(), taken.result().signal),
        ((Outcome::TimedOut, 137), 9)
    );
    assert_eq!(taken.result().error, "it did not end within 500ms");
    assert_eq!(taken.out(), "ready\n");
    pair.stop().await;
}

/// The libraries that are named in what the loader says of a program.
fn libraries(told: &str) -> Vec<String> {
    let words = told
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_variables_of_an_order_reach_the_command_and_nothing_that_has_more_rights() {
    let mut pair = Pair::start().await;
    // With it the loader only tells what it would load, of whatever program it finds it in first.
    let trace = ("LD_TRACE_LOADED_OBJECTS".to_owned(), "1".to_owned());
    let direct = std::process::Command::new("/bin/sh")
        .env(&trace.0, &trace.1)
        .output()
        .unwrap();
    let expected = libraries(str::from_utf8(&direct.stdout).unwrap());
    let command = Command {
        argv: vec!["/bin/sh".into()],
        env: HashMap::from([trace]),
        ..Command::default()
    };
    let taken = pair.channel.whole(run("a1", command)).await;
    assert_eq!(libraries(taken.out()), expected);
    pair.stop().await;
}
