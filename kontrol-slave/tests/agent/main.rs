//! The agent and the program against scripted masters: real gRPC servers on loopback that do as they are told.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod action;
mod embed;
mod master;
mod program;
mod stream;
mod tls;

use kontrol_runtime::dial::Credentials;
use kontrol_slave::{
    action::Settings,
    agent::{Agent, AgentConfig, TierStatus},
    identity::{Identity, Labels},
    masters,
    payload::from_proto,
};
use master::{Master, Reply, SOON};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// An interval at which tests see several keepalives.
const SHORT: Duration = Duration::from_millis(400);
/// An interval that never ends within a test.
const LONG: Duration = Duration::from_secs(3600);

/// An agent at work.
struct Running {
    identity: watch::Sender<Identity>,
    payload: watch::Sender<Value>,
    status: watch::Receiver<Vec<TierStatus>>,
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(masters: &str) -> Self {
        Self::start_with(masters, None)
    }

    fn start_with(masters: &str, actions: Option<Settings>) -> Self {
        Self::start_as(masters, Credentials::none(), actions)
    }

    fn start_as(masters: &str, credentials: Credentials, actions: Option<Settings>) -> Self {
        let (identity, identity_receiver) = watch::channel(Identity {
            app: "web".into(),
            id: "web-1".into(),
            ip: Some([127, 0, 0, 1].into()),
            role: "front".into(),
            labels: Labels::from([("app".into(), "web".into())]),
            annotations: Labels::new(),
            node: "n1".into(),
        });
        let (payload, payload_receiver) = watch::channel(json!(""));
        let agent = Agent::new(AgentConfig {
            identity: identity_receiver,
            payload: payload_receiver,
            tiers: masters::parse(masters).unwrap(),
            credentials,
            actions,
        });
        assert_eq!(agent.nonce().len(), 16);
        let (status, token) = (agent.status(), CancellationToken::new());
        let task = tokio::spawn(agent.run(token.clone()));
        Self {
            identity,
            payload,
            status,
            token,
            task,
        }
    }

    /// Waits until a tier's status is as wanted.
    async fn tier(&mut self, index: usize, wanted: impl Fn(&TierStatus) -> bool) -> TierStatus {
        let found = timeout(SOON, self.status.wait_for(|all| wanted(&all[index]))).await;
        found.expect("the status is reached").unwrap()[index].clone()
    }

    /// Stops it; returns how long that took.
    async fn stop(self) -> Duration {
        let start = Instant::now();
        self.token.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap();
        start.elapsed()
    }
}

/// An address that takes connections and never says a word.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Both masters of a tier, the one that the agent is attached to first.
async fn attached_first(agent: &mut Running, one: Master, two: Master) -> (Master, Master) {
    let status = agent.tier(0, |status| status.attached.is_some()).await;
    if status.attached.as_deref() == Some(one.address().as_str()) {
        (one, two)
    } else {
        (two, one)
    }
}

