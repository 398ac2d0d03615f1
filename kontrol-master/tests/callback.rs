//! Runs of the callback: real processes, with the built `kontrol-master` as their guard.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kontrol_master::{
    callback::{self, Failure, Input, Program, Run, Settings, Validity, changes},
    model::{Digest, Pod, Report, digest::pods_document},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// Names the directory of the test, in the process that `helper` starts.
const HELPER_DIRECTORY: &str = "CALLBACK_TEST_DIRECTORY";
const HELPER_LEASE: &str = "CALLBACK_TEST_LEASE_MS";

fn settings(script: &str) -> Settings {
    Settings {
        guard: env!("CARGO_BIN_EXE_kontrol-master").into(),
        timeout: DEADLINE,
        grace: Duration::from_millis(500),
        ..Settings::new(Program::shell(script).unwrap(), "http://127.0.0.1:8000")
    }
}

fn pods(count: u32) -> Vec<Arc<Pod>> {
    let pod = |n: u32| {
        let report = Report {
            app: "web".into(),
            id: format!("web-{n}"),
            ip: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + n)),
            role: "front".into(),
            nonce: format!("{n:016x}"),
            payload: json!({"text": "quotes ' \" and $HOME, é\n"}),
            down: false,
            beat: 1,
            labels: BTreeMap::from([("app".into(), "web".into())]),
            annotations: BTreeMap::new(),
            node: String::new(),
        };
        Arc::new(Pod::join(report, u64::from(n), 1))
    };
    (0..count).map(pod).collect()
}

fn input(count: u32, state: Option<Value>) -> Input {
    let pods = pods(count);
    Input {
        digest: Digest::of(pods.iter()),
        changes: changes::document(None::<(Digest, [_; 0])>, &pods),
        pods: pods_document(pods.iter()),
        state,
        epoch: 42,
    }
}

/// A run in a store without leases, which nobody stops.
async fn run(settings: &Settings, input: Input) -> Run {
    let (_lease, validity) = watch::channel(Validity::Forever);
    callback::run(settings, input, validity, CancellationToken::new()).await
}

async fn outcome(script: &str) -> Result<Option<Value>, Failure> {
    run(&settings(script), input(2, None)).await.outcome
}

/// Waits until it is so.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs; a dead one that nobody reaped doesn't.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(None | Some('Z' | 'X')))
}

