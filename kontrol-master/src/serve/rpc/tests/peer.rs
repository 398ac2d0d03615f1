//! The leader's side of a relay.

use super::{super::peer::Service, *};
use kontrol_proto::internal::v1::{
    Refresh, RelayRequest, RelayResponse, peer_service_client::PeerServiceClient,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

const PEER: Instance = Instance(2);

impl Leader {
    async fn follow(&self) -> Follower {
        let server = PeerServiceServer::new(Service::new(self.context.clone()));
        let (batches, receiver) = mpsc::channel(1);
        let stream = ReceiverStream::new(receiver);
        let answers = PeerServiceClient::new(server).relay(stream).await.unwrap();
        Follower {
            first: RelayRequest {
                master: PEER.to_string(),
                epoch: self.epoch,
                leader: ME.to_string(),
                ..RelayRequest::default()
            },
            batches,
            answers: answers.into_inner(),
            number: 0,
            stamp: 0,
        }
    }
}

/// A stream to the leader, by hand.
struct Follower {
    first: RelayRequest,
    batches: mpsc::Sender<RelayRequest>,
    answers: Streaming<RelayResponse>,
    number: u64,
    stamp: u64,
}

impl Follower {
    async fn tell(&mut self, refreshes: &[Refresh]) -> Result<RelayResponse, Status> {
        self.number += 1;
        let batch = RelayRequest {
            batch: self.number,
            refreshes: refreshes.to_vec(),
            echo: self.stamp,
            ..self.first.clone()
        };
        self.batches.send(batch).await.unwrap();
        let response = self.answers.message().await?.unwrap();
        assert_eq!(response.batch, self.number);
        self.stamp = response.stamp;
        Ok(response)
    }
}

fn refresh(pod: &Pod, revision: i64, beat: u64) -> Refresh {
    let key = pod.key().as_u128();
    Refresh {
        key_high: u64::try_from(key >> 64).unwrap(),
        key_low: u64::try_from(key & u128::from(u64::MAX)).unwrap(),
        revision,
        beat,
        ..Refresh::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_against_a_record_that_a_peer_wrote_anew_is_to_be_decided_again() {
    let leader = Leader::start().await;
    let pod = Pod::join(report(1), 0, 0);
    let known = leader.join(&pod).await;
    let mut writer = leader.follow().await;
    let mut reader = leader.follow().await;
    for peer in [&mut writer, &mut reader] {
        peer.tell(&[]).await.unwrap();
    }
    let beat = || {
        let view = leader.context.roster.view();
        view.member(pod.key()).unwrap().heard.beat()
    };
    let counted = reader.tell(&[refresh(&pod, known, 5)]).await.unwrap();
    assert_eq!((counted.again, beat()), (vec![], 5));
    // The leader's own view does not show it yet.
    let written = Refresh {
        written: true,
        ..refresh(&pod, known + 1, 9)
    };
    let counted = writer.tell(&[written]).await.unwrap();
    assert_eq!((counted.again, beat()), (vec![], 5), "no sign of life");
    let both = [refresh(&pod, known, 6), refresh(&pod, known + 1, 7)];
    let counted = reader.tell(&both).await.unwrap();
    assert_eq!((counted.again, beat()), (vec![0], 7));
    assert_eq!(counted.revision, leader.context.roster.view().revision());
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_master_for_another_one_or_for_a_leader_is_told_and_not_counted() {
    let leader = Leader::start().await;
    let mut stranger = leader.follow().await;
    stranger.first.leader = Instance(7).to_string();
    let told = stranger.tell(&[]).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    assert!(told.message().contains("leader"), "it names itself: {told}");
    for (epoch, code) in [
        (leader.epoch - 1, Code::Aborted),
        (leader.epoch + 1, Code::FailedPrecondition),
    ] {
        let mut late = leader.follow().await;
        late.first.epoch = epoch;
        let told = late.tell(&[]).await.unwrap_err();
        assert_eq!(told.code(), code, "{told}");
    }
}
