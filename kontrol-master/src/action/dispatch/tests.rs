//! Two masters on one store, of which one is cut off from it; the slave and the dispatcher are played by the test, under
//! virtual time.

use super::{super::custody::Custody, *};
use crate::{
    action::{
        attachment::Attachment,
        history::History,
        outlet::Outlet,
        rollout::Slave,
        switchboard::{SESSION_QUEUE, Switchboard},
    },
    election::{Campaign, Election},
    model::{Pod, action::Outcome, pod::tests::report},
    roster::{Roster, view::pod_key},
    store::{
        self, EtcdOptions, Events, LeaseId, Op, Revision, SharedStore, Snapshot, Store, StoreError,
        StoreUrl, Txn, Watch, open,
    },
};
use async_trait::async_trait;
use kontrol_proto::v1::{
    ActionResult, AttachResponse, Command, Selector, attach_request,
    attach_response::Order as Ordered, dispatch_response::Event,
};
use kontrol_slave::supervise::Tasks;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tonic::Code;

/// The lease of a master.
const LEASE: Duration = Duration::from_secs(5);
/// How long a call to a store waits that can't be reached.
const CALL: Duration = Duration::from_secs(2);
/// More than anything takes here.
const LONG: Duration = Duration::from_secs(300);

/// The way of one master to the store, which can be cut: then nothing comes through, either way.
#[derive(Debug, Clone)]
struct Way {
    store: SharedStore,
    cut: watch::Sender<bool>,
}

impl Way {
    async fn passes(&self) -> bool {
        let mut cut = self.cut.subscribe();
        let open = timeout(CALL, cut.wait_for(|cut| !cut)).await;
        matches!(open, Ok(Ok(_)))
    }

    async fn pass(&self) -> Result<(), StoreError> {
        let passes = self.passes().await;
        passes
            .then_some(())
            .ok_or_else(|| StoreError::Unavailable("cut".into()))
    }
}

#[async_trait]
impl Store for Way {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.store.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<store::Outcome, StoreError> {
        if !self.passes().await {
            return Err(StoreError::Indeterminate("cut".into()));
        }
        self.store.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.pass().await?;
        Ok(Box::new(Seen {
            watch: self.store.watch(behind).await?,
            cut: self.cut.subscribe(),
        }))
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.pass().await?;
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.pass().await?;
        self.store.keep_alive(lease).await?;
        Ok(LEASE)
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass().await?;
        self.store.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}

struct Seen {
    watch: Box<dyn Watch>,
    cut: watch::Receiver<bool>,
}

#[async_trait]
impl Watch for Seen {
    async fn next(&mut self) -> Result<Events, StoreError> {
        loop {
            let _ = self.cut.wait_for(|cut| !cut).await;
            tokio::select! {
                biased;
                _ = self.cut.changed() => {}
                events = self.watch.next() => return events,
            }
        }
    }
}

/// A master, as far as actions go.
struct Master {
    cut: watch::Sender<bool>,
    store: SharedStore,
    roster: Roster,
    election: Election,
    switchboard: Switchboard,
    history: History,
    dispatches: Dispatches,
    token: CancellationToken,
    tasks: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Master {
    async fn start(store: &SharedStore, number: u64) -> Self {
        let way = Way {
            store: store.clone(),
            cut: watch::Sender::new(false),
        };
        Self::on(Arc::new(way.clone()), store, way.cut, number).await
    }

    async fn on(
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
            instance: crate::liveness::Instance(number).to_string(),
        };
        let (election, campaign) =
            Campaign::new(Arc::clone(&way), roster.clone(), me.clone(), LEASE);
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
            Duration::from_secs(3),
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

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < LONG, "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts it off, and ends its lease once that is over by its own clock.
    async fn isolate(&self) {
        let lease = self.election.seat().unwrap();
        self.cut.send_replace(true);
        sleep(LEASE + CALL).await;
        assert_eq!(self.election.seat(), None);
        self.store.revoke(lease).await.unwrap();
    }

    fn dispatch(&self, detach: bool) -> Dispatched {
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
            told: self.dispatches.dispatch(request, "test".into()).unwrap(),
            action: String::new(),
            ends: Vec::new(),
        }
    }