/// The pid that the callback wrote to a file, once it has.
fn pid(file: &Path) -> Option<u32> {
    fs::read_to_string(file)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// The pid in a file that must be there.
async fn pid_in(file: PathBuf) -> u32 {
    until("the callback runs", || pid(&file).is_some()).await;
    pid(&file).unwrap()
}

/// Runs a script with `$DIR` set to a directory of the test.
fn script(directory: &TempDir, text: &str) -> String {
    format!("DIR={}\n{text}", directory.path().display())
}

#[tokio::test]
async fn standard_output_becomes_the_state() {
    let state = outcome(r#"echo '{"seen": 1}'; echo "a line of the log" >&2"#).await;
    assert_eq!(state, Ok(Some(json!({"seen": 1}))));
}

#[tokio::test]
async fn nothing_but_white_space_is_no_new_state() {
    assert_eq!(outcome("true").await, Ok(None));
    assert_eq!(outcome("echo; echo ' '").await, Ok(None));
}

#[tokio::test]
async fn the_callback_gets_every_document_thrice_and_the_digest_agrees() {
    let text = r#"
        sum() { md5sum | cut -d' ' -f1; }
        [ "$(printf %s "$PODS" | sum)" = "$HASH" ] && [ "$HASH" = "$MD5" ] || exit 11
        [ "$(sum < "$PODS_FILE")" = "$HASH" ] || exit 12
        [ "$STATE" = '{"a":[1,2],"b":"x"}' ] && [ "$(cat "$STATE_FILE")" = "$STATE" ] || exit 13
        [ "$(cat "$CHANGES_FILE")" = "$CHANGES" ] || exit 14
        [ "$KONTROL_EPOCH" = 42 ] && [ "$KONTROL_ENDPOINT" = http://127.0.0.1:8000 ] || exit 15
        [ "$(stat -c %a "$(dirname "$PODS_FILE")")" = 700 ] || exit 16
        cat
    "#;
    let state = json!({"b": "x", "a": [1.0, 2]});
    let run = run(&settings(text), input(3, Some(state))).await;
    let stdin = run.outcome.unwrap().unwrap();
    assert_eq!(run.exit_code, 0);
    let pods = stdin["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 3);
    assert_eq!(pods[2]["seq"], json!(2));
    assert_eq!(stdin["state"], json!({"a": [1, 2], "b": "x"}));
    assert_eq!(stdin["changes"]["joined"], stdin["pods"]);
    assert_eq!(stdin["changes"]["since"], json!(null));
    assert_eq!(stdin["epoch"], json!(42));
    assert_eq!(stdin["hash"], stdin["md5"]);
}

#[tokio::test]
async fn a_first_run_has_no_state_and_its_files_are_gone_afterwards() {
    let text = r#"[ -z "${STATE+set}${STATE_FILE+set}" ] || exit 9; printf '"%s"' "$PODS_FILE""#;
    let state = outcome(text).await.unwrap().unwrap();
    let file = Path::new(state.as_str().unwrap());
    assert!(file.ends_with("pods.json") && !file.parent().unwrap().exists());
}

#[tokio::test]
async fn three_thousand_pods_leave_the_variable_out_but_not_the_documents() {
    let text = r#"
        [ -z "${PODS+set}${CHANGES+set}" ] || exit 11
        [ "$(md5sum < "$PODS_FILE" | cut -d' ' -f1)" = "$HASH" ] || exit 12
        python3 -c '
import hashlib, json, os, sys
given = json.load(sys.stdin)
raw = open(os.environ["PODS_FILE"], "rb").read()
assert json.loads(raw) == given["pods"] and hashlib.md5(raw).hexdigest() == given["hash"]
assert json.load(open(os.environ["CHANGES_FILE"])) == given["changes"]
print(len(given["pods"]))'
    "#;
    let run = run(&settings(text), input(3000, None)).await;
    assert_eq!(run.outcome, Ok(Some(json!(3000))));
}

#[tokio::test]
async fn an_executable_with_arguments_runs_without_a_shell() {
    let program = Program::exec("printf '\"%s\"' '$HOME *'").unwrap();
    let settings = Settings {
        program,
        ..settings("true")
    };
    let run = run(&settings, input(1, None)).await;
    assert_eq!(run.outcome, Ok(Some(json!("$HOME *"))));
}

#[tokio::test]
async fn failures_are_told_apart() {
    assert_eq!(outcome("echo 1; exit 3").await, Err(Failure::Exit(3)));
    assert_eq!(outcome("kill -9 $$").await, Err(Failure::Signal(9)));
    assert_eq!(outcome("exit 137").await, Err(Failure::Exit(137)));
    let not_json = outcome("echo hello").await.unwrap_err();
    assert!(matches!(not_json, Failure::NotJson(_)), "{not_json}");
    let two = outcome("echo 1; echo 2").await.unwrap_err();
    assert!(matches!(two, Failure::NotJson(_)), "{two}");

    let killed = run(&settings("kill -9 $$"), input(1, None)).await;
    assert_eq!(killed.exit_code, 137);
}

#[tokio::test]
async fn what_cannot_be_executed_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("gone");
    let settings = Settings {
        program: Program::Exec(vec![missing.clone().into()]),
        ..settings("true")
    };
    let gone = run(&settings, input(1, None)).await;
    assert_eq!(gone.exit_code, -1);
    let reason = format!("there is no file {}", missing.display());
    assert_eq!(gone.outcome, Err(Failure::NotStarted(reason)));
}

#[tokio::test]
async fn a_missing_guard_is_a_failure_and_no_panic() {
    let settings = Settings {
        guard: "/no/such/guard".into(),
        ..settings("true")
    };
    let run = run(&settings, input(1, None)).await;
    assert!(matches!(run.outcome, Err(Failure::NotStarted(_))));
}

#[tokio::test]
async fn standard_input_need_not_be_read() {
    let run = run(&settings("exec <&-; echo 1"), input(3000, None)).await;
    assert_eq!(run.outcome, Ok(Some(json!(1))));
}

#[tokio::test]
async fn the_callback_inherits_nothing_but_its_streams_and_cannot_gain_privileges() {
    // The guard of this run gets a descriptor that is not closed on exec, as one from a careless parent.
    let directory = tempfile::tempdir().unwrap();
    let guard = directory.path().join("guard");
    let binary = env!("CARGO_BIN_EXE_kontrol-master");
    fs::write(
        &guard,
        format!("#!/bin/sh\nexec 7</dev/null\nexec '{binary}' \"$@\"\n"),
    )
    .unwrap();
    let chmod = Command::new("chmod").arg("+x").arg(&guard).status();
    assert!(chmod.unwrap().success());
    let settings = Settings {
        guard,
        ..settings(
            r#"grep -q 'NoNewPrivs:.*1' /proc/$$/status || exit 9
            exec python3 -c 'import os; print([n for n in range(256) if os.path.exists(f"/proc/self/fd/{n}")])'"#,
        )
    };
    // Another test may hold the script open for writing while it forks; that passes.
    let deadline = Instant::now() + DEADLINE;
    let run = loop {
        let run = run(&settings, input(1, None)).await;
        let busy = matches!(&run.outcome, Err(Failure::NotStarted(why)) if why.contains("busy"));
        if !busy || Instant::now() > deadline {
            break run;
        }
    };
    assert_eq!(run.outcome, Ok(Some(json!([0, 1, 2]))));
}

#[tokio::test]
async fn a_timeout_ends_even_what_ignores_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let text = script(
        &directory,
        "trap '' TERM\n(sleep 600 & echo $! > $DIR/child; wait) &\necho $$ > $DIR/main; wait; sleep 600",
    );
    let settings = Settings {
        timeout: Duration::from_secs(1),
        ..settings(&text)
    };
    let run = run(&settings, input(1, None)).await;
    assert_eq!(run.outcome, Err(Failure::Timeout(settings.timeout)));
    assert_eq!(run.exit_code, 128 + 9);
    for file in ["main", "child"] {
        assert!(!alive(pid(&directory.path().join(file)).unwrap()), "{file}");
    }
}

#[tokio::test]
async fn sigterm_leaves_time_to_clean_up() {
    let directory = tempfile::tempdir().unwrap();
    let text = script(
        &directory,
        "trap 'echo cleaned > $DIR/cleaned; echo 1; exit 0' TERM\nsleep 600 & wait",
    );
    let settings = Settings {
        timeout: Duration::from_secs(1),
        grace: DEADLINE,
        ..settings(&text)
    };
    let run = run(&settings, input(1, None)).await;
    assert_eq!(run.outcome, Err(Failure::Timeout(settings.timeout)));
    assert!(directory.path().join("cleaned").exists());
}

#[tokio::test]
async fn a_daemon_that_left_the_group_is_dead_when_the_run_ends() {
    let directory = tempfile::tempdir().unwrap();
    // The daemon has a session of its own and no parent, and starts another one.
    let text = script(
        &directory,
        r#"
        (setsid sh -c 'trap "" TERM; echo $$ > '$DIR'/daemon; setsid sleep 600 & echo $! > '$DIR'/second; sleep 600' &)
        while [ ! -s $DIR/second ]; do sleep 0.01; done
        echo 7"#,
    );
    let run = run(&settings(&text), input(1, None)).await;
    assert_eq!(run.outcome, Ok(Some(json!(7))));
    for file in ["daemon", "second"] {
        assert!(!alive(pid(&directory.path().join(file)).unwrap()), "{file}");
    }
}

#[tokio::test]
async fn a_child_that_holds_standard_output_does_not_hold_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let text = script(
        &directory,
        "sleep 600 & echo $! > $DIR/child; echo '[\"done\"]'",
    );
    let run = run(&settings(&text), input(1, None)).await;
    assert_eq!(run.outcome, Ok(Some(json!(["done"]))));
    assert!(!alive(pid(&directory.path().join("child")).unwrap()));
}

#[tokio::test]
async fn output_without_bound_is_cut_off() {
    let before = peak_memory_kib();
    let run = run(
        &settings("head -c 50000000 /dev/zero | tr '\\0' 1; sleep 600"),
        input(1, None),
    )
    .await;
    assert_eq!(run.outcome, Err(Failure::TooLong(1024 * 1024)));
    let grown = peak_memory_kib() - before;
    assert!(grown < 40 * 1024, "{grown} KiB for an output of 50 MB");
}

fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

#[tokio::test]
async fn output_up_to_the_bound_passes_and_one_byte_more_does_not() {
    let settings = |bytes: usize| Settings {
        max_output: 100_000,
        ..settings(&format!("printf '\"%0{}d\"' 0", bytes - 2))
    };
    let fits = run(&settings(100_000), input(1, None)).await;
    assert_eq!(fits.outcome, Ok(Some(json!("0".repeat(99_998)))));
    let too_long = run(&settings(100_001), input(1, None)).await;
    assert_eq!(too_long.outcome, Err(Failure::TooLong(100_000)));
}

#[tokio::test]
async fn a_flood_on_standard_error_hides_no_timeout() {
    let settings = Settings {
        timeout: Duration::from_millis(300),
        ..settings("yes nothing but noise >&2")
    };
    let run = run(&settings, input(1, None)).await;
    assert_eq!(run.outcome, Err(Failure::Timeout(settings.timeout)));
}

#[tokio::test]
async fn the_end_of_leadership_stops_it() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&script(&directory, "echo $$ > $DIR/main; sleep 600"));
    let (_lease, validity) = watch::channel(Validity::Forever);
    let token = CancellationToken::new();
    let main = pid_in(directory.path().join("main"));
    let (run, main) = tokio::join!(
        callback::run(&settings, input(1, None), validity, token.clone()),
        async {
            let main = main.await;
            token.cancel();
            main
        }
    );
    assert_eq!(run.outcome, Err(Failure::Stopped));
    assert!(!alive(main));
}

