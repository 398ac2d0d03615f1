//! Reaps what is handed to this process: nobody else waits for it.
//!
//! That is what a guard leaves behind that was killed itself. It is killed, as the guard would have done. In a container
//! this process may be PID 1 as well, and then what is handed to it may be anybody's: that is left alive.
//!
//! The status of a child that this process started itself belongs to who started it.

use super::guard::children;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};
use std::{
    collections::HashSet,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

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

/// Takes in orphans until the token is cancelled.
pub async fn run(token: CancellationToken) -> io::Result<()> {
    let mut deaths = signal(SignalKind::child())?;
    set_child_subreaper(Some(getpid()))?;
    // Children of whatever became this process with exec: they are its business, not a guard's leftovers.
    let inherited: HashSet<Pid> = children().into_iter().collect();
    // Whoever is handed over was the child of a process whose death is told as well, to this one.
    while let Some(Some(())) = token.run_until_cancelled(deaths.recv()).await {
        take_in(&inherited);
    }
    token.cancelled().await;
    take_in(&inherited);
    Ok(())
}

fn take_in(inherited: &HashSet<Pid>) {
    let own = own();
    let is_own = |pid: u32| own.as_ref().is_some_and(|own| own.contains(&pid));
    let anybodys = getpid().is_init();
    for pid in children() {
        if is_own(pid.as_raw_nonzero().get().unsigned_abs()) {
            continue;
        }
        if !anybodys && !inherited.contains(&pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}
