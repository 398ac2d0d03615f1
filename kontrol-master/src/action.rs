//! Actions: commands that anyone dispatches to any master, run by the slaves, whichever master they are attached to.
//!
//! The master that took the dispatch carries the action: it alone decides who starts and how each target ended.

pub mod rollout;
