//! The master as a pod: it reports itself to its own tier (mixed mode), to masters above (a chain), or both, by the
//! very agent that `kontrol-slave` runs.

use crate::{
    cluster::{advertise::Advertised, election::Election, roster::Roster},
    config::Config,
};
use kontrol_runtime::{
    host::{Reach, reach},
    supervise::Tasks,
};
use kontrol_slave::{
    agent::{Agent, AgentConfig},
    config::PodConfig,
    identity::Identity,
    masters,
    program::follow_pod,
};
use serde_json::{Value, json};
use std::{net::IpAddr, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The payload for the masters above changes at most this often.
const PACE: Duration = Duration::from_millis(500);

/// The agents that report this master, ready to run. `own`: the URL of it. What they follow is started among the tasks.
pub async fn agents(
    config: &Config,
    own: &str,
    advertised: &watch::Receiver<Advertised>,
    roster: &Roster,
    election: &Election,
    tasks: &mut Tasks,
) -> anyhow::Result<Vec<Agent>> {
    let mut agents = Vec::new();
    let Some(pod) = &config.pod else {
        return Ok(agents);
    };
    let mixed = match &config.mixed {
        Some(None) => {
            Some(masters::parse(own).map_err(|_| anyhow::anyhow!("read the own address {own}"))?)
        }
        Some(given) => given.clone(),
        None => None,
    };
    let tiers = [mixed.as_deref(), config.upstream.as_deref()];
    config.actions.remark(
        &tiers
            .into_iter()
            .flatten()
            .flatten()
            .cloned()
            .collect::<Vec<_>>(),
    );
    if let Some(tiers) = mixed {
        let (identity, payload) = follow_pod(pod, tasks).await?;
        let identity = placed(identity, advertised, |_| true, tasks);
        agents.push(Agent::new(AgentConfig {
            identity,
            payload,
            tiers,
            credentials: config.credentials.clone(),
            actions: Some(config.actions.clone()),
        }));
    }
    if let Some(tiers) = &config.upstream {
        let pod = PodConfig {
            payload: None,
            ..pod.clone()
        };
        let (identity, _) = follow_pod(&pod, tasks).await?;
        // The masters above are elsewhere, unless the way there says otherwise.
        let beyond = |ip: &IpAddr| reach(*ip) != Reach::Host;
        let identity = placed(identity, advertised, beyond, tasks);
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
            credentials: config.credentials.clone(),
            actions: Some(config.actions.clone()),
        }));
    }
    Ok(agents)
}

/// The identity at the address that this master is known by, where none is given and that one will do; as all that goes on.
fn placed(
    mut identity: watch::Receiver<Identity>,
    advertised: &watch::Receiver<Advertised>,
    will_do: impl Fn(&IpAddr) -> bool + Send + 'static,
    tasks: &mut Tasks,
) -> watch::Receiver<Identity> {
    let mut advertised = advertised.clone();
    let place = move |identity: &Identity, advertised: &Advertised| Identity {
        ip: identity.ip.or(advertised.ip.filter(&will_do)),
        ..identity.clone()
    };
    let first = place(
        &identity.borrow_and_update(),
        &advertised.borrow_and_update(),
    );
    let (sender, receiver) = watch::channel(first);
    let token = tasks.token().clone();
    tasks.spawn("this master's place as a pod", async move {
        loop {
            // All arms are cancel safe. A source that is gone never changes.
            tokio::select! {
                () = token.cancelled() => return,
                Ok(()) = identity.changed() => {}
                Ok(()) = advertised.changed() => {}
                else => return token.cancelled().await,
            }
            let now = place(
                &identity.borrow_and_update(),
                &advertised.borrow_and_update(),
            );
            sender.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    receiver
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
