//! The same master on a store that is slow, hangs, or shows its changes late.

use super::*;
use crate::cluster::store::double::Faulty;
use kontrol_core::kv::Compare;
use std::net::IpAddr;

impl Faulty {
    async fn master(&self) -> Harness {
        Harness::on(Arc::new(self.clone())).await
    }
}

fn pod(number: u16) -> Report {
    let [high, low] = number.to_be_bytes();
    Report {
        ip: IpAddr::from([10, 1, high, low]),
        id: number.to_string(),
        ..report(1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_told_that_it_is_deposed_starts_no_other_term() {
    let store = Faulty::new();
    let master = store.master().await;
    master.ping(report(1)).await.unwrap();
    let fence = master.election.leads().unwrap();
    store.held.send_replace(true);
    let txn = Txn {
        compares: vec![Compare::CreateRevision(fence.key().into(), fence.epoch())],
        ops: vec![Op::Delete(fence.key().to_owned())],
        ..Txn::default()
    };
    store.inner.commit(txn).await.unwrap();
    sleep(TTL + Duration::from_secs(1)).await;
    for _ in 0..100 {
        assert_eq!(master.metrics.leading.get(), 0);
        sleep(Duration::from_millis(7)).await;
    }
    store.held.send_replace(false);
    let mut lead = master.election.changes();
    lead.wait_for(|now| now.as_ref().is_some_and(|now| *now != fence))
        .await
        .unwrap();
    master.until(View::is_empty).await;
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_candidacy_that_is_stored_late_leads_nobody() {
    let store = Faulty::new();
    store.unclear.send_replace(true);
    let master = store.master().await;
    sleep(Duration::from_secs(1)).await;
    let fence = master.election.leads().unwrap();
    assert_eq!(master.roster.view().leader().unwrap().key, fence.key());
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_join_without_a_clear_answer_is_committed_once() {
    let store = Faulty::new();
    let master = store.master().await;
    for number in 1..=9 {
        store.unclear.send_replace(true);
        assert_eq!(
            master.ping(pod(number)).await.unwrap().seq,
            u64::from(number) - 1
        );
    }
    sleep(Duration::from_millis(100)).await;
    let seqs: Vec<_> = master.roster.view().order().keys().copied().collect();
    assert_eq!(seqs, (0..9).collect::<Vec<_>>());
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn to_wait_for_a_slow_store_is_not_held_to_be_a_pause() {
    let store = Faulty::new();
    let master = store.master().await;
    let joins = (0..300).map(|number| master.ping(pod(number)));
    futures::future::try_join_all(joins).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let last = pod(299);
    master.ping(last.clone()).await.unwrap();
    let heard = Instant::now();
    store.delay.send_replace(Duration::from_millis(350));
    master.until(|view| view.member(last.key()).is_none()).await;
    let silent = heard.elapsed();
    assert!(silent <= TTL + Duration::from_secs(1), "{silent:?}");
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_whose_sender_gave_up_is_not_written_later_but_its_goodbye_is() {
    let store = Faulty::new();
    let master = store.master().await;
    master.ping(pod(1)).await.unwrap();
    store.delay.send_replace(Duration::from_secs(2));
    let leaves = Report {
        down: true,
        beat: 2,
        ..pod(1)
    };
    // The first is on its way to the store; the others wait behind it until their senders give up.
    let patience = Duration::from_secs(1);
    let (first, second, goodbye) = tokio::join!(
        master.ping(pod(2)),
        tokio::time::timeout(patience, async {
            sleep(Duration::from_millis(10)).await;
            master.ping(pod(3)).await
        }),
        tokio::time::timeout(patience, async {
            sleep(Duration::from_millis(10)).await;
            master.ping(leaves).await
        }),
    );
    first.unwrap();
    assert!(second.is_err() && goodbye.is_err());
    sleep(Duration::from_secs(3)).await;
    let view = master.roster.view();
    let ids: Vec<_> = view.pods().map(|pod| pod.id()).collect();
    assert_eq!(ids, ["2"]);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_back_while_its_change_is_being_written_is_stored() {
    let store = Faulty::new();
    let master = store.master().await;
    let says = |beat, payload: &str| Report {
        beat,
        payload: json!(payload),
        ..report(1)
    };
    master.ping(says(1, "first")).await.unwrap();
    store.delay.send_replace(Duration::from_secs(1));
    let patience = Duration::from_millis(200);
    let change = tokio::time::timeout(patience, master.ping(says(2, "second"))).await;
    assert!(change.is_err(), "its sender gave up");
    master.ping(says(3, "first")).await.unwrap();
    store.delay.send_replace(Duration::ZERO);
    sleep(Duration::from_secs(3)).await;
    let view = master.roster.view();
    let pod = &view.member(report(1).key()).unwrap().pod;
    assert_eq!(pod.payload(), &json!("first"));
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_heard_while_its_removal_is_under_way_stays() {
    for unclear in [false, true] {
        let store = Faulty::new();
        let master = store.master().await;
        let pod = report(1);
        master.ping(pod.clone()).await.unwrap();
        store.delay.send_replace(Duration::from_millis(600));
        // Its deadline passes with the next tick, and the removal takes longer than that.
        sleep(TTL + TICK * 2).await;
        store.unclear.send_replace(unclear);
        master.ping(pod.clone()).await.unwrap();
        store.delay.send_replace(Duration::ZERO);
        let accepted = Instant::now();
        while accepted.elapsed() < TTL - TICK * 2 {
            assert!(
                master.roster.view().member(pod.key()).is_some(),
                "removed {:?} after its last keepalive",
                accepted.elapsed()
            );
            sleep(Duration::from_millis(50)).await;
        }
        master.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_was_held_back_brings_no_silent_pod_back() {
    let store = Faulty::new();
    let master = store.master().await;
    let beat = |beat| Report { beat, ..report(1) };
    for number in 1..=3 {
        master.ping(beat(number)).await.unwrap();
    }
    master.until(View::is_empty).await;
    let late = master.ping(beat(2)).await;
    assert!(matches!(late, Err(Error::Superseded(_))), "{late:?}");
    assert!(master.roster.view().is_empty());
    master.ping(beat(4)).await.unwrap();
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_beats_of_an_incarnation_are_not_counted_for_the_next_one() {
    let store = Faulty::new();
    let master = store.master().await;
    let old = Report {
        beat: 1000,
        ..report(1)
    };
    let new = Report {
        beat: 1,
        nonce: "bb".into(),
        ..report(1)
    };
    master.ping(old.clone()).await.unwrap();
    store.held.send_replace(true);
    let change = Report {
        beat: 1001,
        payload: json!("last words"),
        ..old
    };
    let release = async {
        sleep(Duration::from_millis(100)).await;
        store.held.send_replace(false);
    };
    let (changed, restarted, ()) =
        tokio::join!(master.ping(change), master.ping(new.clone()), release);
    changed.unwrap();
    restarted.unwrap();
    let change = Report {
        beat: 2,
        payload: json!("first words"),
        ..new
    };
    master.ping(change).await.unwrap();
    let view = master.roster.view();
    let member = view.member(report(1).key()).unwrap();
    assert_eq!(member.pod.payload(), &json!("first words"));
    assert_eq!(member.heard.beat(), 2);
    master.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_report_that_no_record_can_hold_is_refused_and_harms_no_other() {
    let master = Faulty::new().master().await;
    let annotations = (0..64).map(|n| (n.to_string(), "\u{1}".repeat(4096)));
    let huge = Report {
        annotations: annotations.collect(),
        ..pod(1)
    };
    let quoted = (0..64).map(|n| (n.to_string(), "\"\n".repeat(2048)));
    let large = Report {
        annotations: quoted.collect(),
        ..pod(2)
    };
    let (huge, large, small) =
        tokio::join!(master.ping(huge), master.ping(large), master.ping(pod(3)));
    assert!(matches!(huge, Err(Error::Invalid(invalid)) if invalid.field == "annotations"));
    large.unwrap();
    small.unwrap();
    master.stop().await;
}
