//! Supervision of a program's tasks: each has a name, one token stops them all, and all are joined.
//!
//! Invariant: a task that ends while the token still stands (returned, failed or panicked) stops the whole program,
//! with an error that names it. After the token is cancelled the tasks have one common deadline; what still runs then
//! is aborted, joined and named. The master runs on this as well as the slave.

use crate::logging;
use futures::{FutureExt, future::OptionFuture};
use std::{
    borrow::Cow,
    collections::HashMap,
    convert::Infallible,
    fmt, fs,
    future::Future,
    io,
    panic::{AssertUnwindSafe, resume_unwind},
    process,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a task fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a task may return: nothing, or a result.
pub trait Outcome {
    /// Tells whether the task failed.
    fn into_result(self) -> Result<(), BoxError>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> Outcome for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

/// Why a program did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A task returned though nobody asked it to.
    #[error("{0} ended unexpectedly")]
    Ended(Cow<'static, str>),
    /// A task failed.
    #[error("{name} failed: {source}")]
    Failed {
        /// The task.
        name: Cow<'static, str>,
        /// What it failed with.
        source: BoxError,
    },
    /// A task panicked: a bug.
    #[error("{0} panicked; this is a bug, please report it with the lines above")]
    Panicked(Cow<'static, str>),
    /// Tasks did not end in time after they were told to.
    #[error("{} did not stop in time and was cut off", List(.0))]
    Stuck(Vec<Cow<'static, str>>),
}

/// Names, with commas between them.
struct List<'a>(&'a [Cow<'static, str>]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// The named tasks of a program.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, Cow<'static, str>>,
    token: CancellationToken,
}

impl Tasks {
    /// No tasks yet; `token` will stop them.
    pub fn new(token: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            names: HashMap::new(),
            token,
        }
    }

    /// The token that stops the tasks; each task is given a clone.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task. It must run until the token is cancelled, and end soon after.
    pub fn spawn<F>(&mut self, name: impl Into<Cow<'static, str>>, task: F)
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        let handle = self.set.spawn(async move { task.await.into_result() });
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until the token is cancelled or a task ends early, then stops all tasks, within `grace`. Without any task
    /// it still waits for the token. Cancel safe: dropping it aborts the tasks.
    pub async fn run(mut self, grace: Duration) -> Result<(), Failure> {
        let token = self.token.clone();
        let mut failure = None;
        tokio::select! {
            biased;
            () = token.cancelled() => {}
            Some(ended) = self.set.join_next_with_id() => failure = self.judge(ended),
        }
        token.cancel();
        let deadline = Instant::now() + grace;
        while let Ok(Some(ended)) = timeout_at(deadline, self.set.join_next_with_id()).await {
            let later = self.judge(ended);
            failure = failure.or(later);
        }
        let stuck: Vec<_> = self.names.values().cloned().collect();
        self.set.shutdown().await;
        if !stuck.is_empty() {
            failure = failure.or(Some(Failure::Stuck(stuck)));
        }
        failure.map_or(Ok(()), Err)
    }

    /// What it means that a task ended. A plain return is fine once the token is cancelled.
    fn judge(&mut self, ended: Result<(Id, Result<(), BoxError>), JoinError>) -> Option<Failure> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or("a task".into());
        match ended {
            Ok((_, Ok(()))) if self.token.is_cancelled() => None,
            Ok((_, Ok(()))) => Some(Failure::Ended(name)),
            Ok((_, Err(source))) => Some(Failure::Failed { name, source }),
            Err(_) => Some(Failure::Panicked(name)),
        }
    }
}

/// Tasks that come and go, one for each request or stream. A panic of one of them is a failure of them all: nobody else
/// would notice the hole that it leaves.
#[derive(Debug, Clone)]
pub struct Children {
    /// What one of them is called.
    name: &'static str,
    tracker: TaskTracker,
    panicked: CancellationToken,
}

impl Children {
    /// None yet; `name` is what one of them is called.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            tracker: TaskTracker::new(),
            panicked: CancellationToken::new(),
        }
    }

    /// Starts one.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let panicked = self.panicked.clone();
        self.tracker.spawn(async move {
            // Nothing of it is used behind a panic.
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(output) => output,
                Err(panic) => {
                    panicked.cancel();
                    resume_unwind(panic)
                }
            }
        })
    }

    /// Waits for the end of each, once the token is cancelled; a panic ends it at any time.
    pub async fn joined(self, token: CancellationToken) -> Result<(), Failure> {
        let ended = async {
            token.cancelled().await;
            self.tracker.close();
            self.tracker.wait().await;
        };
        let ended = self.panicked.run_until_cancelled(ended).await;
        // The last one may have ended by it.
        match ended {
            Some(()) if !self.panicked.is_cancelled() => Ok(()),
            Some(()) | None => Err(Failure::Panicked(self.name.into())),
        }
    }
}

