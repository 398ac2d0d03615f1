//! The master's side of one run: writes the documents, starts the guard, passes on how long the lease lasts, reads the
//! output within its bounds, and judges what came of it.
//!
//! Everything happens in the one task that calls `run`. The run is over when the guard has ended. A caller that drops
//! it closes the control pipe, upon which the guard ends the program, but then nobody waits for that: cancel instead.

use super::{
    Failure, Input, Run, Settings, Validity,
    control::{Lease, Order, PID_FILE, REPORT_FILE},
    documents::{Documents, INPUT_FILE, MAX_VARIABLE_BYTES},
    output::Lines,
    verdict::judge,
};
use rustix::{
    io::{Errno, ioctl_fionbio},
    process::{Pid, Signal, kill_process_group},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env, fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const CHUNK_BYTES: usize = 16 * 1024;
/// How much longer than the grace the guard may take before someone should look.
const OVERDUE: Duration = Duration::from_secs(5);
/// How long output may still come once the guard has ended. Its end closes the pipes, unless it was killed.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs the callback once. `lease` is refreshed at each keep-alive that the store confirms; `token` ends the run.
pub async fn run(
    settings: &Settings,
    input: Input,
    mut lease: watch::Receiver<Validity>,
    token: CancellationToken,
) -> Run {
    let began = Instant::now();
    let (exit_code, outcome) = match start(settings, input, &mut lease, &token).await {
        Ok(running) => running.finish(settings, lease, token).await,
        Err(failure) => (-1, Err(failure)),
    };
    Run {
        exit_code,
        duration: began.elapsed(),
        outcome,
    }
}

/// A guard that has been told to run the program.
struct Running {
    guard: Child,
    control: Control,
    stdout: ChildStdout,
    stderr: ChildStderr,
    directory: TempDir,
}

async fn start(
    settings: &Settings,
    input: Input,
    lease: &mut watch::Receiver<Validity>,
    token: &CancellationToken,
) -> Result<Running, Failure> {
    if token.is_cancelled() {
        return Err(Failure::Stopped);
    }
    let documents = Documents::new(input);
    let written =
        tokio::task::spawn_blocking(move || write(&documents).map(|dir| (dir, documents)));
    let (directory, documents) = written
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| {
            let temp = env::temp_dir();
            Failure::NotStarted(format!(
                "write its documents below {}: {error}",
                temp.display()
            ))
        })?;

    let validity = *lease.borrow_and_update();
    if matches!(validity, Validity::Until { soft, .. } if soft <= Instant::now()) {
        return Err(Failure::LeaseUnconfirmed);
    }
    let not_started = |error: io::Error| Failure::NotStarted(format!("start its guard: {error}"));
    let mut guard = spawn(settings, &documents, directory.path()).map_err(not_started)?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (guard.stdin.take(), guard.stdout.take(), guard.stderr.take())
    else {
        return Err(not_started(io::Error::other("a pipe is missing")));
    };
    let mut control = Control::new(stdin.into_owned_fd().map_err(not_started)?);
    control.tell(Order::Until(Lease::new(validity)));
    Ok(Running {
        guard,
        control,
        stdout,
        stderr,
        directory,
    })
}

/// Writes the documents into a new directory that only this user can enter.
fn write(documents: &Documents) -> io::Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("kontrol-callback-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()?;
    fs::write(directory.path().join(INPUT_FILE), documents.input())?;
    for (file, document) in documents.files() {
        fs::write(directory.path().join(file), document)?;
    }
    Ok(directory)
}

