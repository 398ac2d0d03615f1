//! A whole master without its network, on the store in memory, under virtual time.

mod callback;
mod faults;
mod leases;
mod relayed;
mod silence;
mod stage;
mod trouble;

use super::*;
use crate::{
    cluster::{
        election::Campaign,
        error::Error,
        relay::{self, Relay, Sign},
        store::{EtcdOptions, StoreUrl, open},
    },
    ensemble::keepalive::{Accepted, Committer, Keepalives},
};
use kontrol_core::{
    kv::{Event, Op, Txn},
    liveness::Instance,
    model::Report,
    testing::report,
    view::{MASTERS, PeerMaster, Reason, SEQ},
};
use kontrol_runtime::{clock::Clock, supervise::Tasks};
use serde_json::json;
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(5);
const LOST: Duration = Duration::from_secs(3);
const DAMPER: Duration = Duration::from_secs(1);

struct Harness {
    store: SharedStore,
    roster: Roster,
    relay: Relay,
    keepalives: Keepalives,
    election: Election,
    status: Status,
    memory: Memory,
    metrics: Arc<Metrics>,
    clock: Clock,
    token: CancellationToken,
    tasks: JoinHandle<Result<(), kontrol_runtime::supervise::Failure>>,
}

impl Harness {
    async fn start() -> Self {
        let store = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
        Self::on(store).await
    }

    async fn on(store: SharedStore) -> Self {
        let this = Self::begin(store, 1, Clock::of_runtime(), None);
        this.elected().await;
        this
    }

    /// Starts the master with this number, and does not wait until it leads.
    fn begin(
        store: SharedStore,
        number: u64,
        clock: Clock,
        callback: Option<Arc<dyn Runner>>,
    ) -> Self {
        Self::guarded(store, number, clock, callback, Policy::default())
    }

    /// The same with a safeguard.
    fn guarded(
        store: SharedStore,
        number: u64,
        clock: Clock,
        callback: Option<Arc<dyn Runner>>,
        safeguard: Policy,
    ) -> Self {
        let me = Instance(number);
        let id = format!("m{number}");
        let (metrics, status) = (Arc::new(Metrics::default()), Status::default());
        let (roster, mirror) = Roster::new(store.clone());
        let myself = PeerMaster {
            id: id.clone(),
            address: format!("127.0.0.1:{number}"),
            instance: me.to_string(),
            tls: false,
        };
        let (election, campaign) =
            Campaign::by(clock.clone(), store.clone(), roster.clone(), myself, TTL);
        let (sender, detached) = detachments();
        let (relay, relay_task, detour) = Relay::new(relay::Parts {
            me,
            id: id.as_str().into(),
            store: store.clone(),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            ttl: TTL,
            interval: TTL / 5,
            detached: sender,
            metrics: Arc::default(),
            dialer: crate::cluster::peers::Dialer::default(),
        });
        let (committer, committer_task) = Committer::new(
            store.clone(),
            roster.clone(),
            id.as_str().into(),
            kontrol_core::limits::Limits::default(),
            Arc::default(),
        );
        let keepalives = Keepalives::new(
            me,
            roster.clone(),
            committer,
            relay.clone(),
            metrics.clone(),
        );
        let memory = Memory::default();
        let context = Context {
            store: store.clone(),
            roster: roster.clone(),
            election: election.clone(),
            status: status.clone(),
            memory: memory.clone(),
            metrics: metrics.clone(),
            id: id.into(),
            settings: Arc::new(Settings {
                authenticates: false,
                ttl: TTL,
                lost: LOST,
                damper: DAMPER,
                damper_max: 6 * DAMPER,
                safeguard,
                callback,
            }),
        };
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        // The callback ends before the election resigns, and that before the roster stands still.
        let (resign, last) = (CancellationToken::new(), CancellationToken::new());
        tasks.spawn("mirror", mirror.run(last.clone()));
        tasks.spawn("committer", committer_task.run(token.clone()));
        tasks.spawn("relay", relay_task.run(token.clone()));
        tasks.spawn("detour", detour.run(token.clone()));
        let (term, then) = (token.clone(), resign.clone().drop_guard());
        tasks.spawn("campaign", async move {
            let _then = last.drop_guard();
            campaign.run(resign).await;
        });
        tasks.spawn("term", async move {
            let _then = then;
            supervise(context, detached, term).await;
        });
        let tasks = tokio::spawn(tasks.run(Duration::from_secs(5)));
        Self {
            store,
            roster,
            relay,
            keepalives,
            election,
            status,
            memory,
            metrics,
            clock,
            token,
            tasks,
        }
    }

