//! Actions as a dispatcher sees them: what is asked, everything that is told, and whether that is what was promised.

use crate::client::Api;
use bytes::Bytes;
use kontrol_proto::v1::{
    Action, ActionResult, ActionSummary, CancelActionRequest, Command, DispatchRequest,
    DispatchResponse, GetActionRequest, ListActionsRequest, Outcome, Selector, Stream,
    action_service_client::ActionServiceClient,
    dispatch_response::{Event, Target},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming, transport::Channel};

/// The largest message that a test reads.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Every pod.
pub fn all() -> Selector {
    Selector {
        all: true,
        ..Selector::default()
    }
}

/// Pods by their names.
pub fn ids(ids: &[&str]) -> Selector {
    Selector {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Selector::default()
    }
}

/// A dispatch of a text for the shell.
pub fn shell(selector: Selector, text: &str) -> DispatchRequest {
    DispatchRequest {
        selector: Some(selector),
        command: Some(Command {
            shell: text.to_owned(),
            ..Command::default()
        }),
        ..DispatchRequest::default()
    }
}

/// A dispatch of a program.
pub fn argv(selector: Selector, argv: &[&str]) -> DispatchRequest {
    DispatchRequest {
        selector: Some(selector),
        command: Some(Command {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            ..Command::default()
        }),
        ..DispatchRequest::default()
    }
}

/// A span of time as requests carry it.
pub fn span(time: Duration) -> Option<prost_types::Duration> {
    Some(time.try_into().unwrap())
}

/// A dispatch that goes on, and what it told so far. Dropped, its dispatcher goes away.
#[derive(Debug)]
pub struct Dispatch {
    stream: Streaming<DispatchResponse>,
    /// What was told so far.
    pub told: Told,
}

/// What a dispatch told.
#[derive(Debug, Default, Clone)]
pub struct Told {
    /// The id of the action.
    pub action: String,
    /// The targets.
    pub targets: Vec<Target>,
    /// The keys of the targets that started.
    pub started: BTreeSet<String>,
    /// What came of standard output, by key.
    pub stdout: BTreeMap<String, Vec<u8>>,
    /// What came of standard error, by key.
    pub stderr: BTreeMap<String, Vec<u8>>,
    /// The keys whose output was marked as truncated.
    pub truncated: BTreeSet<String>,
    /// How each target ended, by key, or by name where there is no key.
    pub finished: BTreeMap<String, ActionResult>,
    /// The summary.
    pub summary: Option<ActionSummary>,
}

fn name(key: &str, id: &str) -> String {
    if key.is_empty() { id } else { key }.to_owned()
}

impl Told {
    /// Takes in a message, and panics when it is not what may come next.
    fn take(&mut self, event: Event) {
        assert!(self.summary.is_none(), "{event:?} behind the summary");
        let first = matches!(event, Event::Accepted(_));
        assert_eq!(first, self.action.is_empty(), "{event:?} out of turn");
        match event {
            Event::Accepted(accepted) => {
                self.action = accepted.action_id;
                self.targets = accepted.targets;
            }
            Event::Started(started) => {
                assert!(self.started.insert(started.key.clone()), "{started:?}");
                assert!(!self.finished.contains_key(&started.key), "{started:?}");
            }
            Event::Output(output) => {
                assert!(self.started.contains(&output.key), "{output:?}");
                assert!(!self.finished.contains_key(&output.key), "{output:?}");
                if output.truncated {
                    self.truncated.insert(output.key.clone());
                }
                let stream = match output.stream() {
                    Stream::Stdout => &mut self.stdout,
                    Stream::Stderr => &mut self.stderr,
                    Stream::Unspecified => panic!("{output:?}"),
                };
                let data: Bytes = output.data;
                stream.entry(output.key).or_default().extend(data);
            }
            Event::Finished(result) => {
                assert_ne!(result.outcome(), Outcome::Unspecified);
                let before = self
                    .finished
                    .insert(name(&result.key, &result.id), result.clone());
                assert_eq!(before, None, "{result:?} is a second end");
            }
            Event::Summary(summary) => self.summary = Some(summary),
        }
    }

    /// The result of the one target. Panics when there are more.
    pub fn only(&self) -> &ActionResult {
        assert_eq!(self.finished.len(), 1, "{:?}", self.finished);
        self.finished.values().next().unwrap()
    }

