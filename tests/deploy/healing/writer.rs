//! A client that writes, as users are told to: it asks Kontrol who the primary is, and takes a write for done once one
//! replica has it as well.

use super::redis::{Redis, Reply};
use anyhow::{Context, Result, ensure};
use kontrol_tests::{SOON, client::Api, pod::from_proto, wait::eventually};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::sleep};

/// How the writer paces itself, so that it leaves the machine to the others.
const PACE: Duration = Duration::from_millis(3);

/// What was written.
#[derive(Debug, Default, Clone)]
pub(super) struct Written {
    /// The numbers from 0 that were sent: each of them may be there or not.
    pub(super) sent: u64,
    /// Those that the primary and one replica have acknowledged, and when.
    pub(super) acknowledged: Vec<(u64, Instant)>,
}

impl Written {
    /// The longest times without an acknowledged write, the longest first.
    pub(super) fn pauses(&self) -> Vec<Duration> {
        let times = self.acknowledged.windows(2);
        let mut pauses: Vec<_> = times.map(|two| two[1].1 - two[0].1).collect();
        pauses.sort_unstable_by(|one, other| other.cmp(one));
        pauses.truncate(3);
        pauses
    }
}

/// The client while it writes.
pub(super) struct Writer {
    written: Arc<Mutex<Written>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// The key of a number.
pub(super) fn key(number: u64) -> String {
    format!("written:{number}")
}

/// The address of the primary, as the callback's state names it.
pub(super) async fn primary(masters: &[Api]) -> Result<String> {
    for master in masters {
        // One that is dead does not answer: the next one does.
        if let Ok(answer) = master.state().await {
            let state = from_proto(answer.state.as_ref());
            let address = state["primary"]["address"].as_str();
            return Ok(address.context("no primary")?.to_owned());
        }
    }
    anyhow::bail!("no master answers")
}

impl Writer {
    /// Starts to write.
    pub(super) fn start(masters: Vec<Api>) -> Self {
        let written = Arc::new(Mutex::new(Written::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, end) = (written.clone(), stop.clone());
        let task = tokio::spawn(async move {
            while !end.load(Ordering::Relaxed) {
                // Whatever goes wrong: it asks again who the primary is.
                write(&masters, &log, &end).await.ok();
                sleep(PACE * 10).await;
            }
        });
        Self {
            written,
            stop,
            task,
        }
    }

    /// What was written so far.
    pub(super) fn written(&self) -> Written {
        self.written.lock().unwrap().clone()
    }

    /// Waits until so many more were acknowledged.
    pub(super) async fn goes_on(&self, more: usize) {
        let before = self.written().acknowledged.len();
        eventually(SOON * 2, "acknowledged writes", async || {
            let count = self.written().acknowledged.len() - before;
            ensure!(count >= more, "{count}");
            Ok(())
        })
        .await;
    }

    /// Ends it.
    pub(super) async fn finish(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.written.lock().unwrap().clone()
    }
}

async fn write(masters: &[Api], written: &Mutex<Written>, stop: &AtomicBool) -> Result<()> {
    let mut redis = Redis::connect(&primary(masters).await?).await?;
    while !stop.load(Ordering::Relaxed) {
        let number = {
            let mut written = written.lock().unwrap();
            written.sent += 1;
            written.sent - 1
        };
        // In one breath: what WAIT tells must be of the primary that took the write.
        let text = number.to_string();
        let commands: [&[&str]; 2] = [&["SET", &key(number), &text], &["WAIT", "1", "1000"]];
        let replies = redis.ask(&commands).await?;
        ensure!(matches!(replies[1], Reply::Number(1..)), "{replies:?}");
        let acknowledged = (number, Instant::now());
        written.lock().unwrap().acknowledged.push(acknowledged);
        sleep(PACE).await;
    }
    Ok(())
}
