//! A follower's relay against a leader that answers as it is told, over a socket and in real time.

mod alone;

use super::{
    detour::PACE,
    stream::{ACK_LIMIT, HEARTBEAT},
    *,
};
use crate::cluster::{
    election::Campaign,
    roster::Mirror,
    store::{EtcdOptions, Store, StoreError, StoreUrl, Watch, open},
};
use async_trait::async_trait;
use futures::{Stream, StreamExt};
use kontrol_core::{
    kv::{LeaseId, Op, Outcome, Snapshot, Txn},
    testing::report,
    view::{LEADER, PeerMaster, RELAY, RelayRecord, pod_key},
};
use kontrol_proto::internal::v1::{
    InspectRequest, InspectResponse, Refresh, RelayRequest, RelayResponse,
    peer_service_server::{PeerService, PeerServiceServer},
};
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status as RpcStatus, Streaming};

/// What the leader does with the batches of every stream.
#[derive(Debug, Clone)]
enum Answer {
    /// Counts them, from when the token is cancelled.
    Counts(CancellationToken),
    /// Says that another leads by now.
    Overtaken,
    /// Says that it is another master.
    Stranger,
    /// Says that it doesn't lead.
    NotLeading,
    /// Takes the stream and never answers.
    Hangs,
    /// Says that no record is what the follower takes it for.
    Again,
    /// Breaks the stream at the first batch that tells something, once.
    Breaks(Arc<AtomicBool>),
}

/// A store that other masters could share.
#[derive(Debug)]
struct Shared(SharedStore);

#[async_trait]
impl Store for Shared {
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.0.snapshot().await
    }
    async fn snapshot_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot, StoreError> {
        self.0.snapshot_at(prefix, revision).await
    }
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.0.read(keys).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.0.commit(txn).await
    }
    async fn watch(&self, behind: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.0.watch(behind).await
    }
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.0.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.0.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
    fn leases_expire(&self) -> bool {
        true
    }
}

fn memory() -> SharedStore {
    open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap()
}

#[derive(Debug, Clone)]
struct Leader {
    answer: Answer,
    beats: Arc<Mutex<Vec<u64>>>,
    /// What was told that is no sign of life.
    told: Arc<Mutex<Vec<Refresh>>>,
}

#[tonic::async_trait]
impl PeerService for Leader {
    type RelayStream = Pin<Box<dyn Stream<Item = Result<RelayResponse, RpcStatus>> + Send>>;

