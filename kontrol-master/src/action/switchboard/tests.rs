//! Two switchboards with a wire between them, slaves and dispatches played by the test, under virtual time.

use super::*;
use crate::cluster::store::{EtcdOptions, StoreUrl, open};
use kontrol_proto::v1::{attach_request::Started, attach_response::Order as Ordered};
use std::time::Duration;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tonic::{Code, Status};

const A: Instance = Instance(1);
const B: Instance = Instance(2);

/// A master without anything else.
struct Master {
    switchboard: Switchboard,
    tasks: JoinSet<()>,
    token: CancellationToken,
}

impl Master {
    async fn start() -> Self {
        let store = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
        let (roster, mirror) = Roster::new(store);
        let (switchboard, task) = Switchboard::new(roster.clone(), Arc::default());
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror.run(token.clone()));
        tasks.spawn(task.run(token.clone()));
        assert!(roster.caught_up(0, Duration::from_secs(1)).await);
        Self {
            switchboard,
            tasks,
            token,
        }
    }

    async fn stop(mut self) {
        self.token.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    async fn attach(&self, number: u64, actions: &[ActionId]) -> Channel {
        let (sender, orders) = mpsc::channel(SESSION_QUEUE);
        let (session, _) = Outlet::new(sender);
        let attachment = Attachment {
            slave: slave(),
            number,
        };
        let actions = actions.to_vec();
        self.switchboard
            .attach(attachment.clone(), actions, session)
            .await;
        let mut channel = Channel { attachment, orders };
        assert!(matches!(channel.next().await, Some(Ordered::Welcome(_))));
        channel
    }

    async fn dispatch(&self, action: &ActionId) -> mpsc::Receiver<Notice> {
        let (sender, notices) = mpsc::channel(64);
        let dispatch = Dispatch {
            pods: vec![slave().key],
            notices: sender,
            cancelled: CancellationToken::new(),
            missed_some: Arc::default(),
            metrics: Arc::default(),
        };
        self.switchboard.open(action.clone(), dispatch, false).await;
        notices
    }

    async fn order(&self, action: &ActionId, order: Order) {
        let order = wire::order(order, action, Some(&run(action)));
        self.switchboard
            .order(action.clone(), order, vec![slave()])
            .await;
    }
}

/// The channel of a slave, from its side.
struct Channel {
    attachment: Attachment,
    orders: mpsc::Receiver<Result<AttachResponse, Status>>,
}

impl Channel {
    async fn next(&mut self) -> Option<Ordered> {
        let next = timeout(Duration::from_secs(30), self.orders.recv());
        next.await.unwrap()?.unwrap().order
    }
}

fn slave() -> Slave {
    Slave {
        key: PodKey::ONE,
        nonce: "a".into(),
    }
}

fn action(luck: u64) -> ActionId {
    ActionId::new(0, luck)
}

fn run(action: &ActionId) -> kontrol_proto::v1::attach_response::Run {
    kontrol_proto::v1::attach_response::Run {
        action_id: action.to_string(),
        ..Default::default()
    }
}

fn started(action: &ActionId) -> attach_request::Event {
    attach_request::Event::Started(Started {
        action_id: action.to_string(),
    })
}

async fn next(notices: &mut mpsc::Receiver<Notice>) -> Notice {
    let next = timeout(Duration::from_secs(30), notices.recv());
    next.await.unwrap().unwrap()
}

