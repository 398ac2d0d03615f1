//! The slave inside a Rust service: a builder that checks what it was given, and a handle on what then runs.
//!
//! What always holds:
//!
//! 1. Nothing of the process is touched but what the service is asked for here: no signals, no children, no log subscriber, no
//!    panic hook, no environment. Several slaves can be in one process.
//! 2. Everything runs in the runtime in which [`SlaveBuilder::start`] was called, of either flavour: in tasks, and handlers on its
//!    threads for blocking work.
//! 3. No action does anything unless there is a [handler](SlaveBuilder::handler).

mod builder;

pub use builder::{SlaveBuilder, StartError, WrongSetting};

use crate::{
    agent::{Agent, TierStatus},
    payload::{self, PayloadError},
};
use serde_json::Value;
use std::time::Duration;
use tokio::{runtime::Handle, sync::watch, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long the agent may take to stop; it promises less.
const GRACE: Duration = Duration::from_secs(4);

/// A slave that runs in this process: it reports the service as a pod, until it is stopped or dropped.
///
/// [`stop`](Self::stop) says goodbye, so that the pod leaves at once, and waits for that. *Dropped* without it, the slave says
/// goodbye in the background, as long as its runtime lives. Where the runtime or the process ends first, the pod is lost to its
/// masters within seconds, or expires when its TTL is over.
///
/// All methods take `&self`: share it in an [`Arc`](std::sync::Arc), or where the service keeps its state.
#[derive(Debug)]
pub struct Slave {
    nonce: String,
    payload: watch::Sender<Value>,
    status: watch::Receiver<Vec<TierStatus>>,
    token: CancellationToken,
    ended: CancellationToken,
    task: AbortHandle,
}

/// The slave was stopped, or its runtime was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the slave has ended")]
pub struct Ended;

impl Slave {
    /// A slave that will report to these masters, each as `http://host[:port]` or `https://host[:port]`; port 8000 unless given.
    /// `,` separates tiers, each of which hears of the pod; `|` separates the endpoints of one tier, of which one is in use.
    pub fn builder(masters: impl Into<String>) -> SlaveBuilder {
        SlaveBuilder::new(masters.into())
    }

    /// Starts the agent, which reads these payloads.
    fn run(runtime: &Handle, agent: Agent, payload: watch::Sender<Value>) -> Self {
        let (token, ended) = (CancellationToken::new(), CancellationToken::new());
        let (nonce, status) = (agent.nonce().to_owned(), agent.status());
        let (running, over) = (agent.run(token.clone()), ended.clone().drop_guard());
        let task = runtime.spawn(async move {
            let _over = over;
            running.await;
        });
        Self {
            nonce,
            payload,
            status,
            token,
            ended,
            task: task.abort_handle(),
        }
    }

    /// Sets the pod's payload. It is sent at once, if it is another; of several in quick succession maybe only the last one.
    ///
    /// # Errors
    ///
    /// More than 64 KiB as canonical JSON, more than 30 levels, or an integer that no double holds (beyond 2^53: write it as a
    /// string). The pod then goes on with the payload that it had.
    pub fn set_payload(&self, payload: Value) -> Result<(), PayloadError> {
        payload::check(&payload)?;
        self.payload.send_if_modified(|before| {
            let news = *before != payload;
            *before = payload;
            news
        });
        Ok(())
    }

    /// How each tier fares, in the order in which they were given: who answered last and when, the pod's key and seq there, and
    /// what is wrong if something is. Of a slave that has ended: how they fared last.
    pub fn status(&self) -> Vec<TierStatus> {
        self.status.borrow().clone()
    }

    /// The same, to be followed: it changes with each keepalive.
    pub fn changes(&self) -> watch::Receiver<Vec<TierStatus>> {
        self.status.clone()
    }

    /// Waits until a master of any tier has counted a keepalive: the pod is known there. It waits for as long as none does;
    /// [`status`](Self::status) says why. Cancel safe.
    pub async fn ready(&self) -> Result<(), Ended> {
        let counted = |all: &Vec<TierStatus>| all.iter().any(|tier| tier.last_answer.is_some());
        let mut status = self.status.clone();
        let known = status.wait_for(counted).await;
        // What was told last stays readable.
        known
            .ok()
            .filter(|_| !self.ended.is_cancelled())
            .map(drop)
            .ok_or(Ended)
    }

    /// The incarnation of the pod: 16 hex digits, drawn at the start.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Ends the actions that run, says goodbye to every tier, and waits for that: three seconds at most, whatever is
    /// unreachable, and as a rule some milliseconds. Called again, it waits for the same.
    pub async fn stop(&self) {
        self.token.cancel();
        if timeout(GRACE, self.ended.cancelled()).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
