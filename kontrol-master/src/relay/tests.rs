//! A follower's relay against a leader that answers as it is told, over a socket and in real time.

use super::*;
use crate::{
    election::Campaign,
    model::pod::tests::report,
    roster::{
        Mirror, PeerMaster,
        view::{LEADER, pod_key},
    },
    store::{EtcdOptions, Op, SharedStore, StoreUrl, Txn, open},
};
use futures::{Stream, StreamExt};
use kontrol_proto::internal::v1::{
    InspectRequest, InspectResponse, RelayRequest, RelayResponse, SightRequest, SightResponse,
    peer_service_server::{PeerService, PeerServiceServer},
};
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
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
}

#[derive(Debug, Clone)]
struct Leader {
    answer: Answer,
    beats: Arc<Mutex<Vec<u64>>>,
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
                let Answer::Counts(token) = &leader.answer else {
                    return Err(RpcStatus::aborted("another leads"));
                };
                token.cancelled().await;
                let beats = batch.refreshes.iter().map(|refresh| refresh.beat);
                leader.beats.lock().unwrap().extend(beats);
                Ok(RelayResponse {
                    batch: batch.batch,
                    callback: None,
                })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn sight(&self, _: Request<SightRequest>) -> Result<Response<SightResponse>, RpcStatus> {
        Err(RpcStatus::unimplemented("not here"))
    }

    async fn inspect(
        &self,
        _: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, RpcStatus> {
        Err(RpcStatus::unimplemented("not here"))
    }
}

struct Follower {
    roster: Roster,
    relay: Relay,
    beats: Arc<Mutex<Vec<u64>>>,
    _tasks: JoinSet<()>,
}

const ME: Instance = Instance(1);

/// A master that follows a leader of this kind, with one pod in the roster.
async fn follow(answer: Answer) -> Follower {
    let store: SharedStore = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let beats = Arc::default();
    let leader = Leader {
        answer,
        beats: Arc::clone(&beats),
    };
    let master = |instance: Instance, address: String| PeerMaster {
        id: instance.to_string(),
        address,
        instance: instance.to_string(),
    };
    let candidacy = serde_json::to_vec(&master(Instance(2), address)).unwrap();
    let pod = crate::model::Pod::join(report(1), 0, 0);
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
        store,
        roster.clone(),
        master(ME, String::new()),
        Duration::from_secs(5),
    );
    let ttl = Duration::from_secs(25);
    let (relay, task) = Relay::new(
        ME,
        roster.clone(),
        election,
        Status::default(),
        ttl,
        mpsc::channel(1).0,
    );
    let routes = tonic::service::Routes::new(PeerServiceServer::new(leader)).into_axum_router();
    let mut tasks = JoinSet::new();
    tasks.spawn(mirror.run(CancellationToken::new()));
    tasks.spawn(task.run(CancellationToken::new()));
    tasks.spawn(async move {
        let token = CancellationToken::new();
        crate::listener::serve(listener, routes, token, Duration::ZERO)
            .await
            .unwrap();
    });
    assert!(roster.caught_up(1, Duration::from_secs(5)).await);
    Follower {
        roster,
        relay,
        beats,
        _tasks: tasks,
    }
}

#[tokio::test]
async fn a_keepalive_that_comes_while_the_leader_is_found_is_counted() {
    let open = CancellationToken::new();
    let follower = follow(Answer::Counts(open.clone())).await;
    // Long enough to have told the leader all that was heard, and within what it may take to answer.
    sleep(ACK_LIMIT / 4).await;
    let (key, now) = (report(1).key(), Instant::now());
    let view = follower.roster.view();
    let member = view.member(key).unwrap();
    member.heard.touch(now, 7, Some(ME));
    let counted = follower.relay.count(Sign {
        key,
        revision: member.mod_revision,
        beat: 7,
        attachment: 0,
        at: now,
    });
    let release = async {
        sleep(ACK_LIMIT / 4).await;
        open.cancel();
    };
    let (counted, ()) = tokio::join!(counted, release);
    counted.unwrap();
    let mut link = follower.relay.changes();
    link.wait_for(|link| *link == Link::Up).await.unwrap();
    sleep(2 * HEARTBEAT).await;
    assert_eq!(*follower.beats.lock().unwrap(), [7]);
}

#[tokio::test]
async fn a_master_that_does_not_learn_who_leads_by_now_refuses_keepalives() {
    let follower = follow(Answer::Overtaken).await;
    let mut link = follower.relay.changes();
    let down = link.wait_for(|link| *link == Link::Down);
    timeout(4 * ACK_LIMIT, down).await.unwrap().unwrap();
    sleep(ACK_LIMIT).await;
    assert!(follower.relay.check().is_err());
}
