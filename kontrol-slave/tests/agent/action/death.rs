//! The built slave under stress, and that nothing of a command is left.

use super::{Pair, pid_in};
use crate::{
    LONG,
    master::{
        Master, Reply,
        channel::{Channel, Taken, shell, within},
    },
    program::program,
};
use kontrol_proto::v1::{Outcome, attach_response::Run};
use kontrol_runtime::{
    process::{Cause, Guarded, Lease, Order, Report, Spec, Status},
    testing::{alive, until},
};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Child,
    time::Duration,
};

/// Starts two daemons, each in a session of its own, one without a parent; their pids are in files.
fn daemons(folder: &Path) -> String {
    let path = folder.display();
    format!(
        r#"setsid sh -c 'trap "" TERM; sleep 600 & echo $! > {path}/daemon'; setsid sleep 600 & echo $! > {path}/second; "#
    )
}

/// The slave as a program, and its channel. Killed at the latest with the test.
struct Slave(Child);

impl Slave {
    async fn start() -> (Self, Master, Channel) {
        let mut command = program();
        command.env("KONTROL_USER", own_user()).arg("--insecure");
        Self::of(command).await
    }

    async fn of(mut command: std::process::Command) -> (Self, Master, Channel) {
        let mut master = Master::start(Reply::Accept(LONG)).await;
        let child = command
            .env("KONTROL_MASTER", master.address())
            .env("KONTROL_LABELS", r#"{"app":"web","role":"front"}"#)
            .spawn()
            .unwrap();
        let channel = master.channel().await;
        (Self(child), master, channel)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// So that the tests do the same where there is a user called kontrol.
fn own_user() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn what_a_command_leaves_behind_dies_with_it() {
    let mut pair = Pair::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{} echo done", daemons(folder.path()));
    let taken = pair.channel.whole(shell("a1", &text)).await;
    assert_eq!(
        (taken.out(), taken.outcome()),
        ("done\n", (Outcome::Exited, 0))
    );
    for file in ["daemon", "second"] {
        assert!(!alive(pid_in(&folder.path().join(file)).await), "{file}");
    }
    pair.stop().await;
}

#[tokio::test]
async fn commands_and_daemons_die_with_a_slave_that_is_killed() {
    let (slave, master, channel) = Slave::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "trap '' TERM; {} echo $$ > {}/main; while :; do sleep 0.05; done",
        daemons(folder.path()),
        folder.path().display()
    );
    channel.run(shell("a1", &text)).await;
    let main = pid_in(&folder.path().join("main")).await;
    let daemon = pid_in(&folder.path().join("daemon")).await;
    assert!(alive(main) && alive(daemon));
    slave.signal(Signal::KILL);
    until("everything is dead", || !alive(main) && !alive(daemon)).await;
    drop(channel);
    master.stop().await;
}

#[tokio::test]
async fn a_guard_that_is_killed_takes_everything_along() {
    let (slave, master, mut channel) = Slave::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "trap '' TERM; {} sleep 600 & echo $! > {path}/child; echo $PPID > {path}/guard; while :; do sleep 0.05; done",
        daemons(folder.path()),
        path = folder.path().display()
    );
    channel.run(shell("a1", &text)).await;
    let mut pids = Vec::new();
    for file in ["daemon", "second", "child", "guard"] {
        pids.push(pid_in(&folder.path().join(file)).await);
    }
    assert!(pids.iter().all(|pid| alive(*pid)));
    let guard = Pid::from_raw(i32::try_from(pids[3]).unwrap()).unwrap();
    kill_process(guard, Signal::KILL).unwrap();
    let mut taken = Taken::default();
    channel.finish("a1", &mut taken).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 137));
    assert!(
        taken
            .result()
            .error
            .contains("the guard of the command was killed")
    );
    until("everything is dead", || !pids.iter().any(|pid| alive(*pid))).await;
    assert_eq!(channel.whole(shell("a2", "echo on")).await.out(), "on\n");
    drop((channel, slave));
    master.stop().await;
}

#[tokio::test]
async fn a_guard_that_is_stopped_keeps_no_command_beyond_its_time() {
    let (slave, master, mut channel) = Slave::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "echo $$ > {}/main; kill -STOP $PPID; while :; do sleep 0.05; done",
        folder.path().display()
    );
    for (id, limit, outcome) in [
        ("a1", LONG, (Outcome::Cancelled, -1)),
        ("a2", Duration::from_millis(300), (Outcome::TimedOut, 137)),
    ] {
        channel.run(within(limit, shell(id, &text))).await;
        let main = pid_in(&folder.path().join("main")).await;
        if outcome.0 == Outcome::Cancelled {
            channel.cancel(id).await;
        }
        let mut taken = Taken::default();
        channel.finish(id, &mut taken).await;
        assert_eq!(taken.outcome(), outcome);
        until("the command is dead", || !alive(main)).await;
        fs::remove_file(folder.path().join("main")).unwrap();
    }
    drop((channel, slave));
    master.stop().await;
}

