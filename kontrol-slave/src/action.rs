//! Actions: commands that masters send, run here; or, in a service that embeds the slave, calls of its handler.
//!
//! ```text
//! master ══ session (one a tier) ── orders ──▶ executor ──▶ run (one an action) ──▶ running ──▶ guard ──▶ the command
//!        ◀═════════ reports ═══════════════════════════════════┘ outbox: what the     └──▶ call ──▶ the handler
//!                                                                 master has not taken
//! ```
//!
//! What always holds:
//!
//! 1. An action runs at most once in this incarnation: the `journal` of each tier knows every id that was ever taken.
//! 2. Each action is a task that owns everything of it. It reads no more of a command's output than the master gave credit
//!    for, so that a slow dispatcher slows the command and nothing piles up.
//! 3. What the master has not taken is kept, and told again on the next channel, until it says that it may be forgotten.
//! 4. Nothing of a command outlives its action, or the slave. A handler that does not end when it is asked to is dropped; one
//!    that blocks holds up neither, and keeps its place among those that run.
//! 5. Whatever runs, one code waits, passes output on, ends it in time and tells the end: `run`. It knows only `running`.

mod call;
mod command;
mod executor;
pub mod handler;
mod journal;
mod outbox;
mod outcome;
pub mod policy;
mod run;
mod running;
pub(crate) mod session;
mod told;
pub mod variables;

pub(crate) use executor::{Executor, ExecutorTask};

use crate::masters::{Endpoint, Tier};
use handler::Handler;
use kontrol_runtime::process::{OWN_EXECUTABLE, User};
use policy::Policy;
use rustix::{
    process::geteuid,
    thread::{CapabilitySet, capabilities},
};
use std::path::PathBuf;

/// How many commands run at once unless the settings say otherwise.
pub const DEFAULT_AT_ONCE: usize = 16;

/// How this pod runs actions.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What may run.
    pub policy: Policy,
    /// Whether whoever reaches the masters is trusted. Otherwise only what comes over TLS runs, where the master proved who it
    /// is.
    pub trusted: bool,
    /// Whom commands run as, if not as this process.
    pub user: Option<User>,
    /// How many commands run at once; more wait.
    pub at_once: usize,
    /// The code of this process that carries actions out; without it they are commands.
    pub handler: Option<Handler>,
    /// The executable that is guard and shim as well; `OWN_EXECUTABLE` but in tests.
    pub guard: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::Any,
            trusted: false,
            user: None,
            at_once: DEFAULT_AT_ONCE,
            handler: None,
            guard: OWN_EXECUTABLE.into(),
        }
    }
}

impl Settings {
    /// Says in the log what an operator may not have meant. `tiers`: whose actions run.
    pub fn remark(&self, tiers: &[Tier]) {
        let mut endpoints = tiers.iter().flat_map(Tier::endpoints);
        let trusted = self.trusted || endpoints.any(Endpoint::is_tls);
        let commands = trusted && self.handler.is_none();
        if commands && self.user.is_none() && self.policy != Policy::None && geteuid().is_root() {
            tracing::warn!(
                "actions run as root, for there is no user `kontrol` on this host; name another with --user"
            );
        }
        if trusted && let Some(user) = self.user.as_ref().filter(|user| !user.is_current()) {
            let missing = missing_capabilities();
            if !missing.is_empty() {
                tracing::warn!(
                    "actions can't be run as {}, or not be ended, without the capabilities {}: grant them, or start this program as that user",
                    user.name,
                    missing.join(", ")
                );
            }
        }
    }
}

/// What root lacks, in a container for instance, to become another user, and to kill what runs as that one.
fn missing_capabilities() -> Vec<&'static str> {
    let has = capabilities(None).map_or(CapabilitySet::all(), |sets| sets.effective);
    let needed = [
        ("SETUID", CapabilitySet::SETUID),
        ("SETGID", CapabilitySet::SETGID),
        ("KILL", CapabilitySet::KILL),
    ];
    let missing = needed.iter().filter(|(_, one)| !has.contains(*one));
    missing.map(|(name, _)| *name).collect()
}