    /// Waits until it leads.
    async fn elected(&self) -> Fence {
        let mut lead = self.election.changes();
        let fence = lead.wait_for(Option::is_some).await.unwrap().clone();
        fence.unwrap()
    }

    async fn ping(&self, report: Report) -> Result<Accepted, Error> {
        self.keepalives.accept(&report, "").await
    }

    /// Waits until the roster looks like that; virtual time passes in small steps.
    async fn until(&self, what: impl Fn(&View) -> bool) -> Duration {
        let start = Instant::now();
        while !what(&self.roster.view()) {
            assert!(start.elapsed() < 10 * TTL, "it never happened");
            sleep(Duration::from_millis(10)).await;
        }
        start.elapsed()
    }

    async fn stop(self) {
        self.token.cancel();
        self.tasks.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_channel_ended_is_lost_unless_it_reports_again() {
    let master = Harness::start().await;
    for host in 1..=2 {
        master.ping(report(host)).await.unwrap();
        let view = master.roster.view();
        let member = view.member(report(host).key()).unwrap();
        member.heard.attach(1);
        master.relay.detached(Sign {
            key: report(host).key(),
            revision: member.mod_revision,
            beat: 0,
            attachment: 1,
            at: Instant::now(),
        });
    }
    sleep(LOST / 2).await;
    master.ping(report(2)).await.unwrap();
    let took = master.until(|view| view.len() == 1).await + LOST / 2;
    assert!(took >= LOST && took < LOST + TICK, "{took:?}");
    let view = master.roster.view();
    let removal = view.removal(report(1).key()).unwrap();
    assert_eq!(removal.reason, Reason::Lost);
    sleep(TTL - LOST).await;
    assert_eq!(master.roster.view().len(), 1, "the other was heard since");
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_pod_leaves_within_a_second_of_its_ttl_and_the_others_stay() {
    let master = Harness::start().await;
    for host in 1..=3 {
        let accepted = master.ping(report(host)).await.unwrap();
        assert_eq!(accepted.seq, u64::from(host) - 1);
    }
    let last = Instant::now();
    let expired = loop {
        for host in 1..=2 {
            master.ping(report(host)).await.unwrap();
        }
        if master.roster.view().len() == 2 {
            break last.elapsed();
        }
        assert!(last.elapsed() < 2 * TTL, "the silent pod stays");
        sleep(Duration::from_millis(50)).await;
    };
    assert!(
        expired >= TTL && expired <= TTL + Duration::from_secs(1),
        "{expired:?}"
    );
    let view = master.roster.view();
    assert_eq!(
        view.removal(report(3).key()).unwrap().reason,
        Reason::Expired
    );
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_removes_at_once_and_a_seq_is_never_given_again() {
    let master = Harness::start().await;
    master.ping(report(1)).await.unwrap();
    master
        .ping(Report {
            down: true,
            beat: 2,
            ..report(1)
        })
        .await
        .unwrap();
    assert!(master.roster.view().is_empty());
    let accepted = master
        .ping(Report {
            nonce: "bb".into(),
            ..report(1)
        })
        .await
        .unwrap();
    assert_eq!(accepted.seq, 1);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn joins_that_come_together_are_written_together_in_order() {
    let master = Harness::start().await;
    let before = master.roster.view().revision();
    let joins = (0_u16..1000).map(|n| {
        let [high, low] = n.to_be_bytes();
        let ip = std::net::IpAddr::from([10, 0, high, low]);
        master.ping(Report {
            ip,
            id: n.to_string(),
            ..report(1)
        })
    });
    let accepted = futures::future::try_join_all(joins).await.unwrap();
    let seqs: Vec<_> = accepted.iter().map(|accepted| accepted.seq).collect();
    assert_eq!(seqs, (0..1000).collect::<Vec<_>>());
    let transactions = master.roster.view().revision() - before;
    assert!(transactions <= 20, "{transactions} transactions");
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_beats_run_behind_lives_and_changes_nothing() {
    let master = Harness::start().await;
    master
        .ping(Report {
            beat: 100,
            ..report(1)
        })
        .await
        .unwrap();
    for beat in 1..20 {
        sleep(TTL / 3).await;
        let late = Report {
            beat,
            payload: json!("old"),
            ..report(1)
        };
        assert_eq!(master.ping(late).await.unwrap().seq, 0);
    }
    let view = master.roster.view();
    assert_eq!(
        view.member(report(1).key()).unwrap().pod.payload(),
        &json!("")
    );
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn steady_keepalives_write_nothing() {
    let master = Harness::start().await;
    master.ping(report(1)).await.unwrap();
    let before = master.roster.view().revision();
    for beat in 2..100 {
        sleep(TTL / 5).await;
        master.ping(Report { beat, ..report(1) }).await.unwrap();
    }
    assert_eq!(master.store.snapshot().await.unwrap().revision, before);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_key_was_deleted_steps_down_and_expires_nobody_before_a_full_ttl() {
    let master = Harness::start().await;
    master.ping(report(1)).await.unwrap();
    let first = master.election.leads().unwrap();
    sleep(TTL - Duration::from_millis(100)).await;
    let txn = Txn {
        ops: vec![Op::Delete(first.key().to_owned())],
        ..Txn::default()
    };
    let before = master.store.snapshot().await.unwrap().revision;
    master.store.commit(txn).await.unwrap();
    let mut lead = master.election.changes();
    lead.wait_for(|fence| {
        fence
            .as_ref()
            .is_some_and(|fence| fence.epoch() > first.epoch())
    })
    .await
    .unwrap();
    let alone = master.until(View::is_empty).await;
    assert!(alone >= TTL, "{alone:?}");
    // It was there for the next leader to see all the time: its callback may have needed that to end.
    let mut watch = master.store.watch(before).await.unwrap();
    let mut deleted = Vec::new();
    while let Ok(Ok(events)) = timeout(Duration::from_secs(1), watch.next()).await {
        for event in events.events {
            match event {
                Event::Delete { key, .. } => deleted.push(key),
                Event::Put(_) => {}
            }
        }
    }
    assert!(deleted.iter().any(|key| key == first.key()));
    assert!(
        !deleted.iter().any(|key| key.starts_with(MASTERS)),
        "{deleted:?}"
    );
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn records_edited_by_hand_do_no_harm() {
    let master = Harness::start().await;
    master.ping(report(1)).await.unwrap();
    let key = kontrol_core::view::pod_key(report(1).key());
    let put = |key: &str, value: &'static str| Txn {
        ops: vec![Op::put(key, value)],
        ..Txn::default()
    };
    master.store.commit(put(&key, "{")).await.unwrap();
    master.store.commit(put(SEQ, "what?")).await.unwrap();
    master.until(View::is_empty).await;
    let accepted = master
        .ping(Report {
            beat: 2,
            ..report(1)
        })
        .await
        .unwrap();
    assert_eq!(accepted.seq, 1);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_changes_of_one_pod_are_applied_in_order() {
    let master = Harness::start().await;
    let change = |beat: u64| Report {
        beat,
        payload: json!(beat),
        ..report(1)
    };
    let all = (1..50).map(|beat| master.ping(change(beat)));
    futures::future::try_join_all(all).await.unwrap();
    let view = master.roster.view();
    assert_eq!(
        view.member(report(1).key()).unwrap().pod.payload(),
        &json!(49)
    );
    let late = master.ping(change(7)).await.unwrap();
    assert_eq!(late.seq, 0);
    assert_eq!(
        master
            .roster
            .view()
            .member(report(1).key())
            .unwrap()
            .pod
            .payload(),
        &json!(49)
    );
    master.stop().await;
}
