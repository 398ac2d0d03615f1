//! Those who look on: at every revision of etcd, at the clock beside it, at the streams of watches, at what masters tell of
//! the roster.

use super::{Shared, world};
use anyhow::{Context, Result, bail};
use etcd_client::{Client, ConnectOptions, EventType, GetOptions, WatchOptions};
use kontrol_proto::v1::{
    WatchRequest, ensemble_service_client::EnsembleServiceClient, watch_response::Event as Message,
};
use kontrol_tests::{
    client::Api,
    script::now,
    storm::record::{Change, Event, Put, Tick, Told, View, Watched},
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

/// How often the clock writes.
const TICK: Duration = Duration::from_millis(100);
/// How long a member or a master may be silent before another is asked.
const SILENCE: Duration = Duration::from_secs(1);

async fn connect(index: usize) -> Result<Client> {
    let options = ConnectOptions::new()
        .with_connect_timeout(SILENCE)
        .with_timeout(SILENCE);
    let members = world::members();
    let member = members[index % members.len()].clone();
    Ok(Client::connect([member], Some(options)).await?)
}

/// Writes, over and over, so that each revision has a time before and one after it.
pub(super) async fn tick(shared: Shared) {
    for member in 0.. {
        let ticks = async {
            let mut client = connect(member).await?;
            loop {
                let sent = now();
                let answer =
                    timeout(SILENCE, client.put("/clock", sent.to_string(), None)).await??;
                let revision = answer.header().context("no header")?.revision();
                let tick = Tick {
                    revision,
                    sent,
                    answered: now(),
                    wall: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64(),
                };
                shared.lock().ticks.push(tick);
                sleep(TICK).await;
            }
        };
        let _: Result<()> = ticks.await;
        sleep(TICK).await;
    }
}

/// Writes down every change of the ensemble's keys, in the order of the revisions, each once.
pub(super) async fn changes(shared: Shared) {
    let mut last = 0;
    for member in 0.. {
        let _: Result<()> = follow(member, &mut last, &shared).await;
        sleep(TICK).await;
    }
}

async fn follow(member: usize, last: &mut i64, shared: &Shared) -> Result<()> {
    let mut client = connect(member).await?;
    // Everything, so that the clock tells that this member goes on.
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(*last + 1);
    let mut stream = client.watch("/", Some(options)).await?;
    loop {
        let message = timeout(SILENCE, stream.message()).await??;
        let message = message.context("the watch ended")?;
        if message.canceled() {
            bail!("{}", message.cancel_reason());
        }
        // All events of a revision come together.
        let behind = *last;
        for event in message.events() {
            let entry = event.kv().context("no entry")?;
            if entry.mod_revision() <= behind {
                continue;
            }
            *last = entry.mod_revision();
            let Some(key) = entry.key_str()?.strip_prefix(world::PREFIX) else {
                continue;
            };
            let value = match event.event_type() {
                EventType::Put => {
                    Some(serde_json::from_slice(entry.value()).unwrap_or(Value::Null))
                }
                EventType::Delete => None,
            };
            let change = Change {
                revision: *last,
                key: key.to_owned(),
                value,
            };
            shared.lock().changes.push(change);
        }
    }
}

/// The present revision of etcd.
pub(super) async fn revision() -> Result<i64> {
    for member in 0..world::MEMBERS {
        let Ok(mut client) = connect(member).await else {
            continue;
        };
        let options = GetOptions::new().with_keys_only();
        if let Ok(answer) = client.get("/clock", Some(options)).await {
            return Ok(answer.header().context("no header")?.revision());
        }
    }
    bail!("no member answers")
}

/// Watches through one master after another; each connection goes on where the last ended.
pub(super) async fn watch(number: usize, shared: Shared) {
    let name = format!("watch {number}");
    shared.lock().watches.push(Watched {
        name: name.clone(),
        told: Vec::new(),
    });
    let mut revision = 0;
    for turn in number.. {
        let master = turn % world::MASTERS;
        let mut tell = |told: Told| {
            let mut history = shared.lock();
            let watch = history.watches.iter_mut().find(|of| of.name == name);
            if let Some(watch) = watch {
                watch.told.push(told);
            }
        };
        // A connection is left after a while even where it works: it is the going on that is looked at.
        let _ = timeout(
            Duration::from_secs(7),
            listen(master, &mut revision, &mut tell),
        )
        .await;
        sleep(TICK).await;
    }
}

async fn listen(master: usize, revision: &mut i64, tell: &mut impl FnMut(Told)) -> Result<()> {
    let channel = Endpoint::from_shared(world::url(master))?
        .connect_timeout(SILENCE)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(SILENCE)
        .keep_alive_while_idle(true)
        .connect()
        .await?;
    let mut client = EnsembleServiceClient::new(channel);
    let request = WatchRequest {
        revision: *revision,
        ..WatchRequest::default()
    };
    let mut stream = client.watch(request).await?.into_inner();
    let mut pods = Vec::new();
    while let Some(message) = stream.message().await? {
        let event = match message.event {
            Some(Message::Snapshot(piece)) => {
                pods.extend(piece.pods);
                if piece.more {
                    continue;
                }
                Event::Snapshot(std::mem::take(&mut pods))
            }
            Some(Message::PodJoined(joined)) => Event::Here(joined.pod.context("no pod")?),
            Some(Message::PodChanged(changed)) => Event::Here(changed.pod.context("no pod")?),
            Some(Message::PodLeft(left)) => {
                let reason = left.reason();
                Event::Left(left.pod.context("no pod")?, reason)
            }
            Some(Message::DigestChanged(changed)) => Event::Digest(changed.digest),
            _ => Event::Other,
        };
        *revision = message.revision;
        tell(Told {
            at: now(),
            master,
            revision: message.revision,
            event,
        });
    }
    Ok(())
}

/// Asks every master for its digest, over and over.
pub(super) async fn views(master: usize, shared: Shared) {
    let api = Api::new(world::url(master));
    loop {
        if let Ok(Ok(view)) = timeout(SILENCE, api.ensemble()).await {
            let view = View {
                master,
                revision: view.revision,
                digest: view.digest,
            };
            shared.lock().views.push(view);
        }
        sleep(TICK * 4).await;
    }
}

/// Puts states, over and over.
pub(super) async fn put(shared: Shared) {
    let apis: Vec<Api> = (0..world::MASTERS)
        .map(|index| Api::new(world::url(index)))
        .collect();
    for number in 0.. {
        if shared.is_over() {
            return;
        }
        let id = format!("put-{number}");
        let api = &apis[number % world::MASTERS];
        if let Ok(Ok(answer)) = timeout(SILENCE * 2, api.put_state(&json!({"id": id}))).await {
            shared.lock().puts.push(Put {
                id,
                revision: answer.revision,
            });
        }
        sleep(Duration::from_millis(2300)).await;
    }
}
