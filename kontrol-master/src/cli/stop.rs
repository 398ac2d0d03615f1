//! The signals that ask a command to end: SIGINT (Ctrl-C) and SIGTERM.

use std::{future::pending, io};
use tokio::signal::unix::{Signal, SignalKind, signal};

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

fn listen() -> io::Result<[Signal; 2]> {
    Ok([
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ])
}