    /// Standard output of the one target that wrote some, as text.
    pub fn text(&self) -> String {
        assert!(self.stdout.len() <= 1, "{:?}", self.stdout.keys());
        let bytes = self.stdout.values().next().cloned().unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }

    /// How many targets ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.finished
            .values()
            .filter(|result| result.outcome() == outcome)
            .count()
    }

    /// Checks that every target ended once, and that the summary says so.
    fn check(&self) {
        let summary = self.summary.as_ref().unwrap();
        let targets: BTreeSet<String> = self
            .targets
            .iter()
            .map(|target| name(&target.key, &target.id))
            .collect();
        let finished: BTreeSet<String> = self.finished.keys().cloned().collect();
        assert_eq!(targets, finished);
        assert_eq!(summary.targets as usize, targets.len());
        let ended = summary.succeeded
            + summary.failed
            + summary.timed_out
            + summary.cancelled
            + summary.refused
            + summary.unreachable
            + summary.lost;
        assert_eq!(ended, summary.targets, "{summary:?}");
        let ok =
            |result: &&ActionResult| result.outcome() == Outcome::Exited && result.exit_code == 0;
        let succeeded = self.finished.values().filter(ok).count();
        assert_eq!(summary.succeeded as usize, succeeded, "{summary:?}");
    }
}

impl Dispatch {
    /// Takes in the next message; false at the end.
    pub async fn next(&mut self, within: Duration) -> Result<bool, Status> {
        let next = timeout_at(Instant::now() + within, self.stream.message()).await;
        let next = next.unwrap_or_else(|_| {
            panic!(
                "no word of a dispatch within {within:?}; it told {:?}",
                self.told
            )
        })?;
        let Some(message) = next else {
            return Ok(false);
        };
        // An empty message is a sign of life.
        if let Some(event) = message.event {
            self.told.take(event);
        }
        Ok(true)
    }

    /// Reads on until what was told is as the test wants it.
    pub async fn until(&mut self, within: Duration, what: &str, wanted: impl Fn(&Told) -> bool) {
        let end = Instant::now() + within;
        while !wanted(&self.told) {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left).await {
                Ok(true) => {}
                Ok(false) => panic!("the dispatch ended before {what}: {:?}", self.told),
                Err(status) => panic!("the dispatch broke before {what}: {status}"),
            }
        }
    }

    /// Reads to the end, which must be a good one.
    pub async fn finish(mut self, within: Duration) -> Told {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(status) => panic!("the dispatch broke: {status}; it told {:?}", self.told),
            }
        }
        self.told.check();
        self.told
    }
}

impl Api {
    /// The action service.
    pub fn actions(&self) -> ActionServiceClient<Channel> {
        ActionServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Dispatches an action; it is accepted when this returns.
    pub async fn dispatch(&self, request: DispatchRequest) -> Result<Dispatch, Status> {
        let stream = self.actions().dispatch(request).await?.into_inner();
        let mut dispatch = Dispatch {
            stream,
            told: Told::default(),
        };
        dispatch.next(crate::SOON).await?;
        Ok(dispatch)
    }

    /// Runs an action to its end.
    pub async fn run(&self, request: DispatchRequest) -> Told {
        let dispatch = self.dispatch(request).await.unwrap();
        dispatch.finish(crate::SOON * 3).await
    }

    /// Reads an action from the history.
    pub async fn action(&self, id: &str) -> Result<Action, Status> {
        let request = GetActionRequest { id: id.to_owned() };
        let answer = self.actions().get_action(request).await?.into_inner();
        Ok(answer.action.unwrap())
    }

    /// Lists the history, the newest action first.
    pub async fn history(&self) -> Result<Vec<Action>, Status> {
        let request = ListActionsRequest::default();
        Ok(self
            .actions()
            .list_actions(request)
            .await?
            .into_inner()
            .actions)
    }

    /// Cancels an action. Tells whether it had ended before.
    pub async fn cancel(&self, id: &str) -> Result<bool, Status> {
        let request = CancelActionRequest { id: id.to_owned() };
        Ok(self
            .actions()
            .cancel_action(request)
            .await?
            .into_inner()
            .finished)
    }
}
