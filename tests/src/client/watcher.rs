//! A watch over gRPC, with everything that it told so far.

use kontrol_proto::v1::{LeaveReason, WatchResponse, watch_response::Event};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};

/// A running watch.
#[derive(Debug)]
pub struct Watcher {
    stream: Streaming<WatchResponse>,
    /// What it told so far, with the time of arrival.
    pub seen: Vec<(Instant, WatchResponse)>,
}

impl Watcher {
    pub(super) fn new(stream: Streaming<WatchResponse>) -> Self {
        Self {
            stream,
            seen: Vec::new(),
        }
    }

    /// The next message; none when the master ended the stream in peace.
    pub async fn next(&mut self, within: Duration) -> Result<Option<WatchResponse>, Status> {
        let next = timeout_at(Instant::now() + within, self.stream.message()).await;
        let message = next.unwrap_or_else(|_| panic!("no message of a watch within {within:?}"))?;
        if let Some(message) = &message {
            self.seen.push((Instant::now(), message.clone()));
        }
        Ok(message)
    }

    /// Reads on until a message is what the test waits for. Other messages are kept in `seen`.
    pub async fn until<T>(
        &mut self,
        within: Duration,
        what: &str,
        mut pick: impl FnMut(&WatchResponse) -> Option<T>,
    ) -> T {
        let end = Instant::now() + within;
        loop {
            match timeout_at(end, self.stream.message()).await {
                Ok(Ok(Some(message))) => {
                    self.seen.push((Instant::now(), message.clone()));
                    if let Some(found) = pick(&message) {
                        return found;
                    }
                }
                Ok(Ok(None)) => panic!("the watch ended before {what}; it told {:#?}", self.seen),
                Ok(Err(status)) => panic!("the watch broke before {what}: {status}"),
                Err(_) => panic!(
                    "no {what} within {within:?}; the watch told {:#?}",
                    self.seen
                ),
            }
        }
    }

    /// Reads on until this pod leaves; when that was told, and the reason.
    pub async fn left(&mut self, within: Duration, key: &str) -> (Instant, LeaveReason) {
        let reason = self
            .until(within, &format!("departure of {key}"), |message| {
                let Some(Event::PodLeft(left)) = &message.event else {
                    return None;
                };
                let here = left.pod.as_ref().is_some_and(|pod| pod.key == key);
                here.then(|| left.reason())
            })
            .await;
        (self.seen.last().unwrap().0, reason)
    }

    /// The keys of the pods that were told to have left, so far.
    pub fn departed(&self) -> Vec<String> {
        self.seen
            .iter()
            .filter_map(|(_, message)| match &message.event {
                Some(Event::PodLeft(left)) => Some(left.pod.as_ref()?.key.clone()),
                _ => None,
            })
            .collect()
    }
}