fn spawn(settings: &Settings, documents: &Documents, directory: &Path) -> io::Result<Child> {
    let spawn = |limit| {
        let environment =
            documents.environment(env::vars_os(), directory, &settings.endpoint, limit);
        say_left_out(&environment.left_out);
        Command::new(&settings.guard)
            .arg0("kontrol-master")
            .arg("guard")
            .arg(directory)
            .arg(settings.grace.as_millis().to_string())
            .args(settings.program.argv())
            .env_clear()
            .envs(environment.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
    };
    match spawn(MAX_VARIABLE_BYTES) {
        // With a small stack limit even variables that fit one by one can be too much together.
        Err(error) if error.raw_os_error() == Some(Errno::TOOBIG.raw_os_error()) => spawn(0),
        other => other,
    }
}

/// Logs it once for each variable.
fn say_left_out(variables: &[&'static str]) {
    static SAID: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    for variable in variables {
        if said.insert(variable) {
            tracing::warn!(
                variable,
                "too long for an environment variable, left out; the callback finds it in {variable}_FILE and on standard input"
            );
        }
    }
}

/// The writing end of the control pipe. Never blocks: a guard that doesn't read must not stop the master.
struct Control(Option<OwnedFd>);

impl Control {
    fn new(pipe: OwnedFd) -> Self {
        // The pipe holds hundreds of orders and the guard reads at once; at worst a write waits for it.
        let _ = ioctl_fionbio(&pipe, true);
        Self(Some(pipe))
    }

    /// Writes one line, whole or not at all. An order that can't be told closes the pipe instead, which ends the run.
    fn tell(&mut self, order: Order) {
        let Some(pipe) = &self.0 else { return };
        let line = format!("{order}\n");
        if !matches!(rustix::io::write(pipe, line.as_bytes()), Ok(n) if n == line.len()) {
            self.0 = None;
        }
    }
}

impl Running {
    async fn finish(
        self,
        settings: &Settings,
        mut lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> (i32, Result<Option<Value>, Failure>) {
        let Self {
            mut guard,
            mut control,
            mut stdout,
            mut stderr,
            directory,
        } = self;
        let mut asked: Option<Failure> = None;
        let mut ended: Option<ExitStatus> = None;
        let mut lease_known = true;
        let (mut output, mut stdout_open, mut out_chunk) = (Vec::new(), true, vec![0; CHUNK_BYTES]);
        let (mut lines, mut stderr_open, mut err_chunk) =
            (Lines::default(), true, vec![0; CHUNK_BYTES]);
        let timeout = sleep(settings.timeout);
        // Set when it starts to count: at the stop, then at the end of the guard.
        let patience = sleep(Duration::ZERO);
        tokio::pin!(timeout, patience);
        let mut patient = false;

        let status = loop {
            if let Some(status) = ended
                && !stdout_open
                && !stderr_open
            {
                break status;
            }
            let mut stop = None;
            // Every arm can be dropped at any time: what was read has been taken, what waits will be ready again. What
            // ends the run comes first, for a flood of output would hide it.
            tokio::select! {
                biased;
                () = token.cancelled(), if asked.is_none() && ended.is_none() => stop = Some(Failure::Stopped),
                () = &mut timeout, if asked.is_none() && ended.is_none() => stop = Some(Failure::Timeout(settings.timeout)),
                changed = lease.changed(), if lease_known && ended.is_none() => match changed {
                    Ok(()) => {
                        let validity = *lease.borrow_and_update();
                        control.tell(Order::Until(Lease::new(validity)));
                    }
                    // Nobody confirms it any more; the guard knows how long it lasts.
                    Err(_) => lease_known = false,
                },
                status = guard.wait(), if ended.is_none() => {
                    ended = Some(status.unwrap_or_else(|_| ExitStatus::from_raw(Signal::KILL.as_raw())));
                    patience.as_mut().reset(Instant::now() + DRAIN);
                    patient = true;
                }
                read = stdout.read(&mut out_chunk), if stdout_open => match read {
                    Ok(length) if length > 0 => {
                        let room = settings.max_output.saturating_sub(output.len());
                        output.extend_from_slice(&out_chunk[..length.min(room)]);
                        if length > room {
                            // The rest stays in the pipe; the program ends at once.
                            stdout_open = false;
                            stop = Some(Failure::TooLong(settings.max_output));
                        }
                    }
                    _ => stdout_open = false,
                },
                read = stderr.read(&mut err_chunk), if stderr_open => match read {
                    Ok(length) if length > 0 => lines.push(&err_chunk[..length]).iter().for_each(|line| log(line)),
                    _ => stderr_open = false,
                },
                () = &mut patience, if patient => {
                    patient = false;
                    if let Some(status) = ended {
                        break status;
                    }
                    tracing::error!(
                        guard = guard.id(),
                        "the callback has not ended though it was told to and killed; waiting for it, for two must not run at once"
                    );
                }
            }
            if let Some(failure) = stop {
                control.tell(Order::Stop);
                if ended.is_none() {
                    patience
                        .as_mut()
                        .reset(Instant::now() + settings.grace + OVERDUE);
                    patient = true;
                }
                // Too much output fails the run whatever else ended it.
                if asked.is_none() || matches!(failure, Failure::TooLong(_)) {
                    asked = Some(failure);
                }
            }
        };
        if let Some(line) = lines.end() {
            log(&line);
        }
        let report = fs::read_to_string(directory.path().join(REPORT_FILE))
            .ok()
            .and_then(|line| line.parse().ok());
        if report.is_none() {
            kill_left_over(directory.path());
        }
        judge(report, status, asked, &output)
    }
}

fn log(line: &str) {
    tracing::info!(target: "callback", "{line}");
}

/// Kills what a guard without a report may have left behind. The death signal took the main process already.
fn kill_left_over(directory: &Path) {
    let pid = fs::read_to_string(directory.join(PID_FILE)).ok();
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.parse().ok()?)) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}
