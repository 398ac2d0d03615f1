//! A follower without a network, under virtual time: the tests play the stream to the leader, or nobody can be dialled.

use super::*;
use crate::{
    cluster::readiness::Readiness,
    ensemble::keepalive::{Accepted, Committer, Keepalives},
};
use futures::FutureExt;
use kontrol_core::{
    limits::Limits,
    model::{Pod, Report},
};
use kontrol_runtime::clock::Clock;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

struct Alone {
    store: SharedStore,
    roster: Roster,
    election: Election,
    relay: Relay,
    /// Not run: its queue is what the leader would be told.
    task: RelayTask,
    keepalives: Keepalives,
    /// Keeps the roster, until the token is cancelled.
    mirror: (CancellationToken, JoinHandle<()>),
    _committing: AbortOnDropHandle<()>,
}

impl Alone {
    async fn start() -> Self {
        let store: SharedStore = Arc::new(Shared(memory()));
        let (roster, mirror) = Roster::new(store.clone());
        let (election, _campaign) = campaign(&store, &roster);
        let (relay, task, _detour) = relay(&store, &roster, election.clone());
        let (committer, committing) = Committer::new(
            store.clone(),
            roster.clone(),
            "m".into(),
            Limits::default(),
            Arc::default(),
        );
        let keepalives =
            Keepalives::new(ME, roster.clone(), committer, relay.clone(), Arc::default());
        let token = CancellationToken::new();
        let mirror = tokio::spawn(mirror.run(token.clone()));
        let committing = tokio::spawn(committing.run(CancellationToken::new()));
        assert!(roster.caught_up(0, Duration::from_secs(1)).await);
        Self {
            store,
            roster,
            election,
            relay,
            task,
            keepalives,
            mirror: (token, mirror),
            _committing: AbortOnDropHandle::new(committing),
        }
    }

    /// From now on this master hears of no change.
    async fn deafen(&mut self) {
        let (token, mirror) = &mut self.mirror;
        token.cancel();
        mirror.await.unwrap();
    }

    /// Another master writes the record of this pod.
    async fn put(&self, pod: &Pod) -> Revision {
        let txn = Txn {
            ops: vec![Op::put(pod_key(pod.key()), pod.encode())],
            ..Txn::default()
        };
        match self.store.commit(txn).await.unwrap() {
            Outcome::Committed(revision) => revision,
            Outcome::Conflict(_) => unreachable!("nothing is compared"),
        }
    }

    async fn is_stored(&self, pod: &Pod) -> bool {
        let read = self.store.read(&[pod_key(pod.key())]).await.unwrap();
        !read.entries.is_empty()
    }
}

fn campaign(store: &SharedStore, roster: &Roster) -> (Election, Campaign) {
    let me = PeerMaster {
        id: "follower".into(),
        address: "follower:1".into(),
        instance: ME.to_string(),
        tls: false,
    };
    let (clock, lease) = (Clock::of_runtime(), Duration::from_secs(5));
    Campaign::by(clock, store.clone(), roster.clone(), me, lease)
}

