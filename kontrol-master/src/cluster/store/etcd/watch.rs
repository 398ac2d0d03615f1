//! One watch of an ensemble's keys in etcd, on a connection of its own.
//!
//! A watch that hears nothing for a while asks for a sign of life, and ends when none comes: a member that is paused or
//! cut off looks just like an ensemble in which nothing happens. The revision of such a sign is not used: some etcd
//! servers send it ahead of events that they still owe. etcd does not split a revision between two answers, as long as
//! fragments are not asked for; should an answer ever begin within what was delivered, the watch says `Compacted`, and
//! its reader takes a snapshot.

use super::{failure::Failure, relative};
use crate::cluster::store::{StoreError, Watch};
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Error, KeyValue, ResponseHeader, WatchOptions, WatchResponse, WatchStream,
};
use kontrol_core::kv::{Entry, Event, Events, Revision};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

/// After this silence a sign of life is asked for.
const SILENCE: Duration = Duration::from_secs(2);
/// How long it may take.
const SIGN_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer: a reader that is further behind does better with a snapshot.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A watch that has been accepted.
pub(super) struct EtcdWatch {
    prefix: String,
    stream: WatchStream,
    /// The last revision delivered.
    behind: Revision,
    heard: Instant,
    /// When a sign of life was asked for that has not come.
    asked: Option<Instant>,
}

/// Opens a watch behind a revision, and tells the revision at which the member was then.
pub(super) async fn open(
    client: Client,
    prefix: String,
    behind: Revision,
) -> Result<(EtcdWatch, Revision), Error> {
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(behind.saturating_add(1).max(1));
    let mut stream = client
        .watch_client()
        .max_decoding_message_size(ANSWER_BYTES)
        .watch(prefix.as_str(), Some(options))
        .await?;
    let created = stream.message().await?;
    let created = created.ok_or_else(|| Error::WatchError("etcd ended the watch".into()))?;
    if created.canceled() {
        return Err(Error::GRpcStatus(cancellation(&created)));
    }
    let revision = created.header().map_or(behind, ResponseHeader::revision);
    let watch = EtcdWatch {
        prefix,
        stream,
        behind,
        heard: Instant::now(),
        asked: None,
    };
    Ok((watch, revision))
}

/// The reason of a cancelled watch as the status that another call would have got.
fn cancellation(answer: &WatchResponse) -> Status {
    let reason = answer.cancel_reason();
    if answer.compact_revision() > 0 || reason.contains("compacted") {
        return Status::out_of_range("compacted");
    }
    if reason.contains("permission denied") {
        return Status::permission_denied("etcdserver: permission denied");
    }
    // Newer servers name what is wrong with the token; it is refused before anything else is looked at.
    if reason.contains("auth") || reason.contains("user name is empty") {
        return Status::unauthenticated(reason);
    }
    Status::unavailable(format!("etcd cancelled the watch: {reason}"))
}

impl EtcdWatch {
    /// The changes of an answer; none when it is only a sign of life.
    fn take(&mut self, answer: &WatchResponse) -> Result<Option<Events>, StoreError> {
        if answer.canceled() {
            return Err(Failure::from(cancellation(answer)).of_read(self.behind));
        }
        let mut revision = self.behind;
        let mut events = Vec::with_capacity(answer.events().len());
        for (n, kv) in answer.events().iter().filter_map(|e| e.kv()).enumerate() {
            let at = kv.mod_revision();
            if at < revision || (n == 0 && at == self.behind) {
                return Err(StoreError::Compacted(self.behind));
            }
            revision = at;
            events.extend(event(&self.prefix, kv));
        }
        if revision == self.behind {
            return Ok(None);
        }
        self.behind = revision;
        Ok(Some(Events { revision, events }))
    }
}

fn event(prefix: &str, kv: &KeyValue) -> Option<Event> {
    let key = relative(prefix, kv.key())?;
    let revision = kv.mod_revision();
    // Only a key that was deleted has no version.
    Some(if kv.version() == 0 {
        Event::Delete { key, revision }
    } else {
        Event::Put(Entry {
            key,
            value: Bytes::copy_from_slice(kv.value()),
            create_revision: kv.create_revision(),
            mod_revision: revision,
        })
    })
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            let until = match self.asked {
                Some(asked) => asked + SIGN_TIMEOUT,
                None => self.heard + SILENCE,
            };
            // Both arms are cancel safe: a message is taken whole or not at all. What has come goes first, so that a
            // reader that was away for long is not told that etcd was.
            let answer = tokio::select! {
                biased;
                answer = self.stream.message() => answer,
                () = sleep_until(until) => {
                    if self.asked.is_some() {
                        return Err(StoreError::Unavailable("etcd gives no sign of life".into()));
                    }
                    self.asked = Some(Instant::now());
                    self.stream
                        .request_progress()
                        .await
                        .map_err(|error| Failure::from(error).of_read(self.behind))?;
                    continue;
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    return Err(StoreError::Unavailable("etcd ended the watch".into()));
                }
                // The one code with which the client refuses an answer that is too large.
                Err(Error::GRpcStatus(status)) if status.code() == tonic::Code::OutOfRange => {
                    return Err(StoreError::Compacted(self.behind));
                }
                Err(error) => return Err(Failure::from(error).of_read(self.behind)),
            };
            self.heard = Instant::now();
            self.asked = None;
            if let Some(events) = self.take(&answer)? {
                return Ok(events);
            }
        }
    }
}
