//! Answers that wait for their readers, of all connections and of each: reads are refused while they take too much memory.
//! Keepalives are not: their answers are small.

use crate::metrics::{Metrics, Queue};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tonic::Status;

/// How much may wait before reads are refused, of all connections, and of one.
const MAX_BYTES: usize = 256 * 1024 * 1024;
const MAX_BYTES_EACH: usize = 32 * 1024 * 1024;

/// What waits: an extension of every request. Cheap to clone.
#[derive(Clone, Default)]
pub struct Unsent {
    all: Arc<AtomicUsize>,
    here: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsent").finish_non_exhaustive()
    }
}

impl Unsent {
    /// Nothing waits. `metrics`: where it counts what is refused.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// Of another connection.
    pub(super) fn of_another(&self) -> Self {
        Self {
            here: Arc::default(),
            ..self.clone()
        }
    }

    /// Refuses a read while too much waits.
    pub fn check(&self) -> Result<(), Status> {
        let mib = |bytes: usize| bytes / 1024 / 1024;
        let refused = if self.here.load(Ordering::Relaxed) > MAX_BYTES_EACH {
            let limit = mib(MAX_BYTES_EACH);
            format!("{limit} MiB of answers wait on this connection: read them first")
        } else if self.all.load(Ordering::Relaxed) > MAX_BYTES {
            let limit = mib(MAX_BYTES);
            format!("{limit} MiB of answers wait for their readers: try again, or another master")
        } else {
            return Ok(());
        };
        self.metrics.turned_away(Queue::Answers);
        Err(Status::resource_exhausted(refused))
    }

    /// What one answer takes.
    pub(super) fn share(&self) -> Share {
        Share {
            unsent: self.clone(),
            bytes: 0,
        }
    }
}

/// What waits of one answer.
#[derive(Debug)]
pub(super) struct Share {
    unsent: Unsent,
    bytes: usize,
}

impl Share {
    pub(super) fn set(&mut self, bytes: usize) {
        for counter in [&self.unsent.all, &self.unsent.here] {
            if bytes > self.bytes {
                counter.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            } else if bytes < self.bytes {
                counter.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_refused_while_too_much_waits() {
        let first = Unsent::default();
        let second = first.of_another();
        let mut share = first.share();
        share.set(MAX_BYTES_EACH);
        first.check().unwrap();
        share.set(MAX_BYTES_EACH + 1);
        assert!(
            first
                .check()
                .unwrap_err()
                .message()
                .contains("this connection")
        );
        second.check().unwrap();
        let mut other = second.of_another().share();
        other.set(MAX_BYTES - MAX_BYTES_EACH);
        assert!(
            second
                .check()
                .unwrap_err()
                .message()
                .contains("another master")
        );
        drop((share, other));
        first.check().unwrap();
        assert_eq!(second.all.load(Ordering::Relaxed), 0);
    }
}
