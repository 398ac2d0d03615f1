//! The keepalive loop of one tier: when [`schedule`] says so, send what the pod reports on the tier's [`Link`] (how is `line`'s to choose), move to
//! the next address when that fails, and say goodbye at the end.
//!
//! One loop owns one tier and nothing else, so a tier that is slow or away never delays another. Invariant: `beat`
//! grows with each request sent; at most one keepalive is under way; nothing here waits longer than an interval.
//! Only transitions are logged (attached, lost, away, refused), never single keepalives.
//!
//! What is said is `content`'s to choose, and the address that the pod is known by `known_as`'s. A pod whose
//! address changes is another pod to its masters: the one before says goodbye, beside the first keepalive of the next.

use crate::{
    action::session::Answered,
    identity::Identity,
    masters::{
        Tier,
        link::{Attached, Link},
    },
    payload::to_proto,
};
use futures::future::OptionFuture;
use kontrol_proto::v1::{PingRequest, PingResponse};
use kontrol_runtime::dial::Credentials;
use serde_json::Value;
use std::{
    future::pending,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    join,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

mod content;
mod farewell;
mod known_as;
mod line;
pub mod schedule;
mod setback;

use content::{Content, Contents};
use known_as::KnownAs;
use line::{Line, Saying};
use schedule::Schedule;
pub(crate) use setback::stranger;
use setback::{Setback, ping};

/// How long a keepalive that is under way at the end may take, so that it does not arrive behind the goodbye.
const LAST_KEEPALIVE: Duration = Duration::from_millis(300);

/// How one tier fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TierStatus {
    /// The tier as it was configured.
    pub tier: String,
    /// The endpoint that answered last and did not fail since.
    pub attached: Option<String>,
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The pod's key; empty before the first answer.
    pub key: String,
    /// The pod's place in the tier's roster; absent before the first answer.
    pub seq: Option<u64>,
    /// When a master last answered that the keepalive counts.
    pub last_answer: Option<Instant>,
    /// How often masters want to hear of the pod; absent before the first answer.
    pub interval: Option<Duration>,
    /// How long the pod may be silent; absent before the first answer.
    pub ttl: Option<Duration>,
    /// What is wrong; absent while masters answer.
    pub trouble: Option<String>,
}

/// What a keepalive says: who the pod is and its payload, always the latest.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) identity: watch::Receiver<Identity>,
    pub(crate) payload: watch::Receiver<Value>,
    pub(crate) nonce: Arc<str>,
}

impl Report {
    /// Waits for news. A source that is gone (a fixed identity) has none. Cancel safe.
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.identity.changed() => {}
            Ok(()) = self.payload.changed() => {}
            else => pending().await,
        }
    }

    /// What is to be said; it is no news any more.
    fn latest(&mut self) -> Content {
        Content {
            identity: Arc::new(self.identity.borrow_and_update().clone()),
            payload: Arc::new(self.payload.borrow_and_update().clone()),
        }
    }
}

/// The request that says it of the pod at this address.
fn request(content: &Content, ip: IpAddr, nonce: &str, beat: u64, down: bool) -> PingRequest {
    let identity = content.identity.as_ref();
    PingRequest {
        app: identity.app.clone(),
        id: identity.id.clone(),
        ip: ip.to_string(),
        // It follows from the address; the master tells it.
        key: String::new(),
        role: identity.role.clone(),
        nonce: nonce.to_owned(),
        payload: Some(to_proto(&content.payload)),
        down,
        beat,
        labels: identity.labels.clone().into_iter().collect(),
        annotations: identity.annotations.clone().into_iter().collect(),
        node: identity.node.clone(),
    }
}

/// The ends of what a tier shares with the session beside it.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) answers: watch::Sender<Option<Answered>>,
    pub(crate) haste: watch::Receiver<Duration>,
}

/// The loop of one tier.
#[derive(Debug)]
pub(crate) struct TierTask {
    name: String,
    link: Link,
    line: Line,
    schedule: Schedule,
    report: Report,
    contents: Contents,
    known_as: KnownAs,
    /// The address that was reported last.
    ip: Option<IpAddr>,
    /// An address that is not the pod's any more, and has not been told to go.
    leaving: Option<IpAddr>,
    /// The connection of the last keepalive.
    serial: Option<u64>,
    /// The connection that answered last.
    known_on: Option<u64>,
    /// Of the last request sent; 0 before the first.
    beat: u64,
    /// Where this tier's status is published, and at which place.
    status: watch::Sender<Vec<TierStatus>>,
    index: usize,
    /// The connection that answered last, for the session beside.
    answers: watch::Sender<Option<Answered>>,
    count: u64,
    /// Within what time the session wants the pod to be heard.
    haste: watch::Receiver<Duration>,
    /// The trouble that was logged last, so that it is logged once.
    said: Option<Setback>,
    /// Why what the pod says was refused, as logged last.
    unfit: Option<String>,
    /// Cancelled where the next incarnation is about to start.
    pub(crate) hangup: CancellationToken,
}

