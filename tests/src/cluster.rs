//! A master tier: several masters on one store, with quick settings.

use crate::{SOON, client::Api, node::Master, script::Recorder, wait::eventually};
use anyhow::{Context, bail, ensure};
use futures::future::join_all;
use kontrol_proto::v1::GetEnsembleResponse;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tempfile::TempDir;

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// What a tier is made of.
#[derive(Debug, Clone)]
pub struct Builder {
    masters: usize,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    namespace: String,
    app: String,
    /// How long a pod may be silent.
    pub ttl: Duration,
    /// How long the roster must be unchanged before the callback runs.
    pub damper: Duration,
    /// The leader's lease.
    pub fover: Duration,
}

impl Builder {
    /// How many masters.
    pub fn masters(self, masters: usize) -> Self {
        Self { masters, ..self }
    }

    /// The TTL.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// A TTL that no test outlasts, for tests that send few keepalives.
    pub fn patient(self) -> Self {
        self.ttl(Duration::from_secs(60))
    }

    /// The damper.
    pub fn damper(self, damper: Duration) -> Self {
        Self { damper, ..self }
    }

    /// The leader's lease.
    pub fn fover(self, fover: Duration) -> Self {
        Self { fover, ..self }
    }

    /// The callback.
    pub fn callback(self, recorder: &Recorder) -> Self {
        let program = recorder.program().to_str().unwrap().to_owned();
        self.set("callback", &program)
    }

    /// Any other flag of the masters, without its dashes.
    pub fn set(mut self, flag: &str, value: &str) -> Self {
        self.settings.push((flag.into(), value.into()));
        self
    }

    /// A variable in the environment of the masters.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The ensemble's name.
    pub fn ensemble(self, namespace: &str, app: &str) -> Self {
        Self {
            namespace: namespace.into(),
            app: app.into(),
            ..self
        }
    }

    /// Starts the tier and waits until every master is ready.
    pub async fn start(self) -> Cluster {
        let mut cluster = self.build();
        for master in &mut cluster.masters {
            master.start().await;
        }
        cluster.ready().await;
        cluster
    }

    /// The tier, not started yet.
    pub fn build(self) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let mut settings = vec![
            ("ttl".to_owned(), millis(self.ttl)),
            ("damper".to_owned(), millis(self.damper)),
            ("fover".to_owned(), millis(self.fover)),
        ];
        settings.extend(self.settings.clone());
        let mut environment = vec![
            ("NAMESPACE".to_owned(), self.namespace.clone()),
            ("KONTROL_APP".to_owned(), self.app.clone()),
        ];
        environment.extend(self.environment.clone());
        let masters = (0..self.masters)
            .map(|index| {
                let id = format!("master-{index}");
                Master::new(&id, settings.clone(), environment.clone(), dir.path())
            })
            .collect();
        Cluster {
            masters,
            spec: self,
            dir,
        }
    }
}

/// A running tier.
#[derive(Debug)]
pub struct Cluster {
    /// Its masters.
    pub masters: Vec<Master>,
    /// What it was made of.
    pub spec: Builder,
    /// For the files of the test; the masters' logs are here as well.
    pub dir: TempDir,
}

impl Cluster {
    /// One master on this store with quick settings, in a namespace that no other test has.
    pub fn on(store: &str) -> Builder {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        Builder {
            masters: 1,
            settings: vec![("store".into(), store.into())],
            environment: Vec::new(),
            namespace: format!("test-{number}"),
            app: "web".into(),
            ttl: Duration::from_secs(3),
            damper: Duration::from_millis(500),
            fover: Duration::from_secs(2),
        }
    }

    /// The ensemble's prefix in etcd.
    pub fn prefix(&self) -> String {
        format!("/kontrol/{}/{}/", self.spec.namespace, self.spec.app)
    }

    /// A client of one master.
    pub fn api(&self, index: usize) -> Api {
        self.masters[index].api()
    }

    /// The URLs of all masters.
    pub fn urls(&self) -> Vec<String> {
        self.masters.iter().map(Master::url).collect()
    }

    /// Waits until every master that runs is ready.
    pub async fn ready(&mut self) {
        for index in self.running() {
            self.masters[index].ready().await;
        }
    }

    /// The masters that run.
    pub fn running(&mut self) -> Vec<usize> {
        let masters = self.masters.iter_mut().enumerate();
        masters
            .filter_map(|(index, master)| master.running().then_some(index))
            .collect()
    }

    /// Waits until all of these masters name the same leader, one of them, and tells which.
    pub async fn leader_among(&self, indices: &[usize], within: Duration) -> usize {
        eventually(within, "leader that all masters agree on", async || {
            let views = join_all(indices.iter().map(|&index| {
                let api = self.api(index);
                async move { api.ensemble().await }
            }))
            .await;
            let mut leaders = Vec::new();
            for view in views {
                leaders.push(view?.leader.context("no leader")?.id);
            }
            leaders.dedup();
            let [leader] = &leaders[..] else {
                bail!("several leaders: {leaders:?}")
            };
            let index = indices
                .iter()
                .find(|index| self.masters[**index].id() == leader);
            Ok(
                *index
                    .with_context(|| format!("{leader} leads, which is not among those asked"))?,
            )
        })
        .await
    }

    /// Waits until all masters that run name the same leader, and tells which.
    pub async fn leader(&mut self) -> usize {
        let running = self.running();
        self.leader_among(&running, SOON).await
    }

    /// A running master that does not lead.
    pub async fn follower(&mut self) -> usize {
        let leader = self.leader().await;
        let mut running = self.running().into_iter();
        running.find(|index| *index != leader).unwrap()
    }

    /// Waits until a view of the ensemble from a master is as the test wants it.
    pub async fn ensemble(
        &self,
        index: usize,
        what: &str,
        mut wanted: impl FnMut(&GetEnsembleResponse) -> bool,
    ) -> GetEnsembleResponse {
        let api = self.api(index);
        eventually(SOON * 2, what, async || {
            let view = api.ensemble().await?;
            ensure!(wanted(&view), "{view:#?}");
            Ok(view)
        })
        .await
    }

    /// Waits until the callback handled the roster that a master tells, and that roster has so many pods.
    pub async fn handled(&self, index: usize, pods: u32) -> GetEnsembleResponse {
        let what = format!("handled roster of {pods} pods");
        self.ensemble(index, &what, |view| {
            view.pod_count == pods && view.handled_digest == view.digest
        })
        .await
    }

    /// Starts a master again that was stopped or killed, and waits until it is ready.
    pub async fn restart(&mut self, index: usize) {
        self.masters[index].launch();
        self.masters[index].ready().await;
    }
}