    async fn relay(
        &self,
        request: Request<Streaming<RelayRequest>>,
    ) -> Result<Response<Self::RelayStream>, RpcStatus> {
        let leader = self.clone();
        let answers = request.into_inner().then(move |batch| {
            let leader = leader.clone();
            async move {
                let batch = batch?;
                // The first one fetches a stamp, which each one behind it echoes.
                let first = batch.batch == 1;
                assert_eq!(first, batch.echo == 0);
                assert!(!first || batch.refreshes.is_empty());
                let mut response = RelayResponse {
                    batch: batch.batch,
                    stamp: 1000 + batch.batch,
                    ..RelayResponse::default()
                };
                assert!(first || batch.echo == 999 + batch.batch);
                match &leader.answer {
                    Answer::Counts(token) => token.cancelled().await,
                    Answer::Overtaken => return Err(RpcStatus::aborted("another leads")),
                    Answer::Stranger => return Err(RpcStatus::not_found("the master m9")),
                    Answer::NotLeading => {
                        return Err(RpcStatus::failed_precondition("not the leader"));
                    }
                    Answer::Hangs => std::future::pending().await,
                    Answer::Again => {
                        response.again = (0..).take(batch.refreshes.len()).collect();
                        response.revision = 1;
                    }
                    Answer::Breaks(due) => {
                        if !batch.refreshes.is_empty() && due.swap(false, Ordering::Relaxed) {
                            return Err(RpcStatus::unavailable("on purpose"));
                        }
                    }
                }
                let beats = batch.refreshes.iter().map(|refresh| refresh.beat);
                leader.beats.lock().unwrap().extend(beats);
                let told = batch.refreshes.into_iter();
                let told = told.filter(|refresh| refresh.detached || refresh.written);
                leader.told.lock().unwrap().extend(told);
                Ok(response)
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn inspect(
        &self,
        _: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, RpcStatus> {
        Err(RpcStatus::unimplemented("not here"))
    }
}

struct Follower {
    store: SharedStore,
    roster: Roster,
    relay: Relay,
    beats: Arc<Mutex<Vec<u64>>>,
    told: Arc<Mutex<Vec<Refresh>>>,
    _tasks: JoinSet<()>,
}

const ME: Instance = Instance(1);

/// The relay of a follower, and its tasks.
fn relay(
    store: &SharedStore,
    roster: &Roster,
    election: Election,
) -> (Relay, RelayTask, DetourTask) {
    let ttl = Duration::from_secs(25);
    Relay::new(Parts {
        me: ME,
        id: "follower".into(),
        store: store.clone(),
        roster: roster.clone(),
        election,
        status: Status::default(),
        ttl,
        interval: ttl / 5,
        detached: mpsc::channel(1).0,
        metrics: Arc::default(),
        dialer: crate::cluster::peers::Dialer::default(),
    })
}

/// A master that follows a leader of this kind, with one pod in the roster.
async fn follow(answer: Answer) -> Follower {
    let store: SharedStore = Arc::new(Shared(memory()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (beats, told) = (Arc::default(), Arc::default());
    let leader = Leader {
        answer,
        beats: Arc::clone(&beats),
        told: Arc::clone(&told),
    };
    let master = |instance: Instance, address: String| PeerMaster {
        id: instance.to_string(),
        address,
        instance: instance.to_string(),
        tls: false,
    };
    let candidacy = serde_json::to_vec(&master(Instance(2), address)).unwrap();
    let pod = kontrol_core::model::Pod::join(report(1), 0, 0);
    let txn = Txn {
        ops: vec![
            Op::put(format!("{LEADER}1"), candidacy),
            Op::put(pod_key(pod.key()), pod.encode()),
        ],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    let (roster, mirror): (Roster, Mirror) = Roster::new(store.clone());
    let (election, _campaign) = Campaign::new(
        store.clone(),
        roster.clone(),
        master(ME, String::new()),
        Duration::from_secs(5),
    );
    let (relay, task, detour) = relay(&store, &roster, election);
    let routes = tonic::service::Routes::new(PeerServiceServer::new(leader)).into_axum_router();
    let mut tasks = JoinSet::new();
    tasks.spawn(mirror.run(CancellationToken::new()));
    tasks.spawn(task.run(CancellationToken::new()));
    tasks.spawn(detour.run(CancellationToken::new()));
    tasks.spawn(async move {
        let token = CancellationToken::new();
        crate::serve::listener::Port::new(listener, routes)
            .serve(token, Duration::ZERO)
            .await
            .unwrap();
    });
    assert!(roster.caught_up(1, Duration::from_secs(5)).await);
    Follower {
        store,
        roster,
        relay,
        beats,
        told,
        _tasks: tasks,
    }
}

impl Follower {
    /// The pod was heard with this beat.
    fn heard(&self, beat: u64) -> Sign {
        let (key, at) = (report(1).key(), Instant::now());
        let view = self.roster.view();
        let member = view.member(key).unwrap();
        member.heard.touch(at, beat, Some(ME));
        Sign {
            key,
            revision: member.mod_revision,
            beat,
            attachment: 0,
            at,
        }
    }

    async fn linked(&self, wanted: Link) {
        let mut link = self.relay.changes();
        let linked = link.wait_for(|link| *link == wanted);
        timeout(4 * ACK_LIMIT, linked).await.unwrap().unwrap();
    }

    /// What the leader is told first that is no sign of life.
    async fn told(&self) -> Refresh {
        let told = async {
            loop {
                if let Some(told) = self.told.lock().unwrap().first() {
                    return *told;
                }
                sleep(HEARTBEAT).await;
            }
        };
        timeout(4 * ACK_LIMIT, told).await.unwrap()
    }

    /// The batch in the store.
    async fn stored(&self) -> Option<RelayRecord> {
        let key = format!("{RELAY}follower");
        let snapshot = self.store.read(&[key]).await.unwrap();
        let entry = snapshot.entries.first()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }
}

#[tokio::test]
async fn a_keepalive_that_comes_while_the_leader_is_found_is_counted() {
    let open = CancellationToken::new();
    let follower = follow(Answer::Counts(open.clone())).await;
    follower.linked(Link::Opening).await;
    let sign = follower.heard(7);
    open.cancel();
    assert_eq!(follower.relay.count(sign).await.unwrap(), Counted::Yes);
    follower.linked(Link::Up).await;
    sleep(2 * HEARTBEAT).await;
    assert_eq!(*follower.beats.lock().unwrap(), [7]);
}

#[tokio::test]
async fn without_a_leader_that_can_be_told_keepalives_stand_in_the_store() {
    for answer in [
        Answer::Overtaken,
        Answer::Stranger,
        Answer::NotLeading,
        Answer::Hangs,
    ] {
        let follower = follow(answer.clone()).await;
        let link = if matches!(answer, Answer::Stranger) {
            Link::Stranger
        } else {
            Link::Down
        };
        follower.linked(link).await;
        let mut numbers = Vec::new();
        for beat in [7, 8] {
            let sign = follower.heard(beat);
            assert_eq!(follower.relay.count(sign).await.unwrap(), Counted::Yes);
            let record = follower.stored().await.unwrap();
            assert_eq!(record.instance, ME.to_string());
            assert_eq!(record.signs.len(), 1);
            assert_eq!(record.signs[0].beat, beat, "{answer:?}");
            numbers.push(record.batch);
        }
        assert_eq!(numbers, [1, 2], "{answer:?}");
    }
}

#[tokio::test]
async fn at_most_five_batches_a_second_go_through_the_store() {
    let follower = follow(Answer::NotLeading).await;
    follower.linked(Link::Down).await;
    let begin = Instant::now();
    let mut beat = 0;
    while begin.elapsed() < 5 * PACE {
        beat += 1;
        let counts = (0..20).map(|_| follower.relay.count(follower.heard(beat)));
        for counted in futures::future::join_all(counts).await {
            assert_eq!(counted.unwrap(), Counted::Yes);
        }
    }
    let writes = f64::from(u32::try_from(follower.stored().await.unwrap().batch).unwrap());
    assert!(
        writes <= begin.elapsed().div_duration_f64(PACE) + 1.0,
        "{writes}"
    );
}

#[tokio::test]
async fn once_the_leader_keeps_up_again_nothing_stays_in_the_store() {
    let open = CancellationToken::new();
    let follower = follow(Answer::Counts(open.clone())).await;
    follower.linked(Link::Opening).await;
    // The leader takes its time, so that the detour is quicker.
    let sign = follower.heard(7);
    assert_eq!(follower.relay.count(sign).await.unwrap(), Counted::Yes);
    assert_eq!(follower.stored().await.unwrap().signs.len(), 1);
    open.cancel();
    let gone = async {
        while follower.stored().await.is_some() {
            sleep(PACE).await;
        }
    };
    timeout(4 * detour::SETTLED, gone).await.unwrap();
    assert!(follower.beats.lock().unwrap().contains(&7));
}

#[tokio::test]
async fn a_keepalive_held_against_another_record_is_not_counted_either_way() {
    let direct = follow(Answer::Again).await;
    direct.linked(Link::Up).await;
    let sign = direct.heard(7);
    assert_eq!(direct.relay.count(sign).await.unwrap(), Counted::Again(1));

    let stored = follow(Answer::NotLeading).await;
    stored.linked(Link::Down).await;
    let sign = stored.heard(7);
    let key = pod_key(sign.key);
    let gone = Txn {
        ops: vec![Op::Delete(key)],
        ..Txn::default()
    };
    stored.store.commit(gone).await.unwrap();
    assert_eq!(
        stored.relay.count(sign).await.unwrap(),
        Counted::Again(stored.roster.peek().revision())
    );
}

#[tokio::test]
async fn the_end_of_a_channel_is_told_though_the_stream_breaks_meanwhile() {
    let follower = follow(Answer::Breaks(Arc::new(AtomicBool::new(true)))).await;
    follower.linked(Link::Up).await;
    let attachment = 3;
    follower.relay.detached(Sign {
        attachment,
        ..follower.heard(7)
    });
    let told = follower.told().await;
    assert!(told.detached && !told.written);
    assert_eq!(told.attachment, attachment);
}

#[tokio::test]
async fn a_record_that_a_follower_wrote_is_told_as_written_and_not_as_a_sign_of_life() {
    let open = CancellationToken::new();
    open.cancel();
    let follower = follow(Answer::Counts(open)).await;
    follower.linked(Link::Up).await;
    let written = follower.relay.written(report(1).key(), 9, Duration::MAX);
    assert!(written.await);
    let told = follower.told().await;
    assert!(told.written && !told.detached);
    assert_eq!((told.revision, told.beat), (9, 0));
}

#[test]
fn a_batch_that_the_network_held_back_is_late_however_long_its_caller_held_the_stamp() {
    let seconds = Duration::from_secs_f64;
    for (since, held, late) in [
        (0.2, 0.2, false),
        (60.2, 60.0, false),
        (1.2, 0.0, false),
        (6.4, 0.2, true),
        (66.4, 60.0, true),
        // Clocks run unlike.
        (0.1, 0.2, false),
    ] {
        assert_eq!(
            is_late(seconds(since), seconds(held)),
            late,
            "{since} {held}"
        );
    }
}

#[test]
fn the_leader_counts_what_is_held_against_the_record_it_knows_or_will_know() {
    let pod = kontrol_core::model::Pod::join(report(1), 0, 0);
    let events = kontrol_core::kv::Events {
        revision: 5,
        events: vec![kontrol_core::kv::Event::Put(kontrol_core::kv::Entry {
            key: pod_key(pod.key()),
            value: pod.encode().into(),
            create_revision: 5,
            mod_revision: 5,
        })],
    };
    let now = Instant::now();
    let (view, _) = View::default().apply(&events, now);
    let sign = |key, revision| Sign {
        key,
        revision,
        beat: 3,
        attachment: 0,
        at: now,
    };
    let heard = || view.member(pod.key()).unwrap().heard.beat();
    assert!(!hear(&view, sign(pod.key(), 4), ME), "an older record");
    assert_eq!(heard(), 1);
    assert!(hear(&view, sign(pod.key(), 5), ME));
    assert_eq!(heard(), 3);
    let other = report(2).key();
    assert!(!hear(&view, sign(other, 5), ME), "a record that is gone");
    assert!(hear(&view, sign(other, 6), ME), "a record that will come");
}
