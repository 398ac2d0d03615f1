//! The master's side of one run: writes the documents, starts the guard, passes on how long the lease lasts, reads the
//! output within its bounds, and judges what came of it.
//!
//! Everything happens in the one task that calls `run`. The run is over when the guard has ended. A caller that drops
//! it closes the control socket, upon which the guard ends the program, but then nobody waits for that: cancel instead.

use super::{
    Failure, Input, Run, Settings, Validity,
    documents::{Documents, MAX_VARIABLE_BYTES, with_path},
    output::Lines,
    verdict::judge,
};
use kontrol_core::model::Exact;
use kontrol_runtime::{
    clock::Clock,
    process::{DIRECTORY_PREFIX, End, Guarded, INPUT_FILE, Lease, Order, Pipes, Spec},
};
use rustix::io::Errno;
use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
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
    guarded: Guarded,
    pipes: Pipes,
    /// Removed when the run is over.
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
    if matches!(validity, Validity::Until { soft, .. } if soft <= Clock::default().now()) {
        return Err(Failure::LeaseUnconfirmed);
    }
    let not_started = |error: io::Error| Failure::NotStarted(format!("start its guard: {error}"));
    let guarded = spawn(settings, &documents, directory.path()).await;
    let (mut guarded, pipes) = guarded.map_err(not_started)?;
    guarded.tell(Order::Until(until(validity)));
    Ok(Running {
        guarded,
        pipes,
        directory,
    })
}

/// Until when the program may run.
fn until(validity: Validity) -> Lease {
    match validity {
        Validity::Forever => Lease::Forever,
        Validity::Until { soft, hard } => Lease::Until {
            soft: soft.millis(),
            hard: hard.millis(),
        },
    }
}

/// Writes the documents into a new directory that only this user can enter.
fn write(documents: &Documents) -> io::Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix(DIRECTORY_PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()?;
    fs::write(directory.path().join(INPUT_FILE), documents.input())?;
    for (file, document) in documents.files() {
        fs::write(directory.path().join(file), document)?;
    }
    Ok(directory)
}

/// What the callback inherits, so that it finds the master's own executable by its name, and other programs even where the
/// master has no PATH.
fn inherited() -> Vec<(OsString, OsString)> {
    let executable = env::current_exe().ok();
    let home = executable.as_deref().and_then(Path::parent);
    with_path(env::vars_os(), home)
}

async fn spawn(
    settings: &Settings,
    documents: &Documents,
    directory: &Path,
) -> io::Result<(Guarded, Pipes)> {
    let spec = |limit| {
        let environment = documents.environment(inherited(), directory, &settings.endpoint, limit);
        say_left_out(&environment.left_out);
        Spec {
            guard: settings.guard.clone(),
            guard_environment: environment.variables,
            directory: Some(directory.to_owned()),
            ..Spec::new("kontrol-master", settings.program.argv(), settings.grace)
        }
    };
    match Guarded::start(spec(MAX_VARIABLE_BYTES)).await {
        // With a small stack limit even variables that fit one by one can be too much together.
        Err(error) if error.raw_os_error() == Some(Errno::TOOBIG.raw_os_error()) => {
            Guarded::start(spec(0)).await
        }
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

impl Running {
    async fn finish(
        self,
        settings: &Settings,
        mut lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> (i32, Result<Option<Exact>, Failure>) {
        let Self {
            mut guarded,
            pipes: Pipes {
                mut stdout,
                mut stderr,
            },
            directory,
        } = self;
        let mut asked: Option<Failure> = None;
        let mut ended: Option<End> = None;
        let mut lease_known = true;
        let (mut output, mut stdout_open, mut out_chunk) = (Vec::new(), true, vec![0; CHUNK_BYTES]);
        let (mut lines, mut stderr_open, mut err_chunk) =
            (Lines::default(), true, vec![0; CHUNK_BYTES]);
        let timeout = sleep(settings.timeout);
        // Set when it starts to count: at the stop, then at the end of the guard.
        let patience = sleep(Duration::ZERO);
        tokio::pin!(timeout, patience);
        let mut patient = false;

        let end = loop {
            if !stdout_open
                && !stderr_open
                && let Some(end) = ended.take()
            {
                break end;
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
                        guarded.tell(Order::Until(until(validity)));
                    }
                    // Nobody confirms it any more; the guard knows how long it lasts.
                    Err(_) => lease_known = false,
                },
                end = guarded.wait(), if ended.is_none() => {
                    ended = Some(end);
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
                    if let Some(end) = ended.take() {
                        break end;
                    }
                    tracing::error!(
                        guard = guarded.id(),
                        "the callback has not ended though it was told to and killed; waiting for it, for two must not run at once"
                    );
                }
            }
            if let Some(failure) = stop {
                if ended.is_none() {
                    guarded.tell(Order::Stop);
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
        if !end.left.is_empty() {
            tracing::info!(
                processes = end.left.join(" "),
                "the callback ended and left processes behind, which were killed: nothing that it starts outlives its run"
            );
        }
        drop(directory);
        judge(end.report, end.status, asked, &output)
    }
}

/// A target of our own: the log shows no others at this level.
fn log(line: &str) {
    tracing::info!(target: "kontrol::callback", "{line}");
}
