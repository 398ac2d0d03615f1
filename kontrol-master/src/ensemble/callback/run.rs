//! The master's side of one run: writes the documents, starts the guard, passes on how long the lease lasts, reads the
//! output within its bounds, and judges what came of it.
//!
//! Everything happens in the one task that calls `run`. The run is over when the guard has ended. A caller that drops
//! it closes the control socket, upon which the guard ends the program, but then nobody waits for that: cancel instead.

use super::{
    Failure, Input, Listener, Run, Said, Settings, Validity,
    documents::{Documents, MAX_VARIABLE_BYTES, with_path},
    output::Lines,
    verdict::judge,
};
use kontrol_core::{access::tokens::Token, model::Exact};
use kontrol_runtime::{
    clock::Clock,
    process::{DIRECTORY_PREFIX, End, Guarded, INPUT_FILE, Lease, Order, Pipes, Spec},
};
use rustix::io::Errno;
use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    future::pending,
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    sync::watch,
    time::{Instant, sleep, sleep_until},
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
        Ok(running) => running.finish(lease, token).await,
        Err(failure) => (-1, Err(failure)),
    };
    Run {
        exit_code,
        duration: began.elapsed(),
        outcome,
    }
}

/// One run: a guard that has been told to run the program, and what has come of it so far.
struct Running<'s> {
    settings: &'s Settings,
    guarded: Guarded,
    stdout: Output<ChildStdout>,
    stderr: Output<ChildStderr>,
    /// What is to become the state.
    state: Vec<u8>,
    lines: Lines,
    /// What it calls back with: no line shows it.
    secret: Option<Token>,
    /// Why the program was told to end, if it was.
    asked: Option<Failure>,
    ended: Option<End>,
    /// Until when the guard may take to end, once it was told to; and then the output.
    patience: Option<Instant>,
    /// Removed when the run is over.
    _directory: TempDir,
}

async fn start<'s>(
    settings: &'s Settings,
    input: Input,
    lease: &mut watch::Receiver<Validity>,
    token: &CancellationToken,
) -> Result<Running<'s>, Failure> {
    if token.is_cancelled() {
        return Err(Failure::Stopped);
    }
    let secret = input.token.clone();
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
        settings,
        guarded,
        stdout: Output::new(pipes.stdout),
        stderr: Output::new(pipes.stderr),
        state: Vec::new(),
        lines: Lines::default(),
        secret,
        asked: None,
        ended: None,
        patience: None,
        _directory: directory,
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
        let environment = documents.environment(inherited(), directory, settings.into(), limit);
        for variable in environment.left_out {
            settings.listener.hear(Said::LeftOut(variable));
        }
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

impl Running<'_> {
    async fn finish(
        mut self,
        mut lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> (i32, Result<Option<Exact>, Failure>) {
        let timeout = sleep(self.settings.timeout);
        tokio::pin!(timeout);
        let end = loop {
            if !self.stdout.open
                && !self.stderr.open
                && let Some(end) = self.ended.take()
            {
                break end;
            }
            let runs = self.ended.is_none();
            let goes_on = runs && self.asked.is_none();
            // Every arm can be dropped at any time: what was read has been taken, what waits will be ready again. What
            // ends the run comes first, for a flood of output would hide it.
            tokio::select! {
                biased;
                () = token.cancelled(), if goes_on => self.stop(Failure::Stopped),
                () = &mut timeout, if goes_on => self.stop(Failure::Timeout(self.settings.timeout)),
                validity = confirmed(&mut lease), if runs => self.guarded.tell(Order::Until(until(validity))),
                end = self.guarded.wait(), if runs => {
                    self.ended = Some(end);
                    self.patience = Some(Instant::now() + DRAIN);
                }
                piece = self.stdout.next() => {
                    let most = self.settings.max_output;
                    let room = most.saturating_sub(self.state.len());
                    self.state.extend_from_slice(&piece[..piece.len().min(room)]);
                    if piece.len() > room {
                        // The rest stays in the pipe; the program ends at once.
                        self.stdout.open = false;
                        self.stop(Failure::TooLong(most));
                    }
                }
                piece = self.stderr.next() => {
                    for line in self.lines.push(piece) {
                        hear(self.settings, self.secret.as_ref(), &line);
                    }
                }
                () = sleep_until(self.patience.unwrap_or_else(Instant::now)), if self.patience.is_some() => {
                    self.patience = None;
                    if let Some(end) = self.ended.take() {
                        break end;
                    }
                    tracing::error!(
                        guard = self.guarded.id(),
                        "the callback has not ended though it was told to and killed; waiting for it, for two must not run at once"
                    );
                }
            }
        };
        if let Some(line) = self.lines.end() {
            hear(self.settings, self.secret.as_ref(), &line);
        }
        if !end.left.is_empty() {
            let left = end.left.join(" ");
            self.settings.listener.hear(Said::LeftBehind(&left));
        }
        judge(end.report, end.status, self.asked, &self.state)
    }

    /// Tells the program to end, if it runs.
    fn stop(&mut self, why: Failure) {
        if self.ended.is_none() {
            self.guarded.tell(Order::Stop);
            self.patience = Some(Instant::now() + self.settings.grace + OVERDUE);
        }
        // Too much output fails the run whatever else ended it.
        if self.asked.is_none() || matches!(why, Failure::TooLong(_)) {
            self.asked = Some(why);
        }
    }
}

/// Passes a line on. A callback that shows its variables (`set -x`, `env`) must not show its token to whoever reads the log.
fn hear(settings: &Settings, secret: Option<&Token>, line: &str) {
    let line = match secret {
        Some(token) if line.contains(token.as_str()) => &line.replace(token.as_str(), "***"),
        Some(_) | None => line,
    };
    settings.listener.hear(Said::Line(line));
}

/// One of the two outputs of the program.
struct Output<R> {
    pipe: R,
    open: bool,
    chunk: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Output<R> {
    fn new(pipe: R) -> Self {
        Self {
            pipe,
            open: true,
            chunk: vec![0; CHUNK_BYTES],
        }
    }

    /// The next piece; an empty one at the end, and behind it none. Cancel safe.
    async fn next(&mut self) -> &[u8] {
        if !self.open {
            return pending().await;
        }
        let length = self.pipe.read(&mut self.chunk).await.unwrap_or(0);
        self.open = length > 0;
        &self.chunk[..length]
    }
}

/// How long the program may run, when that changes. Once nobody confirms it any more the guard knows how long it lasts.
async fn confirmed(lease: &mut watch::Receiver<Validity>) -> Validity {
    match lease.changed().await {
        Ok(()) => *lease.borrow_and_update(),
        Err(_) => pending().await,
    }
}

/// The log of a master.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Listener for Log {
    fn hear(&self, said: Said<'_>) {
        match said {
            // A target of our own: the log shows no others at this level.
            Said::Line(line) => tracing::info!(target: "kontrol::callback", "{line}"),
            Said::LeftOut(variable) => say_left_out(variable),
            Said::LeftBehind(processes) => tracing::info!(
                processes,
                "the callback ended and left processes behind, which were killed: nothing that it starts outlives its run"
            ),
        }
    }
}

/// Logs it once for each variable.
fn say_left_out(variable: &'static str) {
    static SAID: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(variable) {
        tracing::warn!(
            variable,
            "too long for an environment variable, left out; the callback finds it in {variable}_FILE and on standard input"
        );
    }
}
