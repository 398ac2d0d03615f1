//! What goes into a rollout and comes out of it.

use crate::{
    model::{PodKey, action::Ended},
    view::View,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// An incarnation of a pod, as something to give orders to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slave {
    /// The pod's key.
    pub key: PodKey,
    /// Its nonce.
    pub nonce: Arc<str>,
}

/// A target: a pod of the roster, or something that was named and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The key as text; empty for a name that no pod has.
    pub key: String,
    /// The name; empty for a key that no pod has.
    pub id: String,
    /// The pod; or why there is none.
    pub pod: Result<PodKey, String>,
    /// The pod's incarnation when the action was accepted.
    pub nonce: String,
}

/// A target of an action that another master carried, from its record.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// The target.
    pub target: Target,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    /// The end of standard output and of standard error.
    pub tails: [String; 2],
}

/// How the targets take turns.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many are at it at a time.
    pub concurrency: usize,
    /// How many start within a quarter of a second: a large command takes memory for each until it is sent.
    pub batch: usize,
    /// After how many failures nobody else starts.
    pub max_failures: u32,
    /// How long a slave that never got the order may take to attach.
    pub attach: Duration,
    /// How many bytes of output each slave may have on its way.
    pub window: u64,
    /// How many bytes of the end of each stream are kept for the history.
    pub tail: usize,
}

/// One of the two streams that a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a slave says of the action.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// The command started.
    Started,
    /// It wrote something.
    Output {
        /// Where.
        stream: Stream,
        /// How many bytes of the stream came before.
        offset: u64,
        /// What.
        data: Bytes,
        /// The stream's further output is not passed on.
        truncated: bool,
    },
    /// The command ended.
    Finished(Ended),
    /// The slave never got it.
    Unknown,
}

/// An order to a slave, about this action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Run it.
    Run,
    /// Tell what became of it, and go on behind these bytes.
    Resume {
        /// Of standard output.
        stdout: u64,
        /// Of standard error.
        stderr: u64,
    },
    /// So many bytes were taken.
    Credit {
        /// Of standard output.
        stdout: u64,
        /// Of standard error.
        stderr: u64,
    },
    /// End it.
    Cancel,
    /// Its end was taken.
    Forget,
}

/// What the dispatcher is told of a target, by its index.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The command started.
    Started(usize),
    /// The command wrote something.
    Output {
        /// The target.
        target: usize,
        /// Where.
        stream: Stream,
        /// What.
        data: Bytes,
        /// The stream's further output is not passed on.
        truncated: bool,
    },
    /// The target has ended.
    Finished(usize),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give an order to slaves.
    Order(Order, Vec<Slave>),
    /// Tell the dispatcher.
    Tell(Event),
}

/// Tells the nonce of the pod with a key, if it is in the roster.
pub trait Incarnations {
    /// The nonce.
    fn nonce(&self, key: PodKey) -> Option<&str>;
}

impl Incarnations for View {
    fn nonce(&self, key: PodKey) -> Option<&str> {
        self.member(key).map(|member| member.pod.nonce())
    }
}
