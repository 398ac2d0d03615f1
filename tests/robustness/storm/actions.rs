//! Dispatchers: actions on some slaves and on all, short and long, of which each stream is written down.

use super::{Shared, world};
use crate::chaos::Dice;
use anyhow::{Context, Result};
use futures::StreamExt as _;
use kontrol_proto::v1::{ActionState, DispatchRequest, Selector, Stream, dispatch_response::Event};
use kontrol_tests::{
    SOON,
    action::{shell, span},
    client::Api,
    script::now,
    storm::record::{Acted, History},
    wait::eventually,
};
use std::{fs, path::Path, time::Duration};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

/// The most streams that are read at once.
const AT_ONCE: usize = 12;

/// Where the commands say that they start and end.
pub(super) fn file(dir: &Path) -> std::path::PathBuf {
    dir.join("executions")
}

/// Dispatches over and over.
pub(super) async fn dispatch(seed: u64, slaves: usize, dir: std::path::PathBuf, shared: Shared) {
    let mut dice = Dice(seed);
    let file = file(&dir);
    let mut streams = JoinSet::new();
    while !shared.is_over() {
        let master = dice.roll(world::MASTERS as u64) as usize;
        let lines = dice.roll(40);
        let text: String = (0..lines).map(|line| format!("line {line}\n")).collect();
        let script = format!(
            "say() {{ echo $KONTROL_ACTION $KONTROL_ID $1 >> {}; }}; say start; i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.1; done; say end",
            file.display()
        );
        let selector = match dice.roll(3) {
            0 => Selector {
                roles: vec!["slave".into()],
                ..Selector::default()
            },
            _ => Selector {
                ids: (0..1 + dice.roll(3))
                    .map(|_| format!("s{}", dice.roll(slaves as u64)))
                    .collect(),
                ..Selector::default()
            },
        };
        let request = DispatchRequest {
            timeout: span(Duration::from_secs(12)),
            detach: dice.roll(4) == 0,
            ..shell(selector, &script)
        };
        while streams.len() >= AT_ONCE {
            streams.join_next().await;
        }
        streams.spawn(one(master, request, text, shared.clone()));
        sleep(Duration::from_millis(400 + dice.roll(800))).await;
    }
}

async fn one(master: usize, request: DispatchRequest, text: String, shared: Shared) {
    let mut action = Acted {
        text,
        ..Acted::default()
    };
    // However it ends: what was told until then was told.
    let _ = timeout(Duration::from_secs(60), read(master, request, &mut action)).await;
    if !action.id.is_empty() {
        shared.lock().actions.push(action);
    }
}

async fn read(master: usize, request: DispatchRequest, action: &mut Acted) -> Result<()> {
    let mut client = Api::new(world::url(master)).actions();
    let mut stream = client.dispatch(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        match message.event.context("no event")? {
            Event::Accepted(accepted) => {
                action.id = accepted.action_id;
                action.accepted = now();
                let targets = accepted.targets.into_iter();
                action.targets = targets
                    .map(|target| (name(&target.key, &target.id), target.id))
                    .collect();
            }
            Event::Output(output) => {
                if output.truncated {
                    action.truncated.insert(output.key.clone());
                }
                if output.stream() == Stream::Stdout {
                    action
                        .stdout
                        .entry(output.key)
                        .or_default()
                        .extend(output.data);
                }
            }
            Event::Finished(result) => {
                let key = name(&result.key, &result.id);
                if action.told.insert(key.clone(), result).is_some() {
                    action.twice.push(key);
                }
            }
            Event::Summary(_) => action.summed = true,
            Event::Started(_) => {}
        }
    }
    Ok(())
}

/// What a target is called: where there is no such pod, it has no key.
fn name(key: &str, id: &str) -> String {
    if key.is_empty() { id } else { key }.to_owned()
}

/// Waits until the history says of every action that it is over, and writes down how.
pub(super) async fn results(history: &mut History, dir: &Path) {
    let api = Api::new(world::url(0));
    let looks = history.actions.iter().map(|action| {
        timeout(SOON * 2, async {
            loop {
                if let Ok(record) = api.action(&action.id).await
                    && record.state() == ActionState::Finished
                {
                    return record.results;
                }
                sleep(Duration::from_millis(500)).await;
            }
        })
    });
    let looks: Vec<_> = futures::stream::iter(looks).buffered(64).collect().await;
    for (action, looked) in history.actions.iter_mut().zip(looks) {
        action.recorded = looked.ok();
    }
    // What ends has said so before its end was known.
    eventually(SOON, "executions", async || {
        Ok(fs::read_to_string(file(dir))?)
    })
    .await;
    let text = fs::read_to_string(file(dir)).unwrap_or_default();
    history.executions = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        })
        .collect();
}
