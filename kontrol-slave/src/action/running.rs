//! What carries an action out, as the action's task sees it: something that runs and can be asked to end, what it writes, and
//! how it ended. The task knows no more of it, so that waiting, output, time-outs and ends are the same whatever runs.

use super::{
    call::{Call, CallEnd, Calling, How},
    command::{self, GRACE},
    outbox::PIECE_BYTES,
    outcome::{self, Stop},
};
use bytes::{Bytes, BytesMut};
use kontrol_proto::v1::{ActionResult, Stream};
use kontrol_runtime::process::{End, Guarded, Lease, Order, Spec};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::OwnedSemaphorePermit,
    time::Instant,
};

/// How long output may still come once a command has ended. Its guard closes the pipes, for nothing is left that holds them,
/// unless it was killed.
const DRAIN: Duration = Duration::from_secs(1);

/// What is to be carried out.
pub(super) enum What {
    /// A command, in a process of its own.
    Command(Box<Spec>),
    /// A call of the handler, in this process.
    Call(Box<Call>),
}

impl What {
    /// How much memory it takes until it runs.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Command(spec) => command::bytes(spec),
            Self::Call(call) => call.bytes(),
        }
    }
}

/// What runs. Dropped, it ends, but then nobody waits for that.
pub(super) enum Running {
    /// A command under its guard.
    Command(Box<Guarded>),
    /// A call of the handler.
    Call(Calling),
}

/// How it ended, and with it all that it started.
pub(super) enum Ended {
    /// As its guard says.
    Command(End),
    /// As the task of the handler did.
    Call(CallEnd),
}

impl Running {
    /// Starts it; or says why it does not run. At the deadline it is asked to end, and a grace later it is ended. `slot`: its
    /// place among those that run.
    pub(super) async fn start(
        what: What,
        deadline: Instant,
        slot: &Arc<OwnedSemaphorePermit>,
    ) -> Result<(Self, Output), String> {
        match what {
            What::Command(spec) => {
                let started = Guarded::start(*spec).await;
                let (mut guarded, pipes) = started
                    .map_err(|error| format!("the command could not be started: {error}"))?;
                guarded.tell(Order::Until(Lease::until(deadline, deadline + GRACE)));
                let output = Output::new(pipes.stdout, pipes.stderr);
                Ok((Self::Command(Box::new(guarded)), output))
            }
            What::Call(call) => {
                let (calling, stdout, stderr) = Calling::start(*call, deadline, Arc::clone(slot));
                Ok((Self::Call(calling), Output::new(stdout, stderr)))
            }
        }
    }

    /// Asks it to end, and ends it a grace later: a shorter one when the slave stops.
    pub(super) fn stop(&mut self, stop: Stop) {
        match (self, stop) {
            // The guard then grants only the shorter grace of an orphan.
            (Self::Command(guarded), Stop::SlaveStops) => guarded.abandon(),
            (Self::Command(guarded), Stop::Cancelled) => guarded.tell(Order::Stop),
            (Self::Call(calling), stop) => calling.stop(stop),
        }
    }

    /// Waits for its end. Cancel safe; not to be called again after that.
    pub(super) async fn wait(&mut self) -> Ended {
        match self {
            Self::Command(guarded) => Ended::Command(guarded.wait().await),
            Self::Call(calling) => Ended::Call(calling.wait().await),
        }
    }
}

impl Ended {
    /// How long what it wrote may still come.
    pub(super) fn drain(&self) -> Duration {
        match self {
            Self::Command(_) => DRAIN,
            // It is there already.
            Self::Call(_) => Duration::ZERO,
        }
    }

    /// Says in the log what is odd about it.
    pub(super) fn remark(&self, action: &str) {
        match self {
            Self::Command(end) if !end.left.is_empty() => {
                let processes = end.left.join(" ");
                tracing::info!(
                    action,
                    processes,
                    "the command ended and left processes behind, which were killed"
                );
            }
            Self::Call(CallEnd {
                how: how @ (How::Panicked(_) | How::Deaf),
                ..
            }) => {
                tracing::warn!(action, "the handler of actions failed: {how:?}");
            }
            Self::Command(_) | Self::Call(_) => {}
        }
    }

    /// What the master is told of it.
    pub(super) fn judge(self, stop: Option<Stop>, timeout: Duration) -> ActionResult {
        match self {
            Self::Command(end) => outcome::judge(end, stop, timeout),
            Self::Call(end) => outcome::judge_call(end, stop, timeout),
        }
    }
}

type Pipe = Box<dyn AsyncRead + Send + Unpin>;

/// What it writes: two pipes, each of which is closed once it has ended.
pub(super) struct Output {
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

impl Output {
    fn new(
        stdout: impl AsyncRead + Send + Unpin + 'static,
        stderr: impl AsyncRead + Send + Unpin + 'static,
    ) -> Self {
        Self {
            stdout: Some(Box::new(stdout)),
            stderr: Some(Box::new(stderr)),
        }
    }

    /// Whether nothing more comes.
    pub(super) fn is_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Takes nothing more.
    pub(super) fn close(&mut self) {
        self.stdout = None;
        self.stderr = None;
    }

    /// What was written, as far as there is room in each of the two; nothing when one of them has ended. Cancel safe.
    pub(super) async fn read(&mut self, room: [usize; 2]) -> Option<(Stream, Bytes)> {
        let (pipe, stream, data) = tokio::select! {
            biased;
            data = read(self.stdout.as_mut(), room[0]) => (&mut self.stdout, Stream::Stdout, data),
            data = read(self.stderr.as_mut(), room[1]) => (&mut self.stderr, Stream::Stderr, data),
        };
        if data.is_none() {
            *pipe = None;
        }
        data.map(|data| (stream, data))
    }
}

/// Reads what there is, as far as there is room; nothing at the end of the stream.
async fn read(pipe: Option<&mut Pipe>, room: usize) -> Option<Bytes> {
    match pipe {
        Some(pipe) if room > 0 => {
            let mut data = BytesMut::with_capacity(room.min(PIECE_BYTES));
            let mut limited = pipe.take(room as u64);
            match limited.read_buf(&mut data).await {
                // Little, in a buffer of its size: many such pieces may wait.
                Ok(length) if length > 0 && length < data.capacity() / 2 => {
                    Some(Bytes::copy_from_slice(&data))
                }
                Ok(1..) => Some(data.freeze()),
                Ok(0) | Err(_) => None,
            }
        }
        Some(_) | None => pending().await,
    }
}
