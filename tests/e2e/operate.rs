//! The operator's hand, over gRPC and over HTTP, of a master that leads and of one that doesn't.

mod evict;
mod hold;
mod preview;
mod run;
mod safeguard;

use anyhow::ensure;
use kontrol_proto::v1::{GetEnsembleResponse, WatchResponse};
use kontrol_tests::{
    client::Api,
    cluster::Cluster,
    etcd::Etcd,
    pod::PodSpec,
    script::{Recorder, Run},
    wait::throughout,
};
use prost_types::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// A time of the wall clock in seconds.
fn seconds(time: Option<Timestamp>) -> f64 {
    let time = time.expect("a time");
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

/// A master on memory, of which nobody expires, with a callback that notes its runs.
async fn alone() -> (Recorder, Cluster) {
    let recorder = Recorder::python();
    let tier = Cluster::on("memory:").patient().callback(&recorder);
    let cluster = tier.start().await;
    (recorder, cluster)
}

/// The same with two masters on etcd, and with another damper where that is said; nothing where there is no etcd.
async fn pair(damper: Option<Duration>) -> Option<(Etcd, Recorder, Cluster)> {
    let etcd = Etcd::start().await?;
    let recorder = Recorder::python();
    let tier = Cluster::on(&etcd.store()).masters(2).patient();
    let damper = damper.unwrap_or(tier.damper);
    let tier = tier.damper(damper).callback(&recorder);
    let cluster = tier.start().await;
    Some((etcd, recorder, cluster))
}

/// Panics when the callback starts within this time.
async fn nothing_runs(recorder: &Recorder, time: Duration) {
    let runs = recorder.runs().len();
    throughout(time, "no run", async || {
        let now = recorder.runs();
        ensure!(now.len() == runs, "{:#?}", now.last());
        Ok(())
    })
    .await;
}

/// Lets pods of these numbers join.
async fn join(api: &Api, numbers: std::ops::Range<u32>) {
    for number in numbers {
        api.ping(&PodSpec::number(number)).await.unwrap();
    }
}

/// Waits until so many pods are handled, and lets the damper pass once more; the runs since there were so many.
async fn runs_since(
    cluster: &Cluster,
    recorder: &Recorder,
    runs: usize,
    pods: u32,
) -> (GetEnsembleResponse, Vec<Run>) {
    let view = cluster.handled(0, pods).await;
    nothing_runs(recorder, cluster.spec.damper * 3).await;
    (view, recorder.runs().split_off(runs))
}

/// Posts to an operator's route.
async fn post(api: &Api, route: &str, body: &Value) -> Value {
    api.http("POST", route, Some(body)).await.ok()
}

/// What a watch told of something, each time that it did.
fn told<T>(
    seen: &[(tokio::time::Instant, WatchResponse)],
    pick: impl Fn(&WatchResponse) -> Option<T>,
) -> Vec<T> {
    seen.iter()
        .filter_map(|(_, message)| pick(message))
        .collect()
}