impl TierTask {
    pub(crate) fn new(
        tier: &Tier,
        credentials: Credentials,
        mut report: Report,
        status: watch::Sender<Vec<TierStatus>>,
        index: usize,
        beside: Beside,
    ) -> Self {
        Self {
            name: tier.to_string(),
            link: Link::new(tier, credentials),
            line: Line::default(),
            schedule: Schedule::new(Instant::now()),
            contents: Contents::new(report.latest()),
            report,
            known_as: KnownAs::default(),
            ip: None,
            leaving: None,
            serial: None,
            known_on: None,
            beat: 0,
            status,
            index,
            answers: beside.answers,
            count: 0,
            haste: beside.haste,
            said: None,
            unfit: None,
            hangup: CancellationToken::new(),
        }
    }

    /// Sends keepalives until the token is cancelled, then says goodbye.
    pub(crate) async fn run(mut self, token: CancellationToken) {
        loop {
            // Each arm only waits; nothing is lost when another wins.
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                () = self.report.changed() => {
                    self.schedule.changed(Instant::now());
                    continue;
                }
                Ok(()) = self.haste.changed() => {
                    let bound = *self.haste.borrow_and_update();
                    self.schedule.hasten(Instant::now(), bound, rand::random());
                    continue;
                }
                () = sleep_until(self.schedule.due()) => {}
            }
            let mut attempt = pin!(self.attempt());
            tokio::select! {
                biased;
                () = &mut attempt => continue,
                () = token.cancelled() => {}
            }
            // Whether it still arrives makes no difference to the goodbye.
            let _ = timeout(LAST_KEEPALIVE, attempt).await;
            break;
        }
        self.say_goodbye().await;
    }

    /// One keepalive, and what follows from its outcome.
    async fn attempt(&mut self) {
        self.schedule.begin(Instant::now());
        match self.send().await {
            Ok((attached, response)) => self.answered(&attached, response),
            Err(Setback::Refused(reason) | Setback::Unfit(reason)) => self.refused(reason),
            Err(Setback::Stranger(reason)) if self.serial == self.known_on => {
                self.renew(&reason);
            }
            Err(setback @ (Setback::Failed(_) | Setback::Homeless(_) | Setback::Stranger(_))) => {
                self.failed(setback);
            }
        }
    }

    async fn send(&mut self) -> Result<(Attached, PingResponse), Setback> {
        let limit = self.schedule.step_limit();
        let attached = self.link.connect(limit).await?;
        let latest = self.report.latest();
        let (given, master) = (latest.identity.ip, attached.address());
        let ip = self
            .known_as
            .toward(&self.name, given, master, &self.link.known())
            .map_err(Setback::Homeless)?;
        self.contents.offer(latest);
        if self.serial.replace(attached.serial()) != Some(attached.serial()) {
            self.contents.again();
        }
        if let Some(before) = self.ip.replace(ip).filter(|before| *before != ip) {
            tracing::warn!(tier = %self.name, %before, now = %ip, "the pod's address changed: it leaves and joins as another pod");
            self.leaving = Some(before);
        }
        self.leaving = self.leaving.filter(|before| *before != ip);
        let goodbye = self.leaving.map(|before| {
            self.beat += 1;
            let content = self.contents.safest();
            let request = request(content, before, &self.report.nonce, self.beat, true);
            ping(attached.channel(), request, limit)
        });
        let (told, response) = join!(
            OptionFuture::from(goodbye),
            self.say(&attached, ip, Instant::now() + limit)
        );
        if matches!(
            told,
            Some(Ok(_) | Err(Setback::Refused(_) | Setback::Unfit(_)))
        ) {
            self.leaving = None;
        }
        Ok((attached, response?))
    }

    /// Says what is to be said, or what may be said instead, until the deadline: one that is refused is refused at once.
    async fn say(
        &mut self,
        attached: &Attached,
        ip: IpAddr,
        deadline: Instant,
    ) -> Result<PingResponse, Setback> {
        loop {
            let saying = Saying {
                content: self.contents.current(),
                ip,
                nonce: &self.report.nonce,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let said = self.line.say(attached, saying, &mut self.beat, left).await;
            let reason = match said {
                Ok(response) => {
                    self.contents.accepted();
                    return Ok(response);
                }
                Err(Setback::Unfit(reason)) => reason,
                Err(setback) => return Err(setback),
            };
            if !self.contents.fallen_back() {
                self.unfit(&reason);
            }
            if !self.contents.refused() {
                // Of all reasons the first one tells what is wrong with what is to be said.
                return Err(Setback::Unfit(self.unfit.clone().unwrap_or(reason)));
            }
        }
    }

    fn unfit(&mut self, reason: &str) {
        if self.unfit.as_deref() != Some(reason) {
            tracing::warn!(
                tier = %self.name,
                "the keepalive is refused: {reason}; the pod goes on reporting what was accepted last, or the least that it can"
            );
            self.unfit = Some(reason.to_owned());
        }
    }

    fn answered(&mut self, attached: &Attached, response: PingResponse) {
        let now = Instant::now();
        let length = |duration: Option<prost_types::Duration>| {
            duration.and_then(|duration| Duration::try_from(duration).ok())
        };
        let interval = length(response.interval).filter(|interval| !interval.is_zero());
        self.link.settle();
        self.known_on = Some(attached.serial());
        self.schedule.answered(now, interval, rand::random());
        let status = TierStatus {
            tier: self.name.clone(),
            attached: Some(attached.endpoint().to_string()),
            address: Some(attached.address()),
            key: response.key,
            seq: Some(response.seq),
            last_answer: Some(now),
            interval,
            ttl: length(response.ttl),
            trouble: self
                .unfit
                .as_ref()
                .filter(|_| self.contents.fallen_back())
                .map(|reason| format!("the keepalive is refused: {reason}")),
        };
        if !self.contents.fallen_back() && self.unfit.take().is_some() {
            tracing::info!(tier = %self.name, "what the pod says is accepted again");
        }
        let said = self.said.take();
        let moved = self.status.borrow()[self.index].address != status.address;
        if moved || said.is_some() {
            tracing::info!(
                tier = %self.name,
                address = %attached.address(),
                ip = self.ip.map(tracing::field::display),
                key = %status.key,
                seq = response.seq,
                "attached to {}",
                attached.endpoint()
            );
        }
        self.count += 1;
        self.answers.send_replace(Some(Answered {
            attached: attached.clone(),
            key: status.key.clone(),
            count: self.count,
        }));
        self.publish(|place| *place = status);
    }

    fn refused(&mut self, reason: String) {
        self.link.settle();
        self.schedule.refused(Instant::now(), rand::random());
        let trouble = format!("the keepalive is refused: {reason}");
        self.publish(|place| place.trouble = Some(trouble.clone()));
        let told = self.unfit.as_ref() == Some(&reason);
        let setback = Setback::Refused(reason);
        if self.said.as_ref() != Some(&setback) {
            if !told {
                tracing::warn!(tier = %self.name, "{trouble}");
            }
            self.said = Some(setback);
        }
    }

    /// The master let this slave in before: the files may have other contents by now. So the connection is made again, at
    /// once; where that does not help, it is a failure like others.
    fn renew(&mut self, reason: &str) {
        tracing::info!(tier = %self.name, "{reason}; connecting again with what the files hold now");
        self.link.renew();
        self.known_on = None;
        self.schedule.renewed(Instant::now());
    }

    fn failed(&mut self, setback: Setback) {
        let (Setback::Refused(reason)
        | Setback::Stranger(reason)
        | Setback::Unfit(reason)
        | Setback::Homeless(reason)
        | Setback::Failed(reason)) = &setback;
        self.link.leave();
        let exhausted = self.link.exhausted();
        self.schedule
            .failed(Instant::now(), exhausted, rand::random());
        let mut lost = None;
        self.publish(|place| {
            place.trouble = Some(reason.clone());
            place.address = None;
            lost = place.attached.take();
        });
        if let Some(endpoint) = lost {
            tracing::warn!(tier = %self.name, "lost {endpoint}: {reason}; going to the next");
        } else if let Setback::Homeless(_) = setback {
            if self.said.as_ref() != Some(&setback) {
                tracing::warn!(tier = %self.name, "the pod is not reported: {reason}");
                self.said = Some(setback);
            }
        } else if let Setback::Stranger(_) = setback {
            if self.said.as_ref() != Some(&setback) {
                tracing::warn!(tier = %self.name, "the pod is not reported: {reason}");
                self.said = Some(setback);
            }
        } else if exhausted && !matches!(self.said, Some(Setback::Failed(_) | Setback::Stranger(_)))
        {
            tracing::warn!(tier = %self.name, "no master answers: {reason}; trying until one does");
            self.said = Some(setback);
        } else {
            tracing::debug!(tier = %self.name, "{reason}");
        }
    }

    fn publish(&self, change: impl FnOnce(&mut TierStatus)) {
        self.status.send_modify(|all| change(&mut all[self.index]));
    }

    async fn say_goodbye(&mut self) {
        // Nothing was ever sent, so no master knows the pod.
        let Some(ip) = self.ip.filter(|_| self.beat > 0) else {
            return;
        };
        if self.hangup.is_cancelled() {
            tracing::info!(tier = %self.name, "no goodbye: the pod keeps its place for the next start, for as long as it may be silent");
            return;
        }
        let (beat, content) = (&mut self.beat, self.contents.safest());
        let request = || {
            *beat += 1;
            request(content, ip, &self.report.nonce, *beat, true)
        };
        match farewell::say(&mut self.link, request).await {
            Ok(()) => tracing::info!(tier = %self.name, "said goodbye"),
            Err(reason) => {
                tracing::warn!(tier = %self.name, "could not say goodbye: {reason}; the pod leaves when its TTL is over");
            }
        }
    }
}