#[tokio::test]
async fn a_run_that_is_stopped_before_it_begins_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&script(&directory, "touch $DIR/ran"));
    let (_lease, validity) = watch::channel(Validity::Forever);
    let token = CancellationToken::new();
    token.cancel();
    let run = callback::run(&settings, input(1, None), validity, token).await;
    assert_eq!((run.exit_code, run.outcome), (-1, Err(Failure::Stopped)));

    let past = Validity::confirmed(
        tokio::time::Instant::now() - Duration::from_secs(5),
        Duration::from_secs(5),
    );
    let (_lease, validity) = watch::channel(past);
    let run = callback::run(
        &settings,
        input(1, None),
        validity,
        CancellationToken::new(),
    )
    .await;
    assert_eq!(
        (run.exit_code, run.outcome),
        (-1, Err(Failure::LeaseUnconfirmed))
    );
    assert!(!directory.path().join("ran").exists());
}

#[tokio::test]
async fn a_lease_that_is_not_confirmed_ends_it_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let text = "trap '' TERM; echo $$ > $DIR/main; while :; do sleep 0.05; done";
    let settings = Settings {
        grace: DEADLINE,
        ..settings(&script(&directory, text))
    };
    let lease = Duration::from_secs(3);
    let asked = tokio::time::Instant::now();
    let (_lease, validity) = watch::channel(Validity::confirmed(asked, lease));
    let run = callback::run(
        &settings,
        input(1, None),
        validity,
        CancellationToken::new(),
    )
    .await;
    let ended = asked.elapsed();
    assert_eq!(run.outcome, Err(Failure::LeaseUnconfirmed));
    assert_eq!(run.exit_code, 128 + 9, "it ignored SIGTERM");
    assert!(!alive(pid(&directory.path().join("main")).unwrap()));
    // The promise itself, not the speed of a machine.
    assert!(
        ended < lease,
        "it ran for {ended:?} on a lease of {lease:?}"
    );
}