/// A second signal that comes sooner than this is part of the first.
const IMPATIENCE: Duration = Duration::from_millis(500);

/// Listens for SIGTERM, SIGINT and SIGHUP from the moment of the call. The first cancels the token; a second, half a second later or
/// more, ends the process at once with 128 + its number, for the operator who will not wait. Sooner it is the same request:
/// `timeout` and shells signal a process, and then its group. The future never ends: race it against the work.
pub fn signals(token: CancellationToken) -> io::Result<impl Future<Output = Infallible> + Send> {
    signals_or_hangup(token, CancellationToken::new())
}

/// The same, and cancels `hangup` before the token where SIGHUP is what ends it: whoever sends that will start the program
/// again.
pub fn signals_or_hangup(
    token: CancellationToken,
    hangup: CancellationToken,
) -> io::Result<impl Future<Output = Infallible> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Under nohup(1) it stays ignored.
    let mut hung_up = match is_ignored(SignalKind::hangup()) {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    Ok(async move {
        let mut told: Option<Instant> = None;
        loop {
            // Where several wait, one that asks for a goodbye counts.
            let (name, number) = tokio::select! {
                biased;
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
                Some(_) = OptionFuture::from(hung_up.as_mut().map(Signal::recv)) => ("SIGHUP", SignalKind::hangup().as_raw_value()),
            };
            if let Some(at) = told {
                if at.elapsed() < IMPATIENCE {
                    continue;
                }
                tracing::warn!("{name} while stopping: ending at once");
                logging::flush();
                process::exit(128 + number);
            }
            told = Some(Instant::now());
            tracing::info!("{name}: stopping");
            if name == "SIGHUP" {
                hangup.cancel();
            }
            token.cancel();
        }
    })
}

/// Whether this process was started with that signal ignored (proc(5), `SigIgn`).
fn is_ignored(signal: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::timeout;

    const GRACE: Duration = Duration::from_secs(2);

    fn tasks() -> Tasks {
        Tasks::new(CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_obey_the_token_stop_cleanly() {
        let mut tasks = tasks();
        let token = tasks.token().clone();
        for name in ["one", "two"] {
            tasks.spawn(name, token.clone().cancelled_owned());
        }
        let run = tokio::spawn(tasks.run(GRACE));
        token.cancel();
        run.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_early_stops_the_others_and_is_named() {
        let mut tasks = tasks();
        let token = tasks.token().clone();
        tasks.spawn("waiter", token.clone().cancelled_owned());
        tasks.spawn("quitter", async {});
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert_eq!(failure.to_string(), "quitter ended unexpectedly");
        assert!(token.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_is_named_with_its_reason() {
        let mut tasks = tasks();
        tasks.spawn("store", async { Err::<(), _>("disk full") });
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert_eq!(failure.to_string(), "store failed: disk full");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_named() {
        let mut tasks = tasks();
        tasks.spawn("bug", async {
            assert!(pending::<()>().now_or_never().is_some(), "on purpose")
        });
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert!(matches!(failure, Failure::Panicked(name) if name == "bug"));
    }

    #[tokio::test(start_paused = true)]
    async fn children_are_waited_for_and_a_panic_of_one_is_told_at_once() {
        let token = CancellationToken::new();
        let children = Children::new("a child");
        let (of_child, end) = (token.clone(), Duration::from_secs(1));
        children.spawn(async move {
            of_child.cancelled().await;
            tokio::time::sleep(end).await;
        });
        let joined = tokio::spawn(children.clone().joined(token.clone()));
        let start = Instant::now();
        token.cancel();
        joined.await.unwrap().unwrap();
        assert_eq!(start.elapsed(), end);

        let token = CancellationToken::new();
        let children = Children::new("a child");
        children.spawn(pending::<()>());
        let child = children.spawn(async { assert!(std::hint::black_box(false), "on purpose") });
        let joined = timeout(end, children.joined(token)).await;
        let failure = joined.expect("it is told").unwrap_err();
        assert!(matches!(failure, Failure::Panicked(name) if name == "a child"));
        assert!(child.await.unwrap_err().is_panic());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_stop_is_cut_off_at_the_deadline_and_named() {
        let mut tasks = tasks();
        let token = tasks.token().clone();
        tasks.spawn("good", token.clone().cancelled_owned());
        tasks.spawn("deaf", pending::<()>());
        token.cancel();
        let start = Instant::now();
        let failure = tasks.run(GRACE).await.unwrap_err();
        assert!(failure.to_string().starts_with("deaf did not stop"));
        assert_eq!(start.elapsed(), GRACE);
    }
}
