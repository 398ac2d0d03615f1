//! A master's end of a channel, and what an honest master makes of it.

use super::SOON;
use kontrol_proto::v1::{
    ActionResult, AttachRequest, AttachResponse, Command, Outcome, Stream,
    attach_request::{Event, Hello},
    attach_response::{Cancel, Credit, Forget, Order, Resume, Run, Welcome},
};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

pub(crate) fn welcome() -> AttachResponse {
    AttachResponse {
        order: Some(Order::Welcome(Welcome {})),
    }
}

/// An order to run a shell text.
pub(crate) fn shell(action: &str, text: &str) -> Run {
    let command = Command {
        shell: text.into(),
        ..Command::default()
    };
    run(action, command)
}

/// An order to run a program.
pub(crate) fn argv(action: &str, words: &[&str]) -> Run {
    let command = Command {
        argv: words.iter().map(|word| (*word).into()).collect(),
        ..Command::default()
    };
    run(action, command)
}

pub(crate) fn run(action: &str, command: Command) -> Run {
    Run {
        action_id: action.into(),
        command: Some(command),
        timeout: prost_types::Duration::try_from(SOON).ok(),
        max_output: 0,
        window: 0,
    }
}

pub(crate) fn within(limit: Duration, run: Run) -> Run {
    Run {
        timeout: prost_types::Duration::try_from(limit).ok(),
        ..run
    }
}

/// What a master has of an action.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    pub(crate) started: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Of each stream.
    pub(crate) truncated: [bool; 2],
    pub(crate) end: Option<ActionResult>,
}

impl Taken {
    pub(crate) fn offsets(&self) -> (u64, u64) {
        (self.stdout.len() as u64, self.stderr.len() as u64)
    }

    pub(crate) fn result(&self) -> &ActionResult {
        self.end.as_ref().expect("it has ended")
    }

    pub(crate) fn outcome(&self) -> (Outcome, i32) {
        (self.result().outcome(), self.result().exit_code)
    }

    pub(crate) fn out(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn err(&self) -> &str {
        str::from_utf8(&self.stderr).unwrap()
    }

    /// Takes a report; panics when it is not what may come next.
    pub(crate) fn take(&mut self, event: Event) {
        assert!(self.end.is_none(), "after the end: {event:?}");
        match event {
            Event::Started(_) => self.started = true,
            Event::Output(output) => {
                assert!(self.started, "output before the start");
                let (taken, index) = match output.stream() {
                    Stream::Stdout => (&mut self.stdout, 0),
                    Stream::Stderr => (&mut self.stderr, 1),
                    Stream::Unspecified => panic!("no stream"),
                };
                assert_eq!(
                    output.offset,
                    taken.len() as u64,
                    "a gap, or something twice"
                );
                assert!(output.data.len() <= 32 * 1024);
                taken.extend_from_slice(&output.data);
                self.truncated[index] |= output.truncated;
            }
            Event::Finished(finished) => self.end = finished.result,
            Event::Hello(_) | Event::Unknown(_) => panic!("{event:?}"),
        }
    }
}

/// The action that a report is about.
pub(crate) fn about(event: &Event) -> &str {
    match event {
        Event::Hello(_) => "",
        Event::Started(event) => &event.action_id,
        Event::Output(event) => &event.action_id,
        Event::Finished(event) => &event.action_id,
        Event::Unknown(event) => &event.action_id,
    }
}

/// A master's end of a channel. Dropping it ends the channel.
pub(crate) struct Channel {
    pub(crate) hello: Hello,
    requests: Streaming<AttachRequest>,
    orders: mpsc::Sender<Result<AttachResponse, Status>>,
}

impl Channel {
    pub(super) fn new(
        hello: Hello,
        requests: Streaming<AttachRequest>,
        orders: mpsc::Sender<Result<AttachResponse, Status>>,
    ) -> Self {
        Self {
            hello,
            requests,
            orders,
        }
    }

    async fn tell(&self, order: Order) {
        let order = AttachResponse { order: Some(order) };
        // A slave that is gone need not hear it.
        let _ = self.orders.send(Ok(order)).await;
    }

    pub(crate) async fn run(&self, run: Run) {
        self.tell(Order::Run(run)).await;
    }

    pub(crate) async fn cancel(&self, action: &str) {
        let action_id = action.into();
        self.tell(Order::Cancel(Cancel { action_id })).await;
    }

    pub(crate) async fn forget(&self, action: &str) {
        let action_id = action.into();
        self.tell(Order::Forget(Forget { action_id })).await;
    }

    pub(crate) async fn resume(&self, action: &str, (stdout_offset, stderr_offset): (u64, u64)) {
        let resume = Resume {
            action_id: action.into(),
            stdout_offset,
            stderr_offset,
        };
        self.tell(Order::Resume(resume)).await;
    }

    pub(crate) async fn credit(&self, action: &str, (stdout_offset, stderr_offset): (u64, u64)) {
        let credit = Credit {
            action_id: action.into(),
            stdout_offset,
            stderr_offset,
        };
        self.tell(Order::Credit(credit)).await;
    }

    /// Ends the channel with a status.
    pub(crate) async fn fail(self, status: Status) {
        let _ = self.orders.send(Err(status)).await;
    }

    /// The next report; none at the end of the channel.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let next = timeout(SOON, self.requests.message()).await;
        next.expect("a report comes").ok().flatten()?.event
    }

    /// Waits for a sign of life, which must be what comes next.
    pub(crate) async fn sign(&mut self) {
        let next = timeout(SOON, self.requests.message()).await;
        let next = next.expect("something comes").unwrap();
        assert_eq!(next, Some(AttachRequest { event: None }));
    }

    /// Whether something comes within a while that is long for a slave that has something to say.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let while_ = Duration::from_millis(300);
        timeout(while_, self.requests.message()).await.is_err()
    }

    /// Takes one report of this action, which must be the only one under way, and gives credit.
    pub(crate) async fn step(&mut self, action: &str, taken: &mut Taken) {
        let event = self.next().await.expect("the channel lives");
        assert_eq!(about(&event), action, "{event:?}");
        taken.take(event);
        self.credit(action, taken.offsets()).await;
    }

    /// Takes all that comes of this action, which must be the only one under way, up to its end, and the end.
    pub(crate) async fn finish(&mut self, action: &str, taken: &mut Taken) {
        while taken.end.is_none() {
            self.step(action, taken).await;
        }
        self.forget(action).await;
    }

    /// Runs an action to its end.
    pub(crate) async fn whole(&mut self, run: Run) -> Taken {
        let (action, mut taken) = (run.action_id.clone(), Taken::default());
        self.run(run).await;
        self.finish(&action, &mut taken).await;
        taken
    }
}