#[tokio::test]
async fn keepalives_are_paced_by_the_master_and_the_beat_grows() {
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let mut agent = Running::start(&master.address());
    let heard = master.hears(4).await;
    let beats: Vec<u64> = heard.iter().map(|ping| ping.request.beat).collect();
    assert_eq!(beats[0], 1);
    assert!(beats.is_sorted_by(|a, b| a < b), "{beats:?}");
    assert!(
        heard
            .iter()
            .all(|ping| ping.request.nonce == heard[0].request.nonce)
    );
    // Never faster than the interval less the jitter; half of that leaves room for a late first arrival.
    assert!(heard[3].at - heard[0].at > SHORT * 3 / 2);
    let first = &heard[0].request;
    assert_eq!(
        (first.app.as_str(), first.id.as_str(), first.ip.as_str()),
        ("web", "web-1", "127.0.0.1")
    );
    assert_eq!((first.role.as_str(), first.node.as_str()), ("front", "n1"));
    assert_eq!(first.labels["app"], "web");
    let status = agent.tier(0, |status| status.last_answer.is_some()).await;
    assert_eq!(status.attached, Some(master.address()));
    assert_eq!((status.key.as_str(), status.seq), ("2kce4N", Some(7)));
    assert_eq!((status.interval, status.trouble), (Some(SHORT), None));
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_change_is_sent_at_once() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    let agent = Running::start(&master.address());
    master.hears(1).await;
    agent.payload.send_replace(json!({"load": 1}));
    let heard = master.hears(2).await;
    let payload = heard[1].request.payload.clone().unwrap();
    assert_eq!(
        kontrol_slave::payload::from_proto(payload),
        Ok(json!({"load": 1}))
    );
    agent
        .identity
        .send_modify(|identity| identity.role = "back".into());
    let heard = master.hears(3).await;
    assert_eq!(heard[2].request.role, "back");
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn the_other_endpoint_takes_over_when_one_dies() {
    let one = Master::start(Reply::Accept(SHORT)).await;
    let two = Master::start(Reply::Accept(SHORT)).await;
    let mut agent = Running::start(&format!("{}|{}", one.address(), two.address()));
    let (used, mut spare) = attached_first(&mut agent, one, two).await;
    assert_eq!(spare.heard().len(), 0, "one endpoint is in use at a time");
    let last = used.stop().await.last().unwrap().request.beat;
    let heard = spare.hears(2).await;
    assert!(heard[0].request.beat > last);
    let address = spare.address();
    agent
        .tier(0, |status| status.attached.as_ref() == Some(&address))
        .await;
    agent.stop().await;
    assert!(spare.stop().await.last().unwrap().request.down);
}

#[tokio::test]
async fn a_master_that_is_unavailable_is_left_at_once() {
    let one = Master::start(Reply::Accept(LONG)).await;
    let two = Master::start(Reply::Accept(LONG)).await;
    let mut agent = Running::start(&format!("{}|{}", one.address(), two.address()));
    let (used, mut spare) = attached_first(&mut agent, one, two).await;
    used.now(Reply::Refuse(Status::unavailable("no leader")));
    // The interval is an hour, so only an immediate move brings this there.
    agent.payload.send_replace(json!(1));
    spare.hears(1).await;
    let address = spare.address();
    agent
        .tier(0, |status| status.attached.as_ref() == Some(&address))
        .await;
    agent.stop().await;
    used.stop().await;
    spare.stop().await;
}

#[tokio::test]
async fn a_silent_address_is_left_in_time() {
    let (_listener, address) = silent().await;
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let mut agent = Running::start(&format!("{address}|{}", master.address()));
    master.hears(2).await;
    let good = master.address();
    agent
        .tier(0, |status| status.attached.as_ref() == Some(&good))
        .await;
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_tier_that_is_away_does_not_delay_another() {
    let (_listener, address) = silent().await;
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let mut agent = Running::start(&format!("{address},{}", master.address()));
    master.hears(4).await;
    let away = agent.tier(0, |status| status.trouble.is_some()).await;
    assert_eq!((away.attached, away.seq), (None, None));
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn down_is_said_to_every_tier_within_two_seconds_though_one_is_silent() {
    let mut good = Master::start(Reply::Accept(LONG)).await;
    let mut mute = Master::start(Reply::Accept(LONG)).await;
    let agent = Running::start(&format!("{},{}", mute.address(), good.address()));
    good.hears(1).await;
    mute.hears(1).await;
    mute.now(Reply::Hang);
    let took = agent.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let heard = good.stop().await;
    let last = &heard.last().unwrap().request;
    assert!(last.down && last.beat == 2);
    mute.stop().await;
}

#[tokio::test]
async fn down_goes_to_the_next_endpoint_when_the_one_in_use_is_silent() {
    let one = Master::start(Reply::Accept(LONG)).await;
    let two = Master::start(Reply::Accept(LONG)).await;
    let mut agent = Running::start(&format!("{}|{}", one.address(), two.address()));
    let (used, spare) = attached_first(&mut agent, one, two).await;
    used.now(Reply::Hang);
    agent.stop().await;
    let heard = spare.stop().await;
    assert!(heard.last().unwrap().request.down);
    used.stop().await;
}

#[tokio::test]
async fn a_master_that_restarts_is_attached_again_by_the_same_incarnation() {
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let address = master.address();
    let mut agent = Running::start(&address);
    let nonce = master.hears(1).await[0].request.nonce.clone();
    agent.tier(0, |status| status.attached.is_some()).await;
    let last = master.stop().await.last().unwrap().request.beat;
    agent.tier(0, |status| status.attached.is_none()).await;
    let mut master = Master::start_at(&address, Reply::Accept(SHORT)).await;
    let heard = master.hears(2).await;
    assert!(heard[0].request.beat > last);
    assert_eq!(heard[0].request.nonce, nonce);
    agent.tier(0, |status| status.attached.is_some()).await;
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_keepalive_that_is_refused_is_corrected_by_a_change() {
    let refusal = Status::new(Code::InvalidArgument, "payload nests too deep");
    let master = Master::start(Reply::Refuse(refusal)).await;
    let mut agent = Running::start(&master.address());
    let status = agent.tier(0, |status| status.trouble.is_some()).await;
    assert_eq!(
        status.trouble.as_deref(),
        Some("the keepalive is refused: payload nests too deep")
    );
    master.now(Reply::Accept(LONG));
    agent.payload.send_replace(json!(2));
    let status = agent.tier(0, |status| status.trouble.is_none()).await;
    assert_eq!(status.attached, Some(master.address()));
    assert!(!master.heard().is_empty());
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_payload_that_is_refused_never_costs_the_pod_its_life() {
    let mut master = Master::start(Reply::Accept(SHORT)).await;
    let mut agent = Running::start(&master.address());
    agent.payload.send_replace(json!({"good": 1}));
    agent.tier(0, |status| status.last_answer.is_some()).await;
    master.now(Reply::AcceptSmall(SHORT));
    agent.payload.send_replace(json!("x".repeat(100)));
    let status = agent.tier(0, |status| status.trouble.is_some()).await;
    assert_eq!(
        status.trouble.as_deref(),
        Some("the keepalive is refused: payload is too large")
    );
    assert!(status.attached.is_some(), "the pod goes on being heard");
    let count = master.heard().len();
    let heard = master.hears(count + 3).await;
    for ping in &heard[count..] {
        let payload = from_proto(ping.request.payload.clone().unwrap());
        assert_eq!(payload, Ok(json!({"good": 1})), "the last good one is said");
    }
    // The labels change meanwhile: they are said, with the payload that is good.
    agent
        .identity
        .send_modify(|identity| identity.role = "back".into());
    let heard = master.hears(heard.len() + 2).await;
    let last = &heard.last().unwrap().request;
    assert_eq!(last.role, "back");
    assert_eq!(
        from_proto(last.payload.clone().unwrap()),
        Ok(json!({"good": 1}))
    );
    agent.payload.send_replace(json!(3));
    agent.tier(0, |status| status.trouble.is_none()).await;
    agent.payload.send_replace(json!("x".repeat(101)));
    agent.tier(0, |status| status.trouble.is_some()).await;
    agent.stop().await;
    let heard = master.stop().await;
    let last = &heard.last().unwrap().request;
    assert!(last.down);
    assert_eq!(
        from_proto(last.payload.clone().unwrap()),
        Ok(json!(3)),
        "a goodbye is not refused"
    );
}

#[tokio::test]
async fn a_pod_whose_address_changes_leaves_and_joins_as_another() {
    let mut master = Master::start(Reply::Accept(LONG)).await;
    let mut agent = Running::start_with(&master.address(), Some(action::config()));
    let first = master.channel().await;
    assert_eq!(first.hello.key, "2kce4N");
    agent.tier(0, |status| status.attached.is_some()).await;
    agent
        .identity
        .send_modify(|identity| identity.ip = Some([127, 0, 0, 2].into()));
    let heard = master.hears(3).await;
    let said: std::collections::BTreeSet<_> = heard[1..]
        .iter()
        .map(|ping| (ping.request.ip.as_str(), ping.request.down))
        .collect();
    assert_eq!(said, [("127.0.0.1", true), ("127.0.0.2", false)].into());
    // The channel for actions is the new pod's as well.
    assert_eq!(master.channel().await.hello.key, "2kce4O");
    agent.stop().await;
    let heard = master.stop().await;
    let last = &heard.last().unwrap().request;
    assert_eq!((last.ip.as_str(), last.down), ("127.0.0.2", true));
}
