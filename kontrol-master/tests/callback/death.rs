//! How a run ends before its time, and that nothing of it is left.

use crate::support::{DEADLINE, exact, input, pid, pid_in, run, script, settings, signal};
use kontrol_master::ensemble::callback::{self, Failure, Settings, Validity};
use kontrol_runtime::{
    clock::Clock,
    testing::{alive, until},
};
use serde_json::json;
use std::{
    fs,
    future::Future,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Names the directory of the test, in the process that `helper` starts.
const HELPER_DIRECTORY: &str = "CALLBACK_TEST_DIRECTORY";
const HELPER_LEASE: &str = "CALLBACK_TEST_LEASE_MS";

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

    let ttl = Duration::from_secs(5);
    let past = Validity::confirmed(Clock::default().now() - ttl, ttl);
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
    let lease = Duration::from_secs(5);
    let asked = Instant::now();
    let valid = Validity::confirmed(Clock::default().now(), lease);
    let (_lease, validity) = watch::channel(valid);
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
    let now = || Clock::default().now();
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
    assert_eq!(run.outcome, Ok(Some(exact(json!(true)))));
}

#[tokio::test]
async fn a_guard_that_is_asked_to_end_gives_the_callback_its_grace() {
    let directory = tempfile::tempdir().unwrap();
    // A child that the shell has not made a program of yet loses the signal, and then the grace is waited for.
    let text = "trap 'touch $DIR/cleaned; exit 0' TERM; sleep 600 &
        until grep -q sleep /proc/$!/comm; do :; done
        echo $PPID > $DIR/guard; wait";
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

/// The shell that the text is for dies of SIGTERM at once.
#[tokio::test]
async fn the_time_to_clean_up_belongs_to_what_a_shell_started_as_well() {
    for start in ["$WORKER; echo 1", "timeout 600 $WORKER; echo 1"] {
        let directory = tempfile::tempdir().unwrap();
        let worker = "trap 'sleep 0.3; touch $DIR/cleaned; exit 0' TERM; touch $DIR/ready; while :; do sleep 0.02; done";
        fs::write(directory.path().join("worker"), script(&directory, worker)).unwrap();
        let start = start.replace("$WORKER", "/bin/sh $DIR/worker");
        let settings = Settings {
            grace: DEADLINE,
            ..settings(&script(&directory, &start))
        };
        let (_lease, validity) = watch::channel(Validity::Forever);
        let token = CancellationToken::new();
        let ready = until("it runs", || directory.path().join("ready").exists());
        let (run, ()) = tokio::join!(
            callback::run(&settings, input(1, None), validity, token.clone()),
            async {
                ready.await;
                token.cancel();
            }
        );
        assert_eq!((run.exit_code, run.outcome), (143, Err(Failure::Stopped)));
        assert!(directory.path().join("cleaned").exists(), "{start}");
    }
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
    assert_eq!(run.outcome, Ok(Some(exact(json!(7)))));
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
    assert_eq!(run.outcome, Ok(Some(exact(json!(["done"])))));
    assert!(!alive(pid(&directory.path().join("child")).unwrap()));
}

/// A process of this same test binary that holds a run, as a master does; killed at the latest with the test.
struct Helper(Child);

impl Helper {
    fn start(directory: &TempDir, lease: Option<Duration>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "death::holds_a_run", "--ignored", "--nocapture"])
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
        "DIR={}\ntrap '' TERM\nsetsid sleep 600 & echo $! > $DIR/daemon\necho $PPID > $DIR/guard\necho $$ > $DIR/main\nwhile :; do sleep 0.05; done",
        directory.to_str().unwrap()
    );
    let ttl = std::env::var(HELPER_LEASE).ok();
    let ttl = ttl.map(|ms| Duration::from_millis(ms.parse().unwrap()));
    let valid = || match ttl {
        Some(ttl) => Validity::confirmed(Clock::default().now(), ttl),
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
    let lease = Duration::from_secs(5);
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

#[tokio::test]
async fn the_main_process_dies_with_its_guard_even_beside_a_stopped_master() {
    let directory = tempfile::tempdir().unwrap();
    let helper = Helper::start(&directory, None);
    let main = pid_in(directory.path().join("main")).await;
    signal("STOP", helper.0.id());
    signal("KILL", pid_in(directory.path().join("guard")).await);
    until("the callback is dead", || !alive(main)).await;
    // What it started is out of reach then.
    signal("KILL", pid_in(directory.path().join("daemon")).await);
}
