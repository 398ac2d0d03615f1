//! What a hostile peer can do to a master, while pods report to it. No keepalive of the pods may fail, no pod may be removed,
//! memory stays below what the limits of the port come to, and the master lets go of whoever holds on to it.
//!
//! No time is asserted. What was measured is a table: `cargo test -p kontrol-tests --test robustness abuse -- --nocapture`.
//! The abusers, the pods and the master share one machine, so that latencies are worse than those of a master alone.

mod bystanders;
mod flood;
mod frames;
mod large;
mod slow;
mod stage;
mod wire;

use kontrol_tests::whole;
use stage::{Done, Stage};
use std::{net::Ipv4Addr, time::Duration};
use tokio::{io::AsyncWriteExt, task::JoinSet, time::sleep};
use wire::{Wire, attend};

/// After which the master lets go of whoever holds on to it: 30 seconds for what should have been said or taken meanwhile,
/// again as long where it takes its leave first, and what a busy machine takes.
const LETS_GO: Duration = Duration::from_secs(90);

/// One of the addresses of an abuser. None of them is one of the pods'.
fn from(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, 0, u8::try_from(number % 8 + 1).unwrap())
}

/// Says something, and then a piece each second, as long as what this returns is kept.
fn trickle(mut wire: Wire, first: Vec<u8>, piece: Vec<u8>) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut next = &first;
        while wire.write_all(next).await.is_ok() && wire.flush().await.is_ok() {
            sleep(Duration::from_secs(1)).await;
            next = &piece;
        }
        std::future::pending::<()>().await;
    });
    task
}

/// Keeps a connection of HTTP/2 alive, and takes nothing of any answer.
fn lively(mut wire: Wire) -> Box<dyn Send> {
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = attend(&mut wire, |_| false).await;
        std::future::pending::<()>().await;
    });
    Box::new(task)
}

/// What so many connections of one kind may take: one is two records of TLS, the buffers of HTTP, and a task.
const fn connections(count: usize) -> u64 {
    const KIB_EACH: u64 = 48;
    count as u64 * KIB_EACH / 1024
}

/// So many streams: each has a head, a task, and an answer of some words.
const fn streams(count: usize) -> u64 {
    const KIB_EACH: u64 = 12;
    count as u64 * KIB_EACH / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_peer_takes_nothing_from_the_others() {
    let _permit = whole().await;
    let mut stage = Stage::secured().await;
    let nothing = async |_| Done::with(String::new());
    stage.during("nobody", 0, nothing).await;
    // Those that it takes the master longest to let go of come first: it is waited for at the end.
    let refusals = streams(large::REFUSALS) + connections(large::REFUSED);
    stage
        .during("unread refusals", refusals, large::unread_refusals)
        .await;
    let answers = large::UNREAD as u64 * large::UNSENT_MIB;
    stage.during("unread answers", answers, large::unread).await;
    stage
        .during("slow bodies", connections(slow::BODIES), slow::bodies)
        .await;
    stage.during("SETTINGS", 0, flood::settings).await;
    stage.during("PING", 0, flood::pings).await;
    stage
        .during("slow heads", connections(slow::HEADS), slow::heads)
        .await;
    stage
        .during(
            "silence in TLS",
            connections(slow::IN_TLS),
            slow::silent_in_tls,
        )
        .await;
    stage
        .during("silence", connections(slow::SILENT), slow::silent)
        .await;
    stage
        .during("half a handshake", connections(slow::HALF), slow::half_tls)
        .await;
    stage
        .during("a body of 1 GiB", large::BODY_MIB, large::bodies)
        .await;
    stage
        .during("many uploads", large::UPLOADS_MIB, large::uploads)
        .await;
    stage
        .during(
            "unread watches",
            connections(large::WATCHES),
            large::watches,
        )
        .await;
    stage.during("rapid reset", 0, flood::resets).await;
    stage.during("CONTINUATION", 0, flood::continuations).await;
    stage
        .during("answered PING", 0, flood::answered_pings)
        .await;
    stage.during("wrong tokens", 0, flood::wrong_tokens).await;
    stage.lets_go(LETS_GO).await;
    stage.end("over TLS, with tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_peer_takes_nothing_from_the_others_in_clear_text() {
    let _permit = whole().await;
    let mut stage = Stage::clear().await;
    let nothing = async |_| Done::with(String::new());
    stage.during("nobody", 0, nothing).await;
    stage
        .during("idle", connections(slow::IDLE), slow::idle)
        .await;
    stage
        .during("a body of 1 GiB", large::BODY_MIB, large::bodies)
        .await;
    stage.during("rapid reset", 0, flood::resets).await;
    stage.during("CONTINUATION", 0, flood::continuations).await;
    stage.lets_go(LETS_GO).await;
    stage.end("in clear text, without tokens");
}