    async fn attach(&self, number: u64) -> Channel {
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
    async fn recorded(&self, action: &str) -> Outcome {
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

    async fn stop(self) {
        self.cut.send_replace(false);
        self.token.cancel();
        self.tasks.await.unwrap().unwrap();
    }
}

/// What a dispatcher is told.
struct Dispatched {
    told: Told,
    action: String,
    ends: Vec<i32>,
}

impl Dispatched {
    /// Takes the next message; tells how the stream ended, if it did.
    async fn next(&mut self) -> Option<Result<(), Status>> {
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

    async fn accepted(&mut self) {
        while self.action.is_empty() {
            assert!(self.next().await.is_none());
        }
    }

    /// Reads on until a target has ended.
    async fn finished(&mut self) -> Duration {
        let start = Instant::now();
        while self.ends.is_empty() {
            let ended = self.next().await;
            assert!(ended.is_none(), "{ended:?}");
        }
        start.elapsed()
    }

    async fn read_out(&mut self) -> Result<(), Status> {
        loop {
            if let Some(end) = self.next().await {
                return end;
            }
        }
    }
}

/// The channel of the slave, from its side.
struct Channel {
    attachment: Attachment,
    orders: mpsc::Receiver<Result<AttachResponse, Status>>,
    switchboard: Switchboard,
}

impl Channel {
    /// Reads orders up to one.
    async fn until(&mut self, is: impl Fn(&Ordered) -> bool) {
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

    async fn say(&self, event: attach_request::Event) {
        self.switchboard.said(self.attachment.clone(), event).await;
    }

    async fn started(&self, action: &str) {
        let action_id = action.to_owned();
        self.say(attach_request::Event::Started(attach_request::Started {
            action_id,
        }))
        .await;
    }

    async fn finished(&self, action: &str, outcome: kontrol_proto::v1::Outcome) {
        self.say(attach_request::Event::Finished(attach_request::Finished {
            action_id: action.to_owned(),
            result: Some(ActionResult {
                outcome: outcome.into(),
                ..ActionResult::default()
            }),
        }))
        .await;
    }

    async fn leave(self) {
        self.switchboard.detach(self.attachment).await;
    }
}

fn pod() -> Pod {
    Pod::join(report(1), 0, 0)
}

fn slave() -> Slave {
    Slave {
        key: pod().key(),
        nonce: pod().nonce().into(),
    }
}

const EXITED: kontrol_proto::v1::Outcome = kontrol_proto::v1::Outcome::Exited;
const CANCELLED: kontrol_proto::v1::Outcome = kontrol_proto::v1::Outcome::Cancelled;

async fn store_with_a_pod() -> SharedStore {
    let store = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
    let txn = Txn {
        ops: vec![Op::put(pod_key(pod().key()), pod().encode())],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    store
}

/// A master that leads, another one that carries an action, and the slave that runs it, attached there.
async fn carried(detach: bool) -> (Master, Master, Dispatched, Channel) {
    let store = store_with_a_pod().await;
    let leader = Master::start(&store, 1).await;
    leader
        .until("a leader", || leader.election.leads().is_some())
        .await;
    let carrier = Master::start(&store, 2).await;
    let mut slave = carrier.attach(1).await;
    let mut dispatched = carrier.dispatch(detach);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    slave.started(&dispatched.action).await;
    (leader, carrier, dispatched, slave)
}

#[tokio::test(start_paused = true)]
async fn a_carrier_whose_lease_stands_tells_an_end_at_once_though_the_store_is_away() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    carrier.cut.send_replace(true);
    slave.finished(&dispatched.action, EXITED).await;
    let took = dispatched.finished().await;
    assert!(took < Duration::from_millis(100), "{took:?}");
    carrier.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(carrier.recorded(&dispatched.action).await, Outcome::Exited);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_was_cut_off_and_lost_its_action_tells_no_end_but_who_has_it() {
    for detach in [false, true] {
        let (leader, carrier, mut dispatched, slave) = carried(detach).await;
        let action = dispatched.action.clone();
        // The slave finds another master; what it says there is the truth.
        slave.leave().await;
        let mut moved = leader.attach(2).await;
        carrier.isolate().await;
        moved
            .until(|order| matches!(order, Ordered::Resume(_)))
            .await;
        // Far longer than a slave may be gone.
        sleep(LONG / 3).await;
        carrier.cut.send_replace(false);
        let outcome = if detach { EXITED } else { CANCELLED };
        moved.finished(&action, outcome).await;
        let end = dispatched.read_out().await.unwrap_err();
        assert_eq!(end.code(), Code::Unavailable);
        assert!(dispatched.ends.is_empty(), "{:?}", dispatched.ends);
        let recorded = leader.recorded(&action).await;
        assert_eq!(recorded == Outcome::Exited, detach, "{recorded:?}");
        for master in [leader, carrier] {
            master.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_behind_the_lease_is_held_back_until_it_is_known_who_carries_the_action()
{
    for taken in [false, true] {
        let (leader, carrier, mut dispatched, slave) = carried(false).await;
        let action = dispatched.action.clone();
        if taken {
            carrier.isolate().await;
            // It asks in vain: the slave is where it can't be reached.
            leader
                .until("a master that takes over", || {
                    let id = action.parse().unwrap();
                    leader.roster.view().action(&id).unwrap().head.master == "m1"
                })
                .await;
        } else {
            carrier.cut.send_replace(true);
            sleep(LEASE).await;
        }
        slave.finished(&action, EXITED).await;
        let early = timeout(Duration::from_secs(5), dispatched.finished()).await;
        assert!(early.is_err(), "{:?}", dispatched.ends);
        carrier.cut.send_replace(false);
        let end = dispatched.read_out().await;
        if taken {
            let end = end.unwrap_err();
            assert_eq!(end.code(), Code::Unavailable);
            assert!(end.message().contains("m1, carries it now"), "{end:?}");
            assert!(end.message().contains(&format!("actions show {action}")));
            assert!(dispatched.ends.is_empty());
        } else {
            end.unwrap();
            assert_eq!(dispatched.ends, [i32::from(EXITED)]);
            assert_eq!(carrier.recorded(&action).await, Outcome::Exited);
        }
        for master in [leader, carrier] {
            master.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_does_not_wait_for_ever_for_a_store_that_stays_away() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    carrier.cut.send_replace(true);
    sleep(2 * LEASE).await;
    slave.finished(&dispatched.action, EXITED).await;
    let start = Instant::now();
    let end = dispatched.read_out().await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.message().contains("out of touch"), "{end:?}");
    assert!(dispatched.ends.is_empty());
    carrier.cut.send_replace(false);
    assert_eq!(carrier.recorded(&dispatched.action).await, Outcome::Exited);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_record_nobody_can_take_an_action_over_so_that_its_end_is_told() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    master.cut.send_replace(true);
    sleep(2 * LEASE).await;
    let mut slave = master.attach(1).await;
    let mut dispatched = master.dispatch(false);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    slave.started(&dispatched.action).await;
    slave.finished(&dispatched.action, EXITED).await;
    dispatched.finished().await;
    assert_eq!(dispatched.ends, [i32::from(EXITED)]);
    master.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(master.recorded(&dispatched.action).await, Outcome::Exited);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_carrier_decided_itself_is_told_once_it_is_recorded() {
    let (leader, carrier, mut dispatched, slave) = carried(false).await;
    let action = dispatched.action.clone();
    carrier.cut.send_replace(true);
    // Of an end that was not run to, a slave keeps nothing that another master could ask for.
    slave.finished(&action, CANCELLED).await;
    let early = timeout(Duration::from_secs(2), dispatched.finished()).await;
    assert!(early.is_err());
    carrier.cut.send_replace(false);
    dispatched.read_out().await.unwrap();
    assert_eq!(dispatched.ends, [i32::from(CANCELLED)]);
    assert_eq!(carrier.recorded(&action).await, Outcome::Cancelled);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_takes_nothing_and_a_master_whose_lease_stands_loses_nothing() {
    let (leader, carrier, dispatched, slave) = carried(true).await;
    let id: ActionId = dispatched.action.parse().unwrap();
    let known = leader.roster.view().action(&id).cloned().unwrap();
    assert_eq!(
        known.head.lease,
        carrier.election.seat().unwrap().to_string()
    );
    // What a look at a stale roster would lead to: the carrier is there after all.
    assert!(leader.history.orphan(&known).await.unwrap().is_none());
    let fence = leader.election.leads().unwrap();
    let (record, revision) = carrier.history.read(&id).await.unwrap().unwrap();
    let lease = carrier.election.seat().unwrap();
    let absence = || vec![store::Compare::Absent(format!("leader/{lease}"))];
    let take = |fence: store::Fence| Taking {
        revision,
        fence: Some(fence),
        absence: absence(),
    };
    let mut mine = record.clone();
    mine.head.instance = "theirs".into();
    let taken = leader.history.take(mine.clone(), take(fence.clone())).await;
    assert!(taken.is_err(), "the carrier's candidacy stands");
    carrier.isolate().await;
    let deposed = store::Fence::new(fence.key(), fence.epoch() + 1);
    let taken = leader.history.take(mine.clone(), take(deposed)).await;
    assert!(taken.is_err(), "not the leader");
    assert_eq!(leader.history.read(&id).await.unwrap().unwrap().1, revision);
    leader.history.take(mine, take(fence)).await.unwrap();
    drop(slave);
    for master in [leader, carrier] {
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_names_a_master_which_does_not_carry_it_is_taken_up_again() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    let (_, record) = {
        let (leader, carrier, dispatched, _) = carried(true).await;
        let id: ActionId = dispatched.action.parse().unwrap();
        let (record, _) = carrier.history.read(&id).await.unwrap().unwrap();
        for master in [leader, carrier] {
            master.stop().await;
        }
        (id, record)
    };
    let mut slave = master.attach(1).await;
    let mut mine = record.clone();
    mine.head.master = "m1".into();
    mine.head.instance = crate::liveness::Instance(1).to_string();
    master.history.save(mine, 0).await.unwrap();
    slave
        .until(|order| matches!(order, Ordered::Resume(_)))
        .await;
    let action = record.head.id.to_string();
    slave.finished(&action, EXITED).await;
    assert_eq!(master.recorded(&action).await, Outcome::Exited);
    master.stop().await;
}

/// A store whose writes come one after the other, each with a lock that its caller's future holds.
#[derive(Debug)]
struct Locking {
    way: Way,
    lock: tokio::sync::Mutex<()>,
}

const WRITE: Duration = Duration::from_millis(300);

#[async_trait]
impl Store for Locking {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.way.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.way.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.way.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<store::Outcome, StoreError> {
        let _lock = self.lock.lock().await;
        sleep(WRITE).await;
        self.way.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.way.watch(behind).await
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.way.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.way.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.way.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_under_way_holds_up_no_other_write_while_the_master_stops() {
    let store = store_with_a_pod().await;
    let way = Way {
        store: store.clone(),
        cut: watch::Sender::new(false),
    };
    let locking = Arc::new(Locking {
        way: way.clone(),
        lock: tokio::sync::Mutex::default(),
    });
    let master = Master::on(locking.clone(), &store, way.cut, 1).await;
    let mut slave = master.attach(1).await;
    let mut dispatched = master.dispatch(false);
    dispatched.accepted().await;
    slave.until(|order| matches!(order, Ordered::Run(_))).await;
    // It does not end; its record is written again lest it goes away.
    master
        .switchboard
        .cancel(dispatched.action.parse().unwrap())
        .await;
    slave
        .until(|order| matches!(order, Ordered::Cancel(_)))
        .await;
    let start = Instant::now();
    while locking.lock.try_lock().is_ok() {
        assert!(
            start.elapsed() < 2 * master.history.refresh(),
            "no record is written"
        );
        sleep(WRITE / 3).await;
    }
    master.token.cancel();
    // A goodbye.
    let start = Instant::now();
    let goodbye = Txn {
        ops: vec![Op::Delete(pod_key(pod().key()))],
        ..Txn::default()
    };
    locking.commit(goodbye).await.unwrap();
    assert!(start.elapsed() <= 3 * WRITE, "{:?}", start.elapsed());
    drop(slave);
    master.tasks.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_dispatch_stops_the_master_and_is_named() {
    let store = store_with_a_pod().await;
    let master = Master::start(&store, 1).await;
    drop(master.dispatches.tasks.spawn(async {
        assert!(std::hint::black_box(false), "on purpose");
    }));
    let failure = timeout(LONG, master.tasks)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let failure = failure.to_string();
    assert!(
        failure.contains("an action's dispatch panicked"),
        "{failure}"
    );
}
