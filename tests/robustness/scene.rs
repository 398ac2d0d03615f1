//! The scene of every fault: three masters, thirty pods that report to any of them, a callback that handled them.

use anyhow::ensure;
use kontrol_proto::v1::{GetEnsembleResponse, Pod};
use kontrol_tests::{
    SOON,
    cluster::{Builder, Cluster},
    etcd::Etcd,
    fleet::Fleet,
    pod::from_proto,
    script::Recorder,
    wait::{eventually, throughout},
};
use std::{collections::BTreeMap, time::Duration};

pub(crate) const PODS: u32 = 30;

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) fleet: Fleet,
    pub(crate) recorder: Recorder,
    /// The seqs before the fault.
    pub(crate) seqs: BTreeMap<String, u64>,
    /// The ensemble before the fault.
    pub(crate) before: GetEnsembleResponse,
    runs: usize,
}

impl Scene {
    pub(crate) async fn on(etcd: &Etcd) -> Self {
        Self::with(etcd, |builder| builder).await
    }

    /// The scene with other settings.
    pub(crate) async fn with(etcd: &Etcd, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let recorder = Recorder::python();
        let builder = Cluster::on(&etcd.store()).masters(3).callback(&recorder);
        let cluster = settings(builder).start().await;
        Self::of(cluster, recorder).await
    }

    /// The scene in a tier that was started already.
    pub(crate) async fn of(cluster: Cluster, recorder: Recorder) -> Self {
        let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, PODS);
        let seqs = fleet.joined().await;
        let before = cluster.handled(0, PODS).await;
        let runs = recorder.runs().len();
        Self {
            cluster,
            fleet,
            recorder,
            seqs,
            before,
            runs,
        }
    }

    /// Panics unless all is as before the fault: the same pods with the same seqs, nothing handled twice, and a change
    /// still reaches the callback.
    pub(crate) async fn is_unharmed(&mut self) {
        let leader = self.cluster.leader().await;
        self.fleet.heard_again().await;
        assert_eq!(self.fleet.seqs(), self.seqs);
        self.fleet.nobody_was_lost();
        for index in self.cluster.running() {
            let view = self.cluster.handled(index, PODS).await;
            assert_eq!(view.digest, self.before.digest, "on master {index}");
        }
        // Long enough for a wrong deadline to strike and for a wrong run to start.
        let calm = self.cluster.spec.ttl + self.cluster.spec.damper + Duration::from_secs(1);
        let api = self.cluster.api(leader);
        throughout(calm, "the same roster", async || {
            let view = api.ensemble().await?;
            ensure!(view.digest == self.before.digest, "{view:#?}");
            Ok(())
        })
        .await;
        let runs = self.recorder.runs();
        assert_eq!(
            runs.len(),
            self.runs,
            "no callback ran again: {:#?}",
            runs.last()
        );
        self.still_works().await;
    }

    /// Panics unless a change reaches the callback.
    pub(crate) async fn still_works(&mut self) {
        let leader = self.cluster.leader().await;
        let digest = self.cluster.api(leader).ensemble().await.unwrap().digest;
        self.fleet.change(0, |pod| {
            let payload = format!("after {digest}");
            pod.payload(payload.into())
        });
        let api = self.cluster.api(leader);
        let said = format!("after {digest}");
        eventually(SOON * 2, "handled change", async || {
            let list = api.pods().await?;
            ensure!(list.pods.len() == PODS as usize, "{} pods", list.pods.len());
            let told = |pod: &Pod| from_proto(pod.payload.as_ref()) == said.as_str();
            ensure!(list.pods.iter().any(told), "the change did not arrive");
            let view = api.ensemble().await?;
            ensure!(view.handled_digest == list.digest, "{view:#?}");
            let last = self.recorder.successes().pop();
            let hash = last.map(|run| run.hash).unwrap_or_default();
            ensure!(
                hash == list.digest,
                "the last run saw {hash}, not {}",
                list.digest
            );
            Ok(())
        })
        .await;
        self.fleet.nobody_was_lost();
        self.recorder.check();
    }

    /// The masters other than this one.
    pub(crate) fn others(&self, index: usize) -> Vec<usize> {
        (0..self.cluster.masters.len())
            .filter(|other| *other != index)
            .collect()
    }
}
