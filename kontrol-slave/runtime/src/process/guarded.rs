//! A program under a guard, from the side of the process that it runs for.

use super::{
    NONE, OWN_EXECUTABLE,
    control::{LEFT, Lease, Order, Report, boottime_ms},
    guard, inheritance, reaper,
    user::{self, User},
};
use rustix::{
    net::{Shutdown, shutdown},
    process::{Pid, Signal, kill_process_group},
};
use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, net::UnixStream as StdStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    process::{Child, ChildStderr, ChildStdout, Command},
    time::{Instant, sleep_until, timeout},
};

/// How much longer than it was told a guard may take before it is looked at, and then again: what kept it may have kept this
/// process as well. One that is stopped (SIGSTOP) by then is killed, for it ends nothing.
const PATIENCE: Duration = Duration::from_millis(2500);
/// The same for a guard that ends an orphan, which has a short grace: this process is about to end.
const ORPHAN_PATIENCE: Duration = Duration::from_millis(325);

/// A program to run, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The executable that is guard and shim as well; `OWN_EXECUTABLE` but in tests.
    pub guard: PathBuf,
    /// What the guard and the shim are called in a list of processes.
    pub name: &'static str,
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The environment of the guard; also that of the program, unless it has its own.
    pub guard_environment: Vec<(OsString, OsString)>,
    /// The environment of the program, kept from the guard: it may come from somebody who may do less than the guard.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// What the program reads; none: the file in the run directory, or nothing.
    pub input: Option<Vec<u8>>,
    /// The run directory. Its name begins with `DIRECTORY_PREFIX`. Removed by the guard if this process can't.
    pub directory: Option<PathBuf>,
    /// Whom the program runs as, if not as this process.
    pub user: Option<User>,
}

impl Spec {
    /// A program that runs as this process does.
    pub fn new(name: &'static str, argv: Vec<OsString>, grace: Duration) -> Self {
        Self {
            guard: OWN_EXECUTABLE.into(),
            name,
            argv,
            grace,
            guard_environment: Vec::new(),
            environment: None,
            input: None,
            directory: None,
            user: None,
        }
    }
}

/// A guard that waits for its first order, or has begun. Dropped, it ends the program, but then nobody waits for that.
#[derive(Debug)]
pub struct Guarded {
    guard: Child,
    control: UnixStream,
    /// The time between SIGTERM and SIGKILL.
    grace: Duration,
    /// By when the guard should have ended: its program has no longer lease, or it was told to end it.
    due: [Option<Instant>; 2],
    patience: Duration,
    /// When it was last looked at because it was late.
    looked: Option<Instant>,
    /// Whether it was killed for that.
    killed: bool,
}

/// How a guard ended, and with it everything that its program started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Of the guard.
    pub status: ExitStatus,
    /// What it said of the program; nothing when it was killed itself.
    pub report: Option<Report>,
    /// The names of processes that the program left running when it ended by itself. They are gone as well.
    pub left: Vec<String>,
    /// Whether it was killed because it did not end the program in time.
    pub overdue: bool,
}

/// What the program writes.
#[derive(Debug)]
pub struct Pipes {
    /// Standard output.
    pub stdout: ChildStdout,
    /// Standard error.
    pub stderr: ChildStderr,
}

