//! Actions that code of this process answers instead of commands: what it is asked, what it writes, and what it answers.
//!
//! What holds for commands holds for it: it is called once at most for each action, its output goes no faster than it is
//! taken and is cut where the dispatch says, and there is one end, whatever it does.

use futures::future::BoxFuture;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    task::yield_now,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How much of each stream may be written and not be read yet: what a pipe of Linux holds.
const PIPE_BYTES: usize = 64 * 1024;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionCommand {
    /// Words, as after `kontrol-master exec ... --`. Never empty.
    Argv(Vec<String>),
    /// A text that a shell would run; a handler may take it for anything.
    Shell(String),
}

/// An action that a handler is to carry out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActionRequest {
    /// The action's id, which the masters' history has as well: up to 32 hex digits.
    pub id: String,
    /// The pod's key at the masters that ask.
    pub key: String,
    /// What is to be done.
    pub command: ActionCommand,
    /// The variables that a command would get.
    pub env: BTreeMap<String, String>,
    /// The input, if there is one.
    pub input: Option<Value>,
    /// When the action has timed out: then `cancellation` is cancelled.
    pub deadline: Instant,
    /// Cancelled when the handler is to end: somebody cancelled the action, it timed out, or the slave stops. A handler that has
    /// not ended two seconds later (a quarter of a second when the slave stops) is dropped where it awaits.
    pub cancellation: CancellationToken,
}

/// Where a handler writes. Move the two out to write from two places.
#[derive(Debug)]
pub struct ActionOutput {
    /// Standard output.
    pub stdout: ActionStream,
    /// Standard error.
    pub stderr: ActionStream,
}

/// One of the two streams of an action. It holds up whoever writes while the masters take nothing, and keeps what the dispatch
/// asked for; the rest is thrown away and counted. What is written after the handler has returned is lost.
#[derive(Debug)]
pub struct ActionStream(DuplexStream);

/// Why a handler does not do what it is asked: the action's outcome is REFUSED, with this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// What a handler answers: an exit code, 0 for success; or why it refuses.
pub type ActionReply = Result<u8, Refused>;

/// Code of this process that carries actions out. Cheap to clone.
#[derive(Clone)]
pub struct Handler(Arc<Code>);

type Code = dyn Fn(ActionRequest, ActionOutput) -> BoxFuture<'static, ActionReply> + Send + Sync;

impl Handler {
    /// Takes the code. It is called on a thread of its own for each action.
    pub fn new<F, A>(code: F) -> Self
    where
        F: Fn(ActionRequest, ActionOutput) -> A + Send + Sync + 'static,
        A: Future<Output = ActionReply> + Send + 'static,
    {
        Self(Arc::new(move |request, output| {
            Box::pin(code(request, output))
        }))
    }

    /// Carries one action out.
    pub(super) async fn call(self, request: ActionRequest, output: ActionOutput) -> ActionReply {
        (self.0)(request, output).await
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

impl Refused {
    /// Refuses for this reason.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl ActionOutput {
    /// Where a handler writes, and the other ends: standard output and standard error.
    pub(super) fn pipes() -> (Self, DuplexStream, DuplexStream) {
        let (stdout, from_stdout) = duplex(PIPE_BYTES);
        let (stderr, from_stderr) = duplex(PIPE_BYTES);
        let output = Self {
            stdout: ActionStream(stdout),
            stderr: ActionStream(stderr),
        };
        (output, from_stdout, from_stderr)
    }
}

impl ActionStream {
    /// Writes all of it. It is lost where the action has ended meanwhile; [`AsyncWrite`] tells that by an error.
    pub async fn print(&mut self, data: impl AsRef<[u8]>) {
        if self.0.write_all(data.as_ref()).await.is_err() {
            // Whoever writes on and on does not hold up others by it.
            yield_now().await;
        }
    }
}

impl AsyncWrite for ActionStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