/// A leader at an address that nobody can dial.
async fn nowhere(store: &SharedStore) {
    let leader = PeerMaster {
        id: "leader".into(),
        address: "no address".into(),
        instance: Instance(2).to_string(),
        tls: false,
    };
    let txn = Txn {
        ops: vec![Op::put(format!("{LEADER}1"), leader.encode())],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_is_elected_does_not_sleep_out_its_back_off() {
    for _ in 0..10 {
        let store: SharedStore = Arc::new(Shared(memory()));
        nowhere(&store).await;
        let (roster, mirror) = Roster::new(store.clone());
        let (election, campaign) = campaign(&store, &roster);
        let (relay, task, _detour) = relay(&store, &roster, election.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror.run(CancellationToken::new()));
        tasks.spawn(campaign.run(CancellationToken::new()));
        tasks.spawn(task.run(CancellationToken::new()));
        let mut link = relay.changes();
        link.wait_for(|link| *link == Link::Down).await.unwrap();
        // The pauses between two attempts are long by then.
        sleep(Duration::from_secs(10)).await;
        let gone = Txn {
            ops: vec![Op::Delete(format!("{LEADER}1"))],
            ..Txn::default()
        };
        store.commit(gone).await.unwrap();
        let mut lead = election.changes();
        lead.wait_for(Option::is_some).await.unwrap();
        let elected = Instant::now();
        link.wait_for(|link| *link == Link::Leading).await.unwrap();
        assert_eq!(elected.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn who_wrote_a_record_waits_until_the_leader_knows_of_it_but_not_for_long() {
    let mut alone = Alone::start().await;
    let pod = Pod::join(report(1), 0, 0);
    let known = alone.put(&pod).await;
    assert!(alone.roster.caught_up(known, Duration::from_secs(1)).await);
    alone.task.set(Link::Up);
    let mut written = std::pin::pin!(alone.relay.written(pod.key(), known + 1, Duration::MAX));
    assert!(written.as_mut().now_or_never().is_none());
    let view = alone.roster.view();
    let member = view.member(pod.key()).unwrap();
    assert!(
        !member.is_latest(known),
        "nor does this master answer from it"
    );
    let item = alone.task.queue.try_recv().unwrap();
    assert!(item.written && !item.detached);
    assert_eq!((item.sign.key, item.sign.revision), (pod.key(), known + 1));
    assert!(written.as_mut().now_or_never().is_none());
    item.settle(Counted::Yes);
    assert_eq!(written.as_mut().now_or_never(), Some(true));
    // A leader that does not answer.
    let start = Instant::now();
    assert!(
        !alone
            .relay
            .written(pod.key(), known + 2, Duration::MAX)
            .await
    );
    assert_eq!(start.elapsed(), alone.relay.limits.answer);
    let start = Instant::now();
    let limit = Duration::from_millis(100);
    assert!(!alone.relay.written(pod.key(), known + 3, limit).await);
    assert_eq!(start.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn who_wrote_a_record_while_nobody_led_tells_whoever_is_elected_in_a_moment() {
    let mut alone = Alone::start().await;
    let (relay, task) = (&alone.relay, &alone.task);
    let elected = async {
        sleep(ELECTED_LIMIT / 2).await;
        task.set(Link::Opening);
    };
    tokio::join!(relay.written(report(1).key(), 7, Duration::MAX), elected);
    assert!(alone.task.queue.try_recv().unwrap().written);
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_changed_a_record_is_answered_once_the_leader_knows_of_that() {
    let mut alone = Alone::start().await;
    alone.task.set(Link::Up);
    let report = report(1);
    let mut answer = std::pin::pin!(alone.keepalives.accept(&report, ""));
    let item = tokio::select! {
        answer = &mut answer => panic!("it is answered too early: {answer:?}"),
        item = alone.task.queue.recv() => item.unwrap(),
    };
    assert!(item.written && item.sign.revision > 0);
    assert!(alone.is_stored(&Pod::join(report.clone(), 0, 0)).await);
    let revision = item.sign.revision;
    assert!(
        alone
            .roster
            .caught_up(revision, Duration::from_secs(1))
            .await
    );
    assert!(answer.as_mut().now_or_never().is_none());
    item.settle(Counted::Yes);
    let Accepted { seq, .. } = answer.await.unwrap();
    assert_eq!(seq, 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_the_leader_did_not_hear_of_is_to_be_said_again_and_joins_and_goodbyes_stand()
{
    let alone = Alone::start().await;
    alone.task.set(Link::Up);
    let says = |beat, payload: &str, down| Report {
        beat,
        payload: payload.into(),
        down,
        ..report(1)
    };
    let say = async |report: Report| alone.keepalives.accept(&report, "").await;
    say(says(1, "first", false)).await.unwrap();
    let answer = say(says(2, "second", false)).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    let read = alone.store.read(&[pod_key(report(1).key())]).await;
    let stored = Pod::decode(&read.unwrap().entries[0].value).unwrap();
    assert_eq!(stored.payload(), "second");
    say(says(3, "second", true)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_obeyed_by_the_whole_intake_of_a_master_whose_view_shows_another() {
    let mut alone = Alone::start().await;
    let start = |nonce: &str, down| Report {
        nonce: nonce.into(),
        beat: 5,
        down,
        ..report(1)
    };
    let before = Pod::join(start("before", false), 0, 0);
    let shown = alone.put(&before).await;
    assert!(alone.roster.caught_up(shown, Duration::from_secs(1)).await);
    alone.deafen().await;
    let pod = before.update(start("now", false));
    alone.put(&pod).await;
    alone
        .keepalives
        .accept(&start("now", true), "")
        .await
        .unwrap();
    assert!(!alone.is_stored(&pod).await);
}

#[tokio::test(start_paused = true)]
async fn a_master_is_ready_where_keepalives_count_and_not_beside_a_stranger() {
    let alone = Alone::start().await;
    let (roster, election) = (alone.roster.clone(), alone.election.clone());
    let readiness = Readiness::new(roster, alone.relay.clone(), election);
    for (link, why) in [
        (Link::Leading, None),
        (Link::Up, None),
        (Link::Late, None),
        (Link::Down, None),
        (Link::Opening, None),
        (Link::NoLeader, None),
        (Link::Stranger, Some("another master")),
    ] {
        alone.task.set(link);
        match (readiness.check(), why) {
            (Ok(()), None) => {}
            (Err(said), Some(why)) => assert!(said.contains(why), "{said}"),
            (checked, _) => panic!("{link:?}: {checked:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_the_leader_knows_better_about_is_decided_against_the_store() {
    let mut alone = Alone::start().await;
    let says = |beat, payload: &str| Report {
        beat,
        payload: payload.into(),
        ..report(1)
    };
    let pod = Pod::join(says(1, "first"), 0, 0);
    let known = alone.put(&pod).await;
    assert!(alone.roster.caught_up(known, Duration::from_secs(1)).await);
    alone.deafen().await;
    // Through another master it said something else, and now takes that back.
    let changed = alone.put(&pod.update(says(2, "second"))).await;
    alone.task.set(Link::Up);
    let leader = async {
        let told = alone.task.queue.recv().await.unwrap();
        assert!(!told.written);
        assert_eq!(told.sign.revision, known);
        told.settle(Counted::Again(changed));
        let told = alone.task.queue.recv().await.unwrap();
        assert!(told.written);
        told.settle(Counted::Yes);
    };
    let third = says(3, "first");
    let accepted = alone.keepalives.accept(&third, "");
    let both = async { tokio::join!(accepted, leader) };
    let (answer, ()) = timeout(Duration::from_secs(5), both).await.unwrap();
    answer.unwrap();
    let read = alone.store.read(&[pod_key(pod.key())]).await.unwrap();
    let stored = Pod::decode(&read.entries[0].value).unwrap();
    assert_eq!(stored.payload(), "first");
    assert!(read.entries[0].mod_revision > changed);
}

#[tokio::test(start_paused = true)]
async fn a_short_keepalive_counts_only_while_the_record_is_the_one_that_it_speaks_of() {
    let mut alone = Alone::start().await;
    let says = |beat, payload: &str| Report {
        beat,
        payload: payload.into(),
        ..report(1)
    };
    let (pod, first) = (Pod::join(says(1, "first"), 0, 0), says(1, "first"));
    assert!(alone.keepalives.standing(&first).is_none(), "nothing yet");
    let known = alone.put(&pod).await;
    assert!(alone.roster.caught_up(known, Duration::from_secs(1)).await);
    let goodbye = Report {
        down: true,
        ..first.clone()
    };
    assert!(alone.keepalives.standing(&goodbye).is_none());
    assert!(alone.keepalives.standing(&says(1, "other")).is_none());
    let standing = alone.keepalives.standing(&first).unwrap();

    alone.task.set(Link::Up);
    let confirm = async |alone: &mut Alone, counted| {
        let leader = async {
            let told = alone.task.queue.recv().await.unwrap();
            assert_eq!(
                (told.written, told.sign.revision, told.sign.beat),
                (false, known, 7)
            );
            told.settle(counted);
        };
        let confirmed = alone.keepalives.confirm(&standing, 7);
        tokio::join!(confirmed, leader).0.unwrap()
    };
    let accepted = confirm(&mut alone, Counted::Yes).await.unwrap();
    assert_eq!((accepted.key, accepted.seq), (pod.key(), 0));
    // The leader knows of a later record.
    assert_eq!(confirm(&mut alone, Counted::Again(known + 1)).await, None);

    // Even one with the same words is another: somebody else may have been there in between.
    let again = alone.put(&pod).await;
    assert!(alone.roster.caught_up(again, Duration::from_secs(1)).await);
    let late = alone.keepalives.confirm(&standing, 8).await.unwrap();
    assert_eq!(late, None);
    let gone = alone.store.read(&[pod_key(pod.key())]).await.unwrap();
    assert_eq!(gone.entries.len(), 1, "nothing is written for it");
}
