//! What a tier did while everything around it broke, written down whole, and judged against the promises of the contract.
//!
//! ```text
//! pods over HTTP: each keepalive, its answer ─┐
//! slaves: starts, ends, disturbances          │
//! callback: each run (script::Recorder)       ├─▶ History ─▶ judge ─▶ violations
//! dispatchers, executions, watches, views     │                └───▶ silences: never refused, for how long?
//! etcd: each revision, and when it can have been┘
//! ```
//!
//! PURE: the rules read nothing but a [`History`]. A rule says that something is wrong only where that is certain: times
//! are those of this machine's monotonic clock, each revision of etcd lies between two bounds, and each rule takes the bound
//! that speaks for the tier.

mod action;
mod callback;
mod digest;
mod keepalive;
mod order;
pub mod record;
#[cfg(test)]
mod samples;
mod silence;
mod slave;
mod store;
mod watch;

pub use silence::silences;

use record::History;

/// A rule: tells what in a history breaks it.
pub type Rule = fn(&History) -> Vec<String>;

/// Every rule with its name.
pub const RULES: [(&str, Rule); 8] = [
    ("order", order::violations),
    ("digest", digest::violations),
    ("callback", callback::violations),
    ("liveness", keepalive::violations),
    ("stored", keepalive::unstored),
    ("slaves", slave::violations),
    ("actions", action::violations),
    ("watch", watch::violations),
];

/// Everything in a history that breaks a rule, each behind the rule's name.
pub fn judge(history: &History) -> Vec<String> {
    RULES
        .iter()
        .flat_map(|(name, rule)| {
            let found = rule(history).into_iter();
            found.map(move |text| format!("{name}: {text}"))
        })
        .collect()
}
