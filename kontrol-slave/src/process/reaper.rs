//! Reaping as PID 1. In a container this process may be the one that orphans are handed to; nobody else waits for them.
//!
//! Only what this process did not start itself is reaped here: the status of its own children belongs to who started them.

use super::guard::zombies;
use rustix::process::{WaitOptions, getpid, waitpid};
use std::{
    collections::HashSet,
    future::pending,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often to look for zombies without having been told of one: a signal stands for any number of them.
const LOOK: Duration = Duration::from_secs(10);

/// The children that this process started and did not wait for yet. Held while one is started, so that none is reaped
/// before it is known.
static OWN: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

fn own() -> MutexGuard<'static, Option<HashSet<u32>>> {
    // Each use of the set is one call: it is whole whatever panicked.
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a child whose status belongs to the caller.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut own = own();
    let child = command.spawn()?;
    own.get_or_insert_default().extend(child.id());
    Ok(child)
}

/// The caller has the status of a child.
pub(super) fn reaped(id: u32) {
    if let Some(own) = own().as_mut() {
        own.remove(&id);
    }
}

/// Reaps orphans until the token is cancelled, if this process is PID 1. Otherwise none are handed to it.
pub async fn run(token: CancellationToken) -> io::Result<()> {
    if !getpid().is_init() {
        token.cancelled().await;
        return Ok(());
    }
    let mut deaths = signal(SignalKind::child())?;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // All arms are cancel safe.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            more = deaths.recv() => if more.is_none() {
                pending::<()>().await;
            },
            _ = looks.tick() => {}
        }
        reap();
    }
}

fn reap() {
    let own = own();
    let is_own = |pid: u32| own.as_ref().is_some_and(|own| own.contains(&pid));
    for pid in zombies() {
        if !is_own(pid.as_raw_nonzero().get().unsigned_abs()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}
