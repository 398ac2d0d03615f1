//! The slave program: settings in, tasks started and supervised, exit code out.
//!
//! One thread does everything. What may block (names, files) runs on threads of the runtime that come and go, and that
//! never hold up the end.

use crate::{
    agent::{Agent, AgentConfig, TierStatus},
    config::{Config, PodConfig},
    identity::{Identity, podinfo::PodinfoTask},
    payload,
};
use kontrol_runtime::{
    process::reaper,
    service,
    supervise::{BoxError, Failure, Tasks, signals_or_hangup},
};
use serde_json::Value;
use std::{future::pending, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long the tasks may take to stop: for the agent to end its commands, and to say goodbye.
const GRACE: Duration = Duration::from_secs(4);

/// Runs the slave until a signal or a failure stops it.
pub fn run(config: Config) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let token = CancellationToken::new();
        let hangup = CancellationToken::new();
        let signals = signals_or_hangup(token.clone(), hangup.clone())?;
        tokio::select! {
            never = signals => match never {},
            result = work(config, token, hangup) => Ok(result?),
        }
    });
    // A name server or file system that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn work(
    config: Config,
    token: CancellationToken,
    hangup: CancellationToken,
) -> Result<(), Failure> {
    let mut tasks = Tasks::new(token.clone());
    // A file that does not answer must not hold up the end.
    let following = follow_pod(&config.pod, &mut tasks);
    let Some(followed) = token.run_until_cancelled(following).await else {
        return tasks.run(GRACE).await;
    };
    let (identity, payload) = followed?;
    config.actions.remark(&config.tiers);
    if let Some(line) = config.credentials.remark() {
        tracing::warn!("{line}");
    }
    let agent = Agent::new(AgentConfig {
        identity,
        payload,
        tiers: config.tiers,
        credentials: config.credentials,
        actions: Some(config.actions),
    })
    .without_goodbye_on(&hangup);
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, nonce = agent.nonce(), "kontrol-slave started");
    // What a guard leaves behind that is killed at the end is taken in as well.
    let last = CancellationToken::new();
    tasks.spawn("reaper", reaper::run(last.clone()));
    tasks.spawn("service manager's watchdog", service::watch(token.clone()));
    tasks.spawn(
        "service manager's status",
        tell_status(agent.status(), token.clone()),
    );
    service::ready("no master has answered yet");
    tasks.spawn("agent", async move {
        let _then = last.drop_guard();
        agent.run(token).await;
    });
    tasks.run(GRACE).await
}

/// Tells the service manager how the tiers fare.
async fn tell_status(mut tiers: watch::Receiver<Vec<TierStatus>>, token: CancellationToken) {
    let mut told = String::new();
    let follow = async {
        loop {
            let all = tiers
                .borrow_and_update()
                .iter()
                .map(in_words)
                .collect::<Vec<_>>();
            let now = all.join("; ");
            if now != told {
                service::status(&now);
                told = now;
            }
            if tiers.changed().await.is_err() {
                return pending().await;
            }
        }
    };
    let _: Option<()> = token.run_until_cancelled(follow).await;
}

fn in_words(tier: &TierStatus) -> String {
    match (&tier.attached, tier.seq, &tier.trouble) {
        (Some(master), Some(seq), None) => format!("attached to {master}, seq {seq}"),
        (_, _, Some(trouble)) => format!("{}: {trouble}", tier.tier),
        (_, _, None) => format!("{}: no master has answered yet", tier.tier),
    }
}

/// Starts what follows a pod's settings: its identity and its payload, each the latest.
pub async fn follow_pod(
    pod: &PodConfig,
    tasks: &mut Tasks,
) -> Result<(watch::Receiver<Identity>, watch::Receiver<Value>), Failure> {
    let token = tasks.token().clone();
    let identity = pod
        .given
        .identity(&pod.found, &pod.host)
        .map_err(|mistakes| Failure::Failed {
            name: "identity".into(),
            source: mistakes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
                .into(),
        })?;
    let identity = match &pod.podinfo {
        Some(folder) => {
            let (identity, task) =
                PodinfoTask::new(folder, pod.given.clone(), pod.host.clone(), identity);
            tasks.spawn("podinfo", task.run(token.clone()));
            identity
        }
        None => watch::channel(identity).1,
    };
    let payload = match &pod.payload {
        Some(path) => {
            let (payload, task) = payload::open(path.clone()).await;
            tasks.spawn("payload", task.run(token));
            payload
        }
        None => watch::channel(Value::String(String::new())).1,
    };
    Ok((identity, payload))
}
