//! What an attached slave costs while nothing happens. Measured, not asserted: run it by itself, in release.
//!
//! ```sh
//! cargo build --release && cargo test --release -p kontrol-tests --test e2e idle -- --ignored --nocapture
//! ```

use kontrol_tests::{cluster::Cluster, crew::Crew, heavy};
use std::time::Duration;

const SIZE: u32 = 100;
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for a minute"]
async fn cost_of_attached_slaves() {
    let _permit = heavy().await;
    let ttl = Duration::from_secs(25);
    let mut cluster = Cluster::on("memory:").ttl(ttl).start().await;
    let empty = cluster.masters[0].process().usage();
    let mut crew = Crew::start(&mut cluster, SIZE as usize).await;
    let usages = |crew: &mut Crew| -> Vec<_> {
        let slaves = crew.slaves.iter_mut();
        slaves.map(|slave| slave.process().usage()).collect()
    };
    // What starting up cost is not what being there costs.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, master_before) = (usages(&mut crew), cluster.masters[0].process().usage());
    tokio::time::sleep(MINUTE).await;
    let (after, master_after) = (usages(&mut crew), cluster.masters[0].process().usage());
    let cpu: Duration = before.iter().zip(&after).map(|(b, a)| a.cpu - b.cpu).sum();
    let resident: u64 = after.iter().map(|usage| usage.resident_kib).sum();
    let anonymous: u64 = after.iter().map(|usage| usage.anonymous_kib).sum();
    let each = u64::from(SIZE);
    println!(
        "a slave: {} KiB resident, {} KiB of its own",
        resident / each,
        anonymous / each
    );
    println!("a slave: {:?} CPU a minute", cpu / SIZE);
    println!(
        "the master: {} KiB for each slave, {:?} CPU a minute for all {SIZE}",
        (master_after.resident_kib.saturating_sub(empty.resident_kib)) / each,
        master_after.cpu - master_before.cpu,
    );
}
