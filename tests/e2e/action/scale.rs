//! What ten thousand attached slaves cost, and how long they take. Measured, not asserted: run it by itself, in release.
//!
//! ```sh
//! cargo build --release && cargo test --release -p kontrol-tests --test e2e scale -- --ignored --nocapture
//! ```
//!
//! The slaves are agents in this process, each with a connection of its own. They refuse every action, so that it is the
//! masters that are measured, and not the start of ten thousand commands on one machine.

use anyhow::ensure;
use kontrol_proto::v1::Outcome;
use kontrol_slave::{
    agent::{Agent, AgentConfig, Credentials},
    identity::Identity,
    masters,
};
use kontrol_tests::{
    action::{all, argv},
    cluster::Cluster,
    crew,
    etcd::Etcd,
    heavy,
    pod::PodSpec,
    wait::eventually,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const SIZE: usize = 10_000;
/// How many start in a second.
const RATE: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(120);
const MINUTE: Duration = Duration::from_secs(60);

async fn agent(number: u32, masters: Arc<str>, token: CancellationToken) {
    let PodSpec {
        app,
        id,
        ip,
        role,
        labels,
        ..
    } = PodSpec::number(number);
    let (_identity, identity) = watch::channel(Identity {
        app,
        id,
        ip: ip.parse().ok(),
        role,
        node: String::new(),
        labels,
        annotations: Default::default(),
    });
    let (_payload, payload) = watch::channel(json!(""));
    let agent = Agent::new(AgentConfig {
        identity,
        payload,
        tiers: masters::parse(&masters).unwrap(),
        credentials: Credentials::none(),
        actions: None,
    });
    agent.run(token).await;
}

/// Waits until so many slaves are attached to the masters that run.
async fn attached(cluster: &mut Cluster) {
    let running = cluster.running();
    let urls: Vec<String> = running
        .iter()
        .map(|index| cluster.masters[*index].url())
        .collect();
    eventually(PATIENCE, "attached slaves", async || {
        let mut sum = 0;
        for url in &urls {
            sum += crew::attached_to(url).await?;
        }
        ensure!(sum == SIZE, "{sum} are");
        Ok(())
    })
    .await;
}

/// Sends every slave an action from this master, and tells how long that took.
async fn fan_out(cluster: &Cluster, index: usize) {
    let start = Instant::now();
    let dispatch = cluster.api(index).dispatch(argv(all(), &["true"])).await;
    let told = dispatch.unwrap().finish(PATIENCE).await;
    assert_eq!(told.count(Outcome::Refused), SIZE);
    println!(
        "an action for {SIZE} from master {index}: {:?}",
        start.elapsed()
    );
}

fn tell_usage(cluster: &mut Cluster) -> Vec<Duration> {
    let running = cluster.running();
    let usages = running.iter().map(|index| {
        let usage = cluster.masters[*index].process().usage();
        println!("master {index}: {} MiB", usage.resident_kib / 1024);
        usage.cpu
    });
    usages.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for minutes"]
async fn cost_of_ten_thousand_slaves() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .ttl(Duration::from_secs(25))
        .start()
        .await;
    tell_usage(&mut cluster);
    let addresses: Vec<String> = cluster.masters.iter().map(|one| one.address()).collect();
    let masters: Arc<str> = addresses.join("|").into();
    let (token, mut agents) = (CancellationToken::new(), JoinSet::new());
    let start = Instant::now();
    for number in 0..u32::try_from(SIZE).unwrap() {
        agents.spawn(agent(number, masters.clone(), token.clone()));
        sleep(Duration::from_secs(1) / u32::try_from(RATE).unwrap()).await;
    }
    attached(&mut cluster).await;
    println!("{SIZE} attached after {:?}", start.elapsed());
    for index in 0..3 {
        fan_out(&cluster, index).await;
    }
    let before = tell_usage(&mut cluster);
    sleep(MINUTE).await;
    for (index, (before, after)) in before.iter().zip(tell_usage(&mut cluster)).enumerate() {
        println!("master {index}: {:?} CPU a minute", after - *before);
    }
    let follower = cluster.follower().await;
    let start = Instant::now();
    cluster.masters[follower].kill();
    attached(&mut cluster).await;
    println!(
        "a master was killed: all attached again after {:?}",
        start.elapsed()
    );
    sleep(Duration::from_secs(5)).await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.api(leader).pods().await.unwrap().pods.len(), SIZE);
    fan_out(&cluster, leader).await;
    tell_usage(&mut cluster);
    token.cancel();
    agents.join_all().await;
}