#[tokio::test]
async fn what_holds_the_output_beyond_the_end_of_the_guard_does_not_hold_the_action() {
    // The slave of this test adopts nobody, as one that is PID 1 kills nobody.
    let mut pair = Pair::start().await;
    let text =
        "setsid sh -c 'while echo on; do sleep 0.05; done' & sleep 0.2; kill -9 $PPID; sleep 600";
    let taken = pair.channel.whole(shell("a1", text)).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 137));
    assert!(taken.out().starts_with("on\n"));
    pair.stop().await;
}

#[tokio::test]
async fn what_a_guard_reported_stays_when_it_is_told_something_later() {
    let spec = Spec {
        guard: env!("CARGO_BIN_EXE_kontrol-slave").into(),
        ..Spec::new("guard", vec!["true".into()], Duration::from_secs(2))
    };
    let (mut guarded, _pipes) = Guarded::start(spec).await.unwrap();
    guarded.tell(Order::Until(Lease::Forever));
    let guard = guarded.id().unwrap();
    until("the guard has ended", || !alive(guard)).await;
    guarded.tell(Order::Until(Lease::Forever));
    guarded.tell(Order::Stop);
    let end = guarded.wait().await;
    let report = Report::Ended(Cause::Itself, Status::Exited(0));
    assert_eq!(end.report, Some(report));
}

/// The sixth and seventh field of a `/proc/<pid>/stat`: proc_pid_stat(5).
fn session_and_terminal(stat: &str) -> (&str, &str) {
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after_name.split(' ').collect();
    (fields[3], fields[4])
}

#[tokio::test]
async fn a_command_has_no_terminal_and_is_in_no_session_of_the_slave() {
    let mut pair = Pair::start().await;
    let taken = pair.channel.whole(shell("a1", "cat /proc/self/stat")).await;
    let (session, terminal) = session_and_terminal(taken.out());
    // Zero where the session's leader is outside of the container: getsid() of rustix does not take that.
    let own = fs::read_to_string("/proc/self/stat").unwrap();
    assert_ne!(session, session_and_terminal(&own).0);
    assert_eq!(terminal, "0");
    pair.stop().await;
}

#[tokio::test]
async fn a_command_of_the_same_user_reads_no_variable_of_the_slave() {
    // Root may read everything: then the slave, and with it the command, is somebody else.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kontrol-slave");
    fs::copy(env!("CARGO_BIN_EXE_kontrol-slave"), &copy).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(copy);
    command.env_clear().arg("--insecure");
    if geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let (slave, master, mut channel) = Slave::of(command).await;
    let text = format!("cat /proc/{}/environ", slave.0.id());
    let taken = channel.whole(shell("a1", &text)).await;
    assert_eq!((taken.out(), taken.outcome()), ("", (Outcome::Exited, 1)));
    assert!(taken.err().contains("Permission denied"), "{}", taken.err());
    drop((channel, slave));
    master.stop().await;
}

#[tokio::test]
async fn a_timeout_counts_while_the_slave_is_stopped() {
    let (slave, master, mut channel) = Slave::start().await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "echo $$ > {}/main; while :; do sleep 0.05; done",
        folder.path().display()
    );
    channel
        .run(within(Duration::from_secs(1), shell("a1", &text)))
        .await;
    let main = pid_in(&folder.path().join("main")).await;
    slave.signal(Signal::STOP);
    until("the command is dead", || !alive(main)).await;
    slave.signal(Signal::CONT);
    let mut taken = Taken::default();
    channel.finish("a1", &mut taken).await;
    assert_eq!(taken.outcome(), (Outcome::TimedOut, 143));
    drop(channel);
    master.stop().await;
}

#[tokio::test]
async fn fifty_megabytes_pass_whole_through_little_memory_at_the_pace_of_the_master() {
    let (slave, master, mut channel) = Slave::start().await;
    let peak = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", slave.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let before = peak();
    const BYTES: usize = 50_000_000;
    const WINDOW: usize = 256 * 1024;
    const PIECES: usize = 32;
    let order = Run {
        max_output: BYTES as u64,
        window: WINDOW as u32,
        ..shell("a1", &format!("seq 1 9999999 | head -c {BYTES}"))
    };
    channel.run(order).await;
    // Takes nothing before the slave has to wait: the window is full, or enough pieces are on their way.
    let (mut taken, mut credited, mut pieces) = (Taken::default(), 0, 0);
    while taken.end.is_none() {
        taken.take(channel.next().await.unwrap());
        pieces += 1;
        let waiting = taken.stdout.len() - credited;
        assert!(waiting <= WINDOW && pieces <= PIECES);
        if waiting == WINDOW || pieces == PIECES {
            (credited, pieces) = (taken.stdout.len(), 0);
            channel.credit("a1", taken.offsets()).await;
        }
    }
    assert_eq!(
        (taken.stdout.len(), taken.outcome()),
        (BYTES, (Outcome::Exited, 0))
    );
    let mut expected = Vec::with_capacity(BYTES + 8);
    for n in 1.. {
        if expected.len() >= BYTES {
            break;
        }
        expected.extend_from_slice(format!("{n}\n").as_bytes());
    }
    assert!(taken.stdout == expected[..BYTES], "it is whole");
    let grown = peak() - before;
    println!("{grown} KiB for an output of 50 MB");
    assert!(grown < 8 * 1024, "{grown} KiB for an output of 50 MB");
    drop(channel);
    drop(slave);
    master.stop().await;
}