/// The stream of one master to another; aborted, it breaks.
async fn link(from: (&Master, Instance), to: (&Master, Instance), stream: u64) -> JoinHandle<()> {
    let (caller, callee) = (from.0.switchboard.clone(), to.0.switchboard.clone());
    let (from, to) = (from.1, to.1);
    let (orders, mut ordered) = mpsc::channel::<ExchangeRequest>(64);
    let (replies, mut replied) = mpsc::channel(64);
    let (replies, _) = Outlet::new(replies);
    callee.caller_up(from, stream, replies).await;
    caller.peer_up(to, orders).await;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(request) = ordered.recv() => {
                    let Some(kontrol_proto::internal::v1::exchange_request::Message::Orders(orders)) = request.message else {
                        continue;
                    };
                    let to = orders.targets.into_iter().filter_map(wire::slave).collect();
                    callee.caller_orders(from, orders.order.unwrap(), to).await;
                }
                Some(Ok(reply)) = replied.recv() => {
                    caller.peer_said(to, reply.message.unwrap()).await;
                }
                else => return,
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_order_finds_its_slave_at_a_peer_and_the_answer_finds_back() {
    let (a, b) = (Master::start().await, Master::start().await);
    let _link = link((&a, A), (&b, B), 1).await;
    let action = action(1);
    let mut notices = a.dispatch(&action).await;
    a.order(&action, Order::Run).await;
    assert!(matches!(
        next(&mut notices).await,
        Notice::Missed { busy: false, .. }
    ));
    let mut channel = b.attach(1, &[]).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    a.order(&action, Order::Run).await;
    assert!(matches!(channel.next().await, Some(Ordered::Run(_))));
    b.switchboard
        .said(channel.attachment.clone(), started(&action))
        .await;
    assert!(matches!(next(&mut notices).await, Notice::Said(..)));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_moves_is_told_once_whatever_the_order_of_words() {
    let (a, b) = (Master::start().await, Master::start().await);
    let _link = link((&a, A), (&b, B), 1).await;
    let action = action(1);
    let mut notices = a.dispatch(&action).await;
    let here = a.attach(1, &[]).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    let there = b.attach(2, &[]).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    // The first master notices only now, and that is not the end.
    a.switchboard.detach(here.attachment).await;
    b.switchboard.detach(there.attachment).await;
    assert!(matches!(next(&mut notices).await, Notice::Detached(_)));
    assert!(notices.try_recv().is_err());
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_slaves_of_a_peer_that_breaks_off_are_detached_until_it_is_back() {
    let (a, b) = (Master::start().await, Master::start().await);
    let link_one = link((&a, A), (&b, B), 1).await;
    let action = action(1);
    let mut notices = a.dispatch(&action).await;
    let _channel = b.attach(1, &[]).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    link_one.abort();
    a.switchboard.peer_down(B).await;
    assert!(matches!(next(&mut notices).await, Notice::Detached(_)));
    let _link = link((&a, A), (&b, B), 2).await;
    // Word of the end of the first stream comes late.
    b.switchboard.caller_down(A, 1).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    a.order(&action, Order::Cancel).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_attaches_again_replaces_itself_but_not_by_an_older_attachment() {
    let a = Master::start().await;
    let mut first = a.attach(1, &[]).await;
    let mut second = a.attach(2, &[]).await;
    let ended = first.orders.recv().await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    let (sender, mut orders) = mpsc::channel(SESSION_QUEUE);
    let (session, cut) = Outlet::new(sender);
    let late = Attachment {
        slave: slave(),
        number: 1,
    };
    a.switchboard.attach(late, Vec::new(), session).await;
    assert_eq!(
        orders.recv().await.unwrap().unwrap_err().code(),
        Code::Aborted
    );
    assert!(cut.is_cancelled());
    a.switchboard.detach(first.attachment).await;
    a.order(&action(1), Order::Run).await;
    assert!(matches!(second.next().await, Some(Ordered::Run(_))));
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slave_with_too_many_orders_takes_no_more_runs_but_all_else() {
    let a = Master::start().await;
    let channel = a.attach(1, &[]).await;
    let action = action(1);
    let mut notices = a.dispatch(&action).await;
    for _ in 0..SESSION_QUEUE {
        a.order(&action, Order::Run).await;
    }
    let missed = next(&mut notices).await;
    assert!(matches!(missed, Notice::Missed { busy: true, .. }));
    a.order(&action, Order::Cancel).await;
    // It is answered, and so was everything before it.
    assert!(a.switchboard.cancel(action).await);
    a.stop().await;
    let mut orders = channel.orders;
    let (mut runs, mut cancels) = (0_usize, 0_usize);
    while let Ok(order) = orders.try_recv() {
        let order = order.unwrap().order.unwrap();
        runs += usize::from(matches!(order, Ordered::Run(_)));
        cancels += usize::from(matches!(order, Ordered::Cancel(_)));
    }
    assert!(runs > SESSION_QUEUE / 2 && runs <= SESSION_QUEUE - SESSION_RESERVE + 1);
    assert_eq!(cancels, 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_any_more_is_ended_at_the_slave_and_what_is_claimed_is_not() {
    let a = Master::start().await;
    let (lost, claimed) = (action(1), action(2));
    let mut channel = a.attach(1, &[lost.clone(), claimed.clone()]).await;
    let _notices = a.dispatch(&claimed).await;
    a.order(
        &claimed,
        Order::Resume {
            stdout: 0,
            stderr: 0,
        },
    )
    .await;
    assert!(matches!(channel.next().await, Some(Ordered::Resume(_))));
    let Some(Ordered::Cancel(cancel)) = channel.next().await else {
        panic!("not cancelled")
    };
    assert_eq!(cancel.action_id, lost.to_string());
    assert!(matches!(channel.next().await, Some(Ordered::Forget(_))));
    assert!(channel.orders.try_recv().is_err());
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_after_its_dispatch_is_forgotten() {
    let (a, b) = (Master::start().await, Master::start().await);
    let _link = link((&a, A), (&b, B), 1).await;
    let action = action(1);
    let mut notices = a.dispatch(&action).await;
    let mut channel = b.attach(1, &[]).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    a.order(&action, Order::Run).await;
    assert!(matches!(channel.next().await, Some(Ordered::Run(_))));
    a.switchboard.close(action.clone()).await;
    b.switchboard
        .said(channel.attachment.clone(), started(&action))
        .await;
    assert!(matches!(channel.next().await, Some(Ordered::Cancel(_))));
    assert!(matches!(channel.next().await, Some(Ordered::Forget(_))));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_is_cut_off_though_its_stream_holds_on_to_the_queue() {
    let (a, action) = (Master::start().await, action(1));
    let mut notices = a.dispatch(&action).await;
    let (sender, _orders) = mpsc::channel(SESSION_QUEUE);
    let (session, cut) = Outlet::new(sender.clone());
    let attachment = Attachment {
        slave: slave(),
        number: 1,
    };
    a.switchboard.attach(attachment, Vec::new(), session).await;
    assert!(matches!(next(&mut notices).await, Notice::Attached(_)));
    let (replies, _replied) = mpsc::channel(1);
    let (outlet, caller_cut) = Outlet::new(replies.clone());
    a.switchboard.caller_up(B, 1, outlet).await;
    for _ in 0..=SESSION_QUEUE {
        a.order(&action, Order::Cancel).await;
    }
    // It is detached, which the peer has no room to hear of.
    let limit = Duration::from_secs(30);
    timeout(limit, cut.cancelled()).await.unwrap();
    timeout(limit, caller_cut.cancelled()).await.unwrap();
    assert!(matches!(next(&mut notices).await, Notice::Detached(_)));
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_dispatch_that_has_no_room_for_a_notice_is_told_that_it_missed_some() {
    let (a, action) = (Master::start().await, action(1));
    let (notices, _unread) = mpsc::channel(1);
    let missed_some = Arc::new(AtomicBool::new(false));
    let dispatch = Dispatch {
        metrics: Arc::default(),
        pods: vec![slave().key],
        notices,
        cancelled: CancellationToken::new(),
        missed_some: Arc::clone(&missed_some),
    };
    a.switchboard.open(action.clone(), dispatch, false).await;
    for _ in 0..2 {
        assert!(!missed_some.load(Ordering::Relaxed));
        a.order(&action, Order::Run).await;
        // Answered behind the order.
        a.switchboard.cancel(action.clone()).await;
    }
    assert!(missed_some.load(Ordering::Relaxed));
    a.stop().await;
}