#[tokio::test]
async fn a_lease_that_is_confirmed_lets_it_run_on() {
    let ttl = Duration::from_secs(2);
    let now = tokio::time::Instant::now;
    let (lease, validity) = watch::channel(Validity::confirmed(now(), ttl));
    let settings = settings("sleep 4; echo true");
    let confirm = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            lease.send_replace(Validity::confirmed(now(), ttl));
        }
    };
    let run = callback::run(
        &settings,
        input(1, None),
        validity,
        CancellationToken::new(),
    );
    let run = tokio::select! { run = run => run, () = confirm => unreachable!() };
    assert_eq!(run.outcome, Ok(Some(json!(true))));
}

#[tokio::test]
async fn a_guard_that_is_asked_to_end_gives_the_callback_its_grace() {
    let directory = tempfile::tempdir().unwrap();
    let text = "trap 'touch $DIR/cleaned; exit 0' TERM; echo $PPID > $DIR/guard; sleep 600 & wait";
    let settings = Settings {
        grace: DEADLINE,
        ..settings(&script(&directory, text))
    };
    let guard = pid_in(directory.path().join("guard"));
    let (run, ()) = tokio::join!(run(&settings, input(1, None)), async {
        signal("TERM", guard.await);
    });
    assert_eq!(run.outcome, Err(Failure::Stopped));
    assert!(directory.path().join("cleaned").exists());
}

