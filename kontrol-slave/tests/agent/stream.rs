//! The stream of keepalives: short where nothing is new, and whatever becomes of it no keepalive is lost.

use crate::{
    Running,
    master::{By, Heard, Master, Reply, Streams},
};
use serde_json::json;
use std::time::Duration;

const OFTEN: Duration = Duration::from_millis(50);

fn ways(heard: &[Heard]) -> Vec<By> {
    heard.iter().map(|heard| heard.by).collect()
}

fn assert_growing(heard: &[Heard]) {
    let beats = heard.iter().map(|heard| heard.request.beat);
    let beats: Vec<u64> = beats.collect();
    assert!(beats.windows(2).all(|pair| pair[0] < pair[1]), "{beats:?}");
}

#[tokio::test]
async fn what_holds_is_said_by_its_beat_and_what_is_new_as_a_whole() {
    let mut master = Master::start(Reply::Accept(OFTEN)).await;
    let agent = Running::start(&master.address());
    let heard = master.hears(5).await;
    assert_eq!(
        ways(&heard[..5]),
        [By::Stream, By::Beat, By::Beat, By::Beat, By::Beat]
    );
    agent.payload.send_replace(json!({"load": 1}));
    let before = master.heard().len();
    let heard = master.hears(before + 3).await;
    let whole = heard
        .iter()
        .rposition(|heard| heard.by == By::Stream)
        .unwrap();
    assert!(whole > 0, "{:?}", ways(&heard));
    assert_eq!(
        ways(&heard).iter().filter(|by| **by == By::Stream).count(),
        2
    );
    assert_growing(&heard);
    agent.stop().await;
    let heard = master.stop().await;
    let last = heard.last().unwrap();
    assert!(last.request.down && last.by == By::Request);
    assert_growing(&heard);
}

#[tokio::test]
async fn a_master_that_can_not_tell_what_holds_gets_the_whole_at_once() {
    let mut master = Master::start(Reply::Accept(OFTEN)).await;
    let agent = Running::start(&master.address());
    master.hears(3).await;
    master.forget();
    let before = master.heard().len();
    let heard = master.hears(before + 3).await;
    let wholes = ways(&heard).iter().filter(|by| **by == By::Stream).count();
    assert_eq!(wholes, 2, "{:?}", ways(&heard));
    assert_growing(&heard);
    agent.stop().await;
}

#[tokio::test]
async fn a_master_that_knows_no_streams_or_no_beats_hears_of_the_pod_all_the_same() {
    for (streams, by) in [
        (Streams::Unknown, By::Request),
        (Streams::WithoutBeats, By::Stream),
    ] {
        let mut master = Master::start(Reply::Accept(OFTEN)).await;
        master.streams(streams);
        let agent = Running::start(&master.address());
        let heard = master.hears(5).await;
        assert!(
            ways(&heard).iter().all(|way| *way == by),
            "{streams:?}: {:?}",
            ways(&heard)
        );
        assert_growing(&heard);
        agent.stop().await;
    }
}

#[tokio::test]
async fn streams_that_are_cut_while_idle_cost_no_keepalive_and_are_given_up() {
    let mut master = Master::start(Reply::Accept(OFTEN)).await;
    master.streams(Streams::CutWhenIdle);
    let mut agent = Running::start(&master.address());
    let heard = master.hears(6).await;
    assert_eq!(
        ways(&heard[..6]),
        [
            By::Stream,
            By::Stream,
            By::Request,
            By::Request,
            By::Request,
            By::Request
        ]
    );
    assert_growing(&heard);
    let status = agent.tier(0, |tier| tier.attached.is_some()).await;
    assert_eq!(status.trouble, None);
    agent.stop().await;
}

#[tokio::test]
async fn a_refusal_on_a_stream_is_corrected_on_it() {
    let mut master = Master::start(Reply::AcceptSmall(OFTEN)).await;
    let agent = Running::start(&master.address());
    master.hears(2).await;
    agent.payload.send_replace(json!("x".repeat(60)));
    let before = master.heard().len();
    // What was accepted before goes on being said, whole first and then by its beat.
    let heard = master.hears(before + 4).await;
    assert!(
        ways(&heard).iter().all(|by| *by != By::Request),
        "{:?}",
        ways(&heard)
    );
    assert_eq!(heard.last().unwrap().by, By::Beat);
    assert_growing(&heard);
    agent.stop().await;
}

#[tokio::test]
async fn where_streams_are_never_answered_requests_are_and_the_next_master_is_tried_with_one() {
    let mut deaf = Master::start(Reply::Accept(OFTEN)).await;
    deaf.streams(Streams::Deaf);
    let mut agent = Running::start(&deaf.address());
    let heard = deaf.hears(3).await;
    assert!(
        ways(&heard).iter().all(|by| *by == By::Request),
        "{:?}",
        ways(&heard)
    );
    // What answers there now keeps streams. The slave was turned away meanwhile, and connects anew.
    let address = deaf.address();
    deaf.stop().await;
    agent.tier(0, |tier| tier.trouble.is_some()).await;
    let mut master = Master::start_at(&address, Reply::Accept(OFTEN)).await;
    let heard = master.hears(3).await;
    assert_eq!(ways(&heard[..3]), [By::Stream, By::Beat, By::Beat]);
    agent.stop().await;
    master.stop().await;
}
