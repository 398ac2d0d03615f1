//! The agent: reports one pod to any number of tiers, and runs the actions that their masters send. It is the same in the
//! slave program, in a master that is a pod as well (mixed mode), and in a master that reports to masters above it (chain).
//!
//! It only reads its inputs: who the pod is and its payload come in as `watch` receivers, so whoever owns them may
//! change them at any time, and a change is sent at once. A receiver whose sender is gone simply never changes.
//!
//! At the end the commands end first; the channels close once that was told; then the pod says goodbye.

use crate::{
    action::{Executor, ExecutorTask, Settings, session::SessionTask},
    identity::Identity,
    keepalive::{Beside, Report, TierTask},
    masters::Tier,
};
use futures::future::join_all;
pub use kontrol_runtime::dial::Credentials;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
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
    /// What is shown to masters, and whom to trust.
    pub credentials: Credentials,
    /// How actions run; without it they are all refused.
    pub actions: Option<Settings>,
}

/// An agent that is ready to run: one incarnation of its pod.
#[derive(Debug)]
pub struct Agent {
    nonce: Arc<str>,
    tiers: Vec<TierTask>,
    sessions: Vec<SessionTask>,
    executor: ExecutorTask,
    status: watch::Receiver<Vec<TierStatus>>,
}

impl Agent {
    /// Draws the nonce of a new incarnation. Nothing is contacted yet.
    pub fn new(config: AgentConfig) -> Self {
        let nonce: Arc<str> = format!("{:016x}", rand::random::<u64>()).into();
        let report = Report {
            identity: config.identity.clone(),
            payload: config.payload,
            nonce: nonce.clone(),
        };
        let unknown = |tier: &Tier| TierStatus {
            tier: tier.to_string(),
            ..TierStatus::default()
        };
        let (sender, status) = watch::channel(config.tiers.iter().map(unknown).collect());
        let (channels, readers): (Vec<_>, Vec<_>) =
            config.tiers.iter().map(|_| watch::channel(None)).unzip();
        let (handle, executor) = Executor::new(config.actions, config.identity, readers);
        let (mut tiers, mut sessions) = (Vec::new(), Vec::new());
        for (index, (tier, channel)) in config.tiers.iter().zip(channels).enumerate() {
            let (answers, answered) = watch::channel(None);
            let (haste, hastened) = watch::channel(Duration::MAX);
            let beside = Beside {
                answers,
                haste: hastened,
            };
            let (report, sender) = (report.clone(), sender.clone());
            tiers.push(TierTask::new(
                tier,
                config.credentials.clone(),
                report,
                sender,
                index,
                beside,
            ));
            sessions.push(SessionTask::new(
                (index, tier.to_string()),
                nonce.clone(),
                answered,
                haste,
                channel,
                handle.clone(),
            ));
        }
        Self {
            nonce,
            tiers,
            sessions,
            executor,
            status,
        }
    }

    /// Nobody says goodbye at the end if this token is cancelled by then: the next incarnation is about to start, and takes
    /// the pod's place as it is.
    #[must_use]
    pub fn without_goodbye_on(mut self, hangup: &CancellationToken) -> Self {
        for tier in &mut self.tiers {
            tier.hangup = hangup.clone();
        }
        self
    }

    /// The incarnation that this agent reports.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// How each tier fares, in the order of the configuration; updated with each keepalive.
    pub fn status(&self) -> watch::Receiver<Vec<TierStatus>> {
        self.status.clone()
    }

    /// Reports until the token is cancelled; returns once every command has ended and `down` was said to every tier:
    /// within two seconds, or three where commands ran.
    pub async fn run(self, token: CancellationToken) {
        let (close, goodbye) = (CancellationToken::new(), CancellationToken::new());
        let commands = async {
            self.executor.run(token.clone()).await;
            close.cancel();
        };
        let sessions = self.sessions.into_iter();
        let sessions = join_all(sessions.map(|task| task.run(close.clone())));
        let sessions = async {
            sessions.await;
            goodbye.cancel();
        };
        let tiers = self.tiers.into_iter();
        let tiers = join_all(tiers.map(|task| task.run(goodbye.clone())));
        tokio::join!(commands, sessions, tiers);
    }
}