#[tokio::test]
async fn a_guard_that_is_killed_takes_the_callback_along() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "sleep 600 & echo $! > $DIR/child; echo $$ > $DIR/main; echo $PPID > $DIR/guard; wait";
    let settings = settings(&script(&directory, text));
    let guard = pid_in(directory.path().join("guard"));
    let (run, ()) = tokio::join!(run(&settings, input(1, None)), async {
        signal("KILL", guard.await);
    });
    assert_eq!(run.exit_code, 137);
    assert!(matches!(run.outcome, Err(Failure::GuardLost(_))));
    for file in ["main", "child"] {
        let pid = pid(&directory.path().join(file)).unwrap();
        until("the callback is dead", || !alive(pid)).await;
    }
}

fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("kill");
    kill.args([format!("-{name}"), pid.to_string()]);
    assert!(kill.status().unwrap().success());
}

/// A process of this same test binary that holds a run, as a master does; killed at the latest with the test.
struct Helper(Child);

impl Helper {
    fn start(directory: &TempDir, lease: Option<Duration>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "holds_a_run", "--ignored", "--nocapture"])
            .env(HELPER_DIRECTORY, directory.path())
            .env("TMPDIR", directory.path().join("tmp"))
            .stdout(Stdio::null());
        if let Some(lease) = lease {
            command.env(HELPER_LEASE, lease.as_millis().to_string());
        }
        fs::create_dir(directory.path().join("tmp")).unwrap();
        Self(command.spawn().unwrap())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the helper process does: not a test by itself.
#[tokio::test]
#[ignore = "started by the tests that kill it"]
async fn holds_a_run() {
    let Some(directory) = std::env::var_os(HELPER_DIRECTORY) else {
        return;
    };
    let text = format!(
        "DIR={}\ntrap '' TERM\nsetsid sleep 600 & echo $! > $DIR/daemon\necho $$ > $DIR/main\nwhile :; do sleep 0.05; done",
        directory.to_str().unwrap()
    );
    let ttl = std::env::var(HELPER_LEASE).ok();
    let ttl = ttl.map(|ms| Duration::from_millis(ms.parse().unwrap()));
    let valid = || match ttl {
        Some(ttl) => Validity::confirmed(tokio::time::Instant::now(), ttl),
        None => Validity::Forever,
    };
    let (lease, validity) = watch::channel(valid());
    let confirm = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            lease.send_replace(valid());
        }
    };
    let settings = settings(&text);
    let run = callback::run(
        &settings,
        input(1, None),
        validity,
        CancellationToken::new(),
    );
    tokio::select! { _ = run => {}, () = confirm => {} }
}

/// Waits until both processes of the helper's callback are dead; the pids tell.
fn both_dead(directory: &TempDir) -> impl Future<Output = ()> {
    let file = |name: &str| directory.path().join(name);
    let pids = ["main", "daemon"].map(|name| pid(&file(name)).unwrap());
    async move {
        until("the callback is dead", || {
            !pids.iter().any(|pid| alive(*pid))
        })
        .await
    }
}

#[tokio::test]
async fn the_callback_dies_with_its_master() {
    let directory = tempfile::tempdir().unwrap();
    let helper = Helper::start(&directory, None);
    let main = pid_in(directory.path().join("main")).await;
    assert!(alive(main));
    signal("KILL", helper.0.id());
    both_dead(&directory).await;
    let temporary = directory.path().join("tmp");
    until("its documents are removed", || {
        fs::read_dir(&temporary).unwrap().next().is_none()
    })
    .await;
}

#[tokio::test]
async fn the_callback_of_a_stopped_master_dies_before_the_lease_ends() {
    let directory = tempfile::tempdir().unwrap();
    let lease = Duration::from_secs(3);
    let helper = Helper::start(&directory, Some(lease));
    let main = pid_in(directory.path().join("main")).await;
    assert!(alive(main));
    signal("STOP", helper.0.id());
    // No confirmation can be later than this.
    let stopped = Instant::now();
    both_dead(&directory).await;
    let ended = stopped.elapsed();
    assert!(
        ended < lease,
        "{ended:?} after the last confirmation of {lease:?}"
    );
}
