//! The signals that ask a command to end: SIGINT (Ctrl-C) and SIGTERM.

use std::{future::pending, io, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};

/// How long a command may take to heed a signal.
const HEED: Duration = Duration::from_secs(1);

/// The exit code when the user asked for an end.
pub const INTERRUPTED: u8 = 130;

/// Waits for signals. Until it does so for the first time, they end the process by themselves.
#[derive(Debug, Default)]
pub(super) struct Signals(Option<[Signal; 2]>);

impl Signals {
    /// Waits for the next signal. Cancel safe: none is missed between two calls.
    pub(super) async fn next(&mut self) {
        if self.0.is_none() {
            self.0 = listen().ok();
        }
        match &mut self.0 {
            Some([interrupt, terminate]) => tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            },
            // They go on to end the process by themselves, so there is nothing to wait for.
            None => pending().await,
        }
    }
}

/// What a command makes of signals.
#[derive(Debug, Default)]
pub(super) struct Heeds {
    /// Whether it listens to them.
    pub(super) listens: bool,
    /// How many it has taken.
    pub(super) times: u32,
}

/// Waits for a signal that the command does not take in time, as one that can't get rid of its output.
pub(super) async fn unheeded(mut heeds: watch::Receiver<Heeds>) {
    if heeds.wait_for(|heeds| heeds.listens).await.is_err() {
        // It is about to end.
        return pending().await;
    }
    let mut signals = Signals::default();
    for times in 1.. {
        signals.next().await;
        let taken = heeds.wait_for(|heeds| heeds.times >= times);
        match timeout(HEED, taken).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return pending().await,
            Err(_) => return,
        }
    }
}

fn listen() -> io::Result<[Signal; 2]> {
    Ok([
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ])
}
