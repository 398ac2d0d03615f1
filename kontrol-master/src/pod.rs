//! The master as a pod: it reports itself to its own tier (mixed mode), to masters above (a chain), or both, by the
//! very agent that `kontrol-slave` runs.

use crate::{config::Config, election::Election, roster::Roster, store::StoreUrl};
use anyhow::Context as _;
use kontrol_slave::{
    agent::{Agent, AgentConfig},
    config::PodConfig,
    identity::route_to,
    masters::{self, Tier},
    program::follow_pod,
    supervise::Tasks,
};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The payload for the masters above changes at most this often.
const PACE: Duration = Duration::from_millis(500);

/// The agents that report this master, ready to run. What they follow is started among the tasks.
pub async fn agents(
    config: &Config,
    own: SocketAddr,
    advertise: &str,
    roster: &Roster,
    election: &Election,
    tasks: &mut Tasks,
) -> anyhow::Result<Vec<Agent>> {
    let mut agents = Vec::new();
    let Some(pod) = &config.pod else {
        return Ok(agents);
    };
    config.actions.remark();
    if let Some(given) = &config.mixed {
        let tiers = match given {
            Some(tiers) => tiers.clone(),
            None => masters::parse(&own.to_string())
                .map_err(|_| anyhow::anyhow!("read the own address {own}"))?,
        };
        let ip = address(pod, advertise, &tiers).await?;
        let (identity, payload) = follow_pod(pod, ip, tasks).await?;
        agents.push(Agent::new(AgentConfig {
            identity,
            payload,
            tiers,
            actions: Some(config.actions.clone()),
        }));
    }
    if let Some(tiers) = &config.upstream {
        let ip = address(pod, advertise, tiers).await?;
        let pod = PodConfig {
            payload: None,
            ..pod.clone()
        };
        let (identity, _) = follow_pod(&pod, ip, tasks).await?;
        let (sender, payload) = watch::channel(summary(roster, election));
        let following = follow(
            roster.clone(),
            election.clone(),
            sender,
            tasks.token().clone(),
        );
        tasks.spawn("the payload for the masters above", following);
        agents.push(Agent::new(AgentConfig {
            identity,
            payload,
            tiers: tiers.clone(),
            actions: Some(config.actions.clone()),
        }));
    }
    Ok(agents)
}

/// The pod's own address: as given, as advertised, or the one that leads to its masters.
async fn address(pod: &PodConfig, advertise: &str, tiers: &[Tier]) -> anyhow::Result<IpAddr> {
    let advertised = advertise.parse::<SocketAddr>().map(|address| address.ip());
    if let Some(ip) = pod.given.ip.or(advertised.ok()) {
        return Ok(ip);
    }
    let tier = tiers.first().context("there is no master to report to")?;
    route_to(tier).await.with_context(|| {
        format!("can't tell this pod's own address on the way to {tier}; give it with --ip")
    })
}

/// The address of this host on the way to its store, for a master that listens on every address.
pub async fn outward_address(config: &Config) -> Option<IpAddr> {
    let StoreUrl::Etcd(endpoints) = &config.store else {
        return None;
    };
    let tiers = masters::parse(&endpoints.join("|")).ok()?;
    route_to(tiers.first()?).await.ok()
}

/// What the masters above are told: enough to watch the monitor.
fn summary(roster: &Roster, election: &Election) -> Value {
    let view = roster.view();
    json!({
        "digest": view.digest().to_string(),
        "pods": view.len(),
        "leader": election.leads().is_some(),
    })
}

async fn follow(
    roster: Roster,
    election: Election,
    sender: watch::Sender<Value>,
    token: CancellationToken,
) {
    let mut changes = roster.changes();
    let mut lead = election.changes();
    loop {
        // All arms are cancel safe.
        tokio::select! {
            () = token.cancelled() => return,
            more = changes.next() => if !more { return },
            more = lead.changed() => if more.is_err() { return },
        }
        let now = summary(&roster, &election);
        sender.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        token.run_until_cancelled(sleep(PACE)).await;
    }
}
