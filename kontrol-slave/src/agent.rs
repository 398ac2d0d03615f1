//! The agent: reports one pod to any number of tiers. It is the same in the slave program, in a master that is a pod
//! as well (mixed mode), and in a master that reports to masters above it (chain).
//!
//! It only reads its inputs: who the pod is and its payload come in as `watch` receivers, so whoever owns them may
//! change them at any time, and a change is sent at once. A receiver whose sender is gone simply never changes.

use crate::{
    identity::Identity,
    keepalive::{Report, TierTask},
    masters::Tier,
};
use futures::future::join_all;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::keepalive::TierStatus;

/// What an agent reports, and to whom.
#[derive(Debug)]
pub struct AgentConfig {
    /// Who the pod is.
    pub identity: watch::Receiver<Identity>,
    /// The pod's own data; `""` for none.
    pub payload: watch::Receiver<Value>,
    /// The tiers; each gets every keepalive.
    pub tiers: Vec<Tier>,
}

/// An agent that is ready to run: one incarnation of its pod.
#[derive(Debug)]
pub struct Agent {
    nonce: Arc<str>,
    tasks: Vec<TierTask>,
    status: watch::Receiver<Vec<TierStatus>>,
}

impl Agent {
    /// Draws the nonce of a new incarnation. Nothing is contacted yet.
    pub fn new(config: AgentConfig) -> Self {
        let nonce: Arc<str> = format!("{:016x}", rand::random::<u64>()).into();
        let report = Report {
            identity: config.identity,
            payload: config.payload,
            nonce: nonce.clone(),
        };
        let unknown = |tier: &Tier| TierStatus {
            tier: tier.to_string(),
            ..TierStatus::default()
        };
        let (sender, status) = watch::channel(config.tiers.iter().map(unknown).collect());
        let task = |(index, tier)| TierTask::new(tier, report.clone(), sender.clone(), index);
        Self {
            nonce,
            tasks: config.tiers.iter().enumerate().map(task).collect(),
            status,
        }
    }

    /// The incarnation that this agent reports.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// How each tier fares, in the order of the configuration; updated with each keepalive.
    pub fn status(&self) -> watch::Receiver<Vec<TierStatus>> {
        self.status.clone()
    }

    /// Reports until the token is cancelled; returns once `down` was said to every tier, within two seconds.
    pub async fn run(self, token: CancellationToken) {
        join_all(self.tasks.into_iter().map(|task| task.run(token.clone()))).await;
        // Without tiers there is nothing to do, but ending early would look like a failure.
        token.cancelled().await;
    }
}
