//! The callback: one run of the user's program, with the roster as its input and the new state as its output.
//!
//! It runs under a guard (see `kontrol_runtime::process`): when that has ended, so has everything that the program started,
//! and the program has ended before the leader's lease can, `kill -9` and SIGSTOP of the master included.
//!
//! Nothing here persists, retries, or decides when to run: the term does.

pub mod changes;
mod documents;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod output;
pub mod program;
mod run;
mod verdict;

pub use program::{Program, ProgramError};
pub use run::{Log, run};

use async_trait::async_trait;
use kontrol_core::{
    access::tokens::Token,
    json::depth_of_text,
    limits::Limits,
    model::{Digest, Exact, exact::MAX_STATE_BYTES},
};
use kontrol_runtime::{clock::Moment, process::OWN_EXECUTABLE};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs the callback once: the user's program, or what a test has in its place.
#[async_trait]
pub trait Runner: Send + Sync + fmt::Debug {
    /// Runs it. `lease` is refreshed at each keep-alive that the store confirms, and the run ends before it does; `token`
    /// ends the run. When this returns, nothing of the run is left.
    async fn run(
        &self,
        input: Input,
        lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> Run;
}

/// What is the same for every run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The user's program.
    pub program: Program,
    /// How long it may take.
    pub timeout: Duration,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The executable of the master, which is guard and shim as well; `OWN_EXECUTABLE` but in tests.
    pub guard: PathBuf,
    /// Where the program reaches this master: `KONTROL_ENDPOINT`.
    pub endpoint: String,
    /// The authorities by which it knows masters, if that is not those of the system: `KONTROL_CA`.
    pub ca: Option<PathBuf>,
    /// Most bytes of standard output.
    pub max_output: usize,
    /// What this master takes as a state.
    pub limits: Limits,
    /// Who is told what a run says; the log but in a trial.
    pub listener: Arc<dyn Listener>,
}

impl Settings {
    /// The settings of a program that is reached back at this endpoint, with the defaults for all else.
    pub fn new(program: Program, endpoint: impl Into<String>) -> Self {
        Self {
            program,
            timeout: Duration::from_secs(60),
            grace: Duration::from_secs(2),
            guard: OWN_EXECUTABLE.into(),
            endpoint: endpoint.into(),
            ca: None,
            // Room for the largest state, indented.
            max_output: 4 * MAX_STATE_BYTES,
            limits: Limits::default(),
            listener: Arc::new(Log),
        }
    }
}

#[async_trait]
impl Runner for Settings {
    async fn run(
        &self,
        input: Input,
        lease: watch::Receiver<Validity>,
        token: CancellationToken,
    ) -> Run {
        let mut run = run(self, input, lease, token).await;
        if let Ok(Some(state)) = &run.outcome
            && let Some(reason) = self.limits.too_deep(depth_of_text(state.as_str()))
        {
            run.outcome = Err(Failure::NotJson(format!("what it wrote {reason}")));
        }
        run
    }
}

/// Is told what a run says while it goes on. It must not block: the run waits for it.
pub trait Listener: Send + Sync + fmt::Debug {
    /// Takes what was said.
    fn hear(&self, said: Said<'_>);
}

/// What is said during a run.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// A line that the program wrote to standard error.
    Line(&'a str),
    /// The document of this variable is too long for an environment and is not in it.
    LeftOut(&'static str),
    /// The program ended and left these processes behind, which were killed.
    LeftBehind(&'a str),
}

/// What one run is about.
#[derive(Debug, Clone)]
pub struct Input {
    /// The digest to handle: MD5 of `pods`.
    pub digest: Digest,
    /// The PODS document.
    pub pods: Vec<u8>,
    /// The state that the last successful run left.
    pub state: Option<Exact>,
    /// The CHANGES document, see [`changes::document`].
    pub changes: Vec<u8>,
    /// The epoch of the leader that runs it.
    pub epoch: i64,
    /// What it calls back with; none where nobody is asked who it is.
    pub token: Option<Token>,
}

/// What the program finds on its standard input.
pub fn standard_input(input: Input) -> Vec<u8> {
    documents::Documents::new(input).input()
}

/// Until when the leader knows itself to be the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// As long as the process lives: the store is inside of it.
    Forever,
    /// Until the lease may have ended, if it is not confirmed again.
    Until {
        /// When the program gets SIGTERM.
        soft: Moment,
        /// When it gets SIGKILL, early enough that it is gone when the lease ends.
        hard: Moment,
    },
}

impl Validity {
    /// The validity that follows from a keep-alive which the store confirmed: `asked` is when it was sent.
    pub fn confirmed(asked: Moment, ttl: Duration) -> Self {
        Self::Until {
            soft: asked + ttl.mul_f64(0.65),
            hard: asked + ttl.mul_f64(0.85),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub struct Run {
    /// The exit code of the program; 128 + N when signal N ended it; -1 when it was not started.
    pub exit_code: i32,
    /// From the start until everything had ended.
    pub duration: Duration,
    /// The new state, or none when the program wrote nothing.
    pub outcome: Result<Option<Exact>, Failure>,
}

/// Why a run counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It exited with a code other than 0.
    #[error("the callback exited with code {0}")]
    Exit(i32),
    /// A signal that the guard did not send ended it.
    #[error("the callback was killed by signal {0}")]
    Signal(i32),
    /// It took too long.
    #[error(
        "the callback did not end within {0:?}; if it needs longer, raise KONTROL_CALLBACK_TIMEOUT"
    )]
    Timeout(Duration),
    /// Standard output is not one JSON value.
    #[error("the callback must write one JSON value or nothing to standard output, but {0}")]
    NotJson(String),
    /// Standard output is too long.
    #[error("the callback wrote more than {0} bytes to standard output")]
    TooLong(usize),
    /// It could not be started.
    #[error("the callback could not be started: {0}")]
    NotStarted(String),
    /// Leadership was given up or lost, or the master shuts down.
    #[error("the callback was stopped: this master leads no more, or shuts down")]
    Stopped,
    /// The leader's lease was not confirmed in time.
    #[error("the callback was stopped: the leader's lease was not confirmed in time")]
    LeaseUnconfirmed,
    /// Something ended the guard, and the program with it.
    #[error("the callback was stopped: its guard process ended ({0})")]
    GuardLost(String),
}