impl Guarded {
    /// Starts the guard and tells it all but the first order.
    pub async fn start(spec: Spec) -> io::Result<(Self, Pipes)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut control = UnixStream::from_std(ours)?;
        let mut command = Command::new(&spec.guard);
        command
            .arg0(spec.name)
            .arg(guard::NAME)
            .arg(spec.directory.as_deref().unwrap_or(Path::new(NONE)))
            .arg(spec.grace.as_millis().to_string())
            .arg(user::argument(spec.user.as_ref()))
            .arg(inheritance::open_files().map_or(NONE.to_owned(), |limit| limit.to_string()))
            .args(&spec.argv)
            .env_clear()
            .envs(spec.guard_environment)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut guard = reaper::spawn(&mut command)?;
        // It holds the other end of the socket, which must close with the guard.
        drop(command);
        let (Some(stdout), Some(stderr)) = (guard.stdout.take(), guard.stderr.take()) else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let mut preamble = Vec::new();
        if let Some(environment) = spec.environment {
            let mut variables = Vec::new();
            for (name, value) in environment {
                variables
                    .extend_from_slice(&[name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
            }
            preamble.extend(format!("environment {}\n", variables.len()).into_bytes());
            preamble.append(&mut variables);
        }
        if let Some(mut input) = spec.input {
            preamble.extend(format!("input {}\n", input.len()).into_bytes());
            preamble.append(&mut input);
        }
        let written = timeout(2 * PATIENCE, control.write_all(&preamble)).await;
        let mut guarded = Self {
            guard,
            control,
            grace: spec.grace,
            due: [None; 2],
            patience: PATIENCE,
            looked: None,
            killed: false,
        };
        let late = |_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its guard does not read",
            ))
        };
        if let Err(error) = written.unwrap_or_else(late) {
            // Nothing runs yet. Fails for one that has ended.
            let _ = guarded.guard.start_kill();
            guarded.wait().await;
            return Err(error);
        }
        Ok((guarded, Pipes { stdout, stderr }))
    }

    /// The pid of the guard, while it lives.
    pub fn id(&self) -> Option<u32> {
        self.guard.id()
    }

    /// Tells an order, whole or not at all, and never waits: the socket holds hundreds and the guard reads at once. An
    /// order that can't be told closes our side of the socket instead, which ends the program. A guard that has ended hears
    /// nothing more, but what it reported stays.
    pub fn tell(&mut self, order: Order) {
        let line = format!("{order}\n");
        let told = rustix::io::write(&self.control, line.as_bytes());
        if !matches!(told, Ok(length) if length == line.len()) {
            return self.abandon();
        }
        match order {
            Order::Until(lease) => {
                // One that was told to stop must, however long the lease lasts.
                if self.due[1].is_none() {
                    self.looked = None;
                }
                self.due[0] = match lease {
                    Lease::Forever => None,
                    Lease::Until { hard, .. } => {
                        let left = Duration::from_millis(hard.saturating_sub(boottime_ms()));
                        Instant::now().checked_add(left)
                    }
                };
            }
            Order::Stop => self.must_end_within(self.grace),
        }
    }

    /// Ends the program as if this process had died: at once, and with the short grace of an orphan. Its guard still
    /// reports; its run directory it may remove.
    pub fn abandon(&mut self) {
        // Fails for a guard that has ended.
        let _ = shutdown(&self.control, Shutdown::Write);
        self.patience = ORPHAN_PATIENCE;
        self.must_end_within(Duration::ZERO);
    }

    fn must_end_within(&mut self, limit: Duration) {
        let at = Instant::now() + limit;
        self.due[1] = Some(self.due[1].map_or(at, |due| due.min(at)));
    }

    /// Waits for the guard, and with it for everything that the program started. Cancel safe.
    pub async fn wait(&mut self) -> End {
        let id = self.guard.id();
        let status = loop {
            let due = self.due.iter().flatten().min().copied();
            let look = due.max(self.looked).unwrap_or_else(Instant::now) + self.patience;
            // Both arms are cancel safe.
            tokio::select! {
                status = self.guard.wait() => break status,
                () = sleep_until(look), if due.is_some() => self.insist(),
            }
        };
        id.into_iter().for_each(reaper::reaped);
        // What can't be waited for was killed, as far as anybody can tell.
        let status = status.unwrap_or_else(|_| ExitStatus::from_raw(Signal::KILL.as_raw()));
        let (report, left) = self.report();
        End {
            status,
            report,
            left,
            overdue: self.killed,
        }
    }

    /// The guard should have ended by now.
    fn insist(&mut self) {
        let again = self.looked.replace(Instant::now()).is_some();
        // One that is busy, or was frozen with this process, does its work.
        if again && self.id().is_some_and(is_stopped) {
            self.killed = true;
            tracing::error!(
                guard = self.id(),
                "the guard of a program does not end it, as if it was stopped; killing both"
            );
            // Fails for one that has ended.
            let _ = self.guard.start_kill();
        }
    }

    /// What the guard reported. Without a report it was killed itself; then what it left behind is killed here: the process
    /// group. The death signal took the main process already, and what left the group is handed to the `reaper`.
    fn report(&self) -> (Option<Report>, Vec<String>) {
        let said = read_all(&self.control);
        let (mut pid, mut report, mut left) = (None, None, Vec::new());
        for line in String::from_utf8_lossy(&said).lines() {
            if let Some(text) = line.strip_prefix("pid ") {
                pid = text.parse().ok().and_then(Pid::from_raw);
            } else if let Some(names) = line.strip_prefix(LEFT) {
                left.extend(names.split(' ').map(str::to_owned));
            } else {
                report = line.parse().ok();
            }
        }
        if report.is_none()
            && let Some(pid) = pid
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        (report, left)
    }
}

/// Whether somebody stopped a process (proc_pid_stat(5), state T).
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name_ends = stat.iter().rposition(|byte| *byte == b')');
    name_ends.is_some_and(|end| matches!(stat.get(end + 2), Some(b'T' | b't')))
}

/// What the guard wrote before it ended: a few short lines.
fn read_all(control: &UnixStream) -> Vec<u8> {
    const MOST: usize = 64 * 1024;
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    while said.len() < MOST {
        match rustix::io::read(control, &mut chunk) {
            Ok(length @ 1..) => said.extend_from_slice(&chunk[..length]),
            Ok(0) | Err(_) => break,
        }
    }
    said
}
