//! Masters, as far as actions go, and what the tests play: the slave and the dispatcher.

use super::{
    super::{super::custody::Custody, *},
    way::{CALL, LEASE, Way},
};
use crate::{
    action::{
        attachment::Attachment,
        history::History,
        outlet::Outlet,
        switchboard::{SESSION_QUEUE, Switchboard},
    },
    cluster::{
        election::{Campaign, Election},
        roster::Roster,
        store::{EtcdOptions, SharedStore, StoreUrl, open},
    },
};
use kontrol_core::{
    kv::{Op, Txn},
    model::{Pod, action::Outcome},
    rollout::Slave,
    testing::report,
    view::pod_key,
};
use kontrol_proto::v1::{
    ActionResult, AttachResponse, Command, Selector, attach_request,
    attach_response::Order as Ordered, dispatch_response::Event,
};
use kontrol_runtime::supervise::Tasks;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;

/// More than anything takes here.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// A master, as far as actions go.
pub(super) struct Master {
    pub(super) cut: watch::Sender<bool>,
    pub(super) store: SharedStore,
    pub(super) roster: Roster,
    pub(super) election: Election,
    pub(super) switchboard: Switchboard,
    pub(super) history: History,
    pub(super) dispatches: Dispatches,
    pub(super) token: CancellationToken,
    pub(super) tasks: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Master {
    pub(super) async fn start(store: &SharedStore, number: u64) -> Self {
        let way = Way {
            store: store.clone(),
            cut: watch::Sender::new(false),
        };
        Self::on(Arc::new(way.clone()), store, way.cut, number).await
    }

    pub(super) async fn on(
        way: SharedStore,
        store: &SharedStore,
        cut: watch::Sender<bool>,
        number: u64,
    ) -> Self {
        let token = CancellationToken::new();
        let (roster, mirror) = Roster::new(Arc::clone(&way));
        let me = PeerMaster {
            id: format!("m{number}"),
            address: format!("m{number}:1"),
            instance: kontrol_core::liveness::Instance(number).to_string(),
            tls: false,
        };
        let (election, campaign) = Campaign::by(
            kontrol_runtime::clock::Clock::of_runtime(),
            Arc::clone(&way),
            roster.clone(),
            me.clone(),
            LEASE,
        );
        let metrics = Arc::<Metrics>::default();
        let (switchboard, switching) = Switchboard::new(roster.clone(), Arc::clone(&metrics));
        let hour = Duration::from_secs(3600);
        let (history, keeping) = History::new(way, roster.clone(), election.clone(), hour);
        let dispatches = Dispatches::new(
            me.clone(),
            roster.clone(),
            switchboard.clone(),
            history.clone(),
            metrics,
            &kontrol_core::testing::settings(),
            token.clone(),
        );
        let custody = Custody::new(
            me.instance,
            roster.clone(),
            election.clone(),
            history.clone(),
            dispatches.clone(),
        );
        let mut tasks = Tasks::new(token.clone());
        tasks.spawn("mirror", mirror.run(token.clone()));
        tasks.spawn("campaign", campaign.run(token.clone()));
        tasks.spawn("switchboard", switching.run(token.clone()));
        tasks.spawn("history", keeping.run(token.clone()));
        tasks.spawn("custody", custody.run(token.clone()));
        tasks.spawn("dispatches", dispatches.clone().joined());
        let tasks = tokio::spawn(tasks.run(LONG));
        let master = Self {
            cut,
            store: store.clone(),
            roster,
            election,
            switchboard,
            history,
            dispatches,
            token,
            tasks,
        };
        master
            .until("a candidacy", || master.election.seat().is_some())
            .await;
        master
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < LONG, "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts it off, and ends its lease once that is over by its own clock.
    pub(super) async fn isolate(&self) {
        let lease = self.election.seat().unwrap();
        self.cut.send_replace(true);
        sleep(LEASE + CALL).await;
        assert_eq!(self.election.seat(), None);
        self.store.revoke(lease).await.unwrap();
    }

    pub(super) fn dispatch(&self, detach: bool) -> Dispatched {
        let request = DispatchRequest {
            selector: Some(Selector {
                all: true,
                ..Selector::default()
            }),
            command: Some(Command {
                argv: vec!["true".into()],
                ..Command::default()
            }),
            detach,
            ..DispatchRequest::default()
        };
        Dispatched {
            told: self
                .dispatches
                .dispatch(request, "test".into(), CancellationToken::new())
                .unwrap(),
            action: String::new(),
            ends: Vec::new(),
        }
    }

    pub(super) async fn attach(&self, number: u64) -> Channel {
        let (sender, orders) = mpsc::channel(SESSION_QUEUE);
        let (session, _) = Outlet::new(sender);
        let attachment = Attachment {
            slave: slave(),
            number,
        };
        let switchboard = self.switchboard.clone();
        switchboard
            .attach(attachment.clone(), Vec::new(), session)
            .await;
        Channel {
            attachment,
            orders,
            switchboard,
        }
    }

    /// The end of the one target, once the history has it.
    pub(super) async fn recorded(&self, action: &str) -> Outcome {
        let id = action.parse().unwrap();
        let start = Instant::now();
        loop {
            let (record, _) = self.history.read(&id).await.unwrap().unwrap();
            if record.head.state == State::Finished {
                return record.results[0].outcome.unwrap();
            }
            assert!(start.elapsed() < LONG, "never finished: {record:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn stop(self) {
        self.cut.send_replace(false);
        self.token.cancel();
        self.tasks.await.unwrap().unwrap();
    }
}

/// What a dispatcher is told.
pub(super) struct Dispatched {
    pub(super) told: Told,
    pub(super) action: String,
    pub(super) ends: Vec<i32>,
}

impl Dispatched {
    /// Takes the next message; tells how the stream ended, if it did.
    pub(super) async fn next(&mut self) -> Option<Result<(), Status>> {
        match timeout(LONG, self.told.next())
            .await
            .expect("nothing is told")
        {
            None => Some(Ok(())),
            Some(Err(status)) => Some(Err(status)),
            Some(Ok(message)) => {
                match message.event.unwrap() {
                    Event::Accepted(accepted) => self.action = accepted.action_id,
                    Event::Finished(result) => self.ends.push(result.outcome),
                    Event::Started(_) | Event::Output(_) | Event::Summary(_) => {}
                }
                None
            }
        }
    }

    pub(super) async fn accepted(&mut self) {
        while self.action.is_empty() {
            assert!(self.next().await.is_none());
        }
    }

    /// Reads on until a target has ended.
    pub(super) async fn finished(&mut self) -> Duration {
        let start = Instant::now();
        while self.ends.is_empty() {
            let ended = self.next().await;
            assert!(ended.is_none(), "{ended:?}");
        }
        start.elapsed()
    }

    pub(super) async fn read_out(&mut self) -> Result<(), Status> {
        loop {
            if let Some(end) = self.next().await {
                return end;
            }
        }
    }
}

/// The channel of the slave, from its side.
pub(super) struct Channel {
    pub(super) attachment: Attachment,
    pub(super) orders: mpsc::Receiver<Result<AttachResponse, Status>>,
    pub(super) switchboard: Switchboard,
}

impl Channel {
    /// Reads orders up to one.
    pub(super) async fn until(&mut self, is: impl Fn(&Ordered) -> bool) {
        loop {
            let next = timeout(LONG, self.orders.recv()).await;
            let order = next
                .expect("no such order")
                .unwrap()
                .unwrap()
                .order
                .unwrap();
            if is(&order) {
                return;
            }
        }
    }

    pub(super) async fn say(&self, event: attach_request::Event) {
        self.switchboard.said(self.attachment.clone(), event).await;
    }

    pub(super) async fn started(&self, action: &str) {
        let action_id = action.to_owned();
        self.say(attach_request::Event::Started(attach_request::Started {
            action_id,
        }))
        .await;
    }

    pub(super) async fn finished(&self, action: &str, outcome: kontrol_proto::v1::Outcome) {
        self.say(attach_request::Event::Finished(attach_request::Finished {
            action_id: action.to_owned(),
            result: Some(ActionResult {
                outcome: outcome.into(),
                ..ActionResult::default()
            }),
        }))
        .await;
    }

    pub(super) async fn leave(self) {
        self.switchboard.detach(self.attachment).await;
    }
}

pub(super) fn pod() -> Pod {
    Pod::join(report(1), 0, 0)
}

pub(super) fn slave() -> Slave {
    Slave {
        key: pod().key(),
        nonce: pod().nonce().into(),
    }
}

pub(super) const EXITED: kontrol_proto::v1::Outcome = kontrol_proto::v1::Outcome::Exited;
pub(super) const CANCELLED: kontrol_proto::v1::Outcome = kontrol_proto::v1::Outcome::Cancelled;

pub(super) async fn store_with_a_pod() -> SharedStore {
    let store = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
    let txn = Txn {
        ops: vec![Op::put(pod_key(pod().key()), pod().encode())],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    store
}
