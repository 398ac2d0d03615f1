//! What the contract promises, asked of the built programs on a real etcd. One module for each capability; what happens
//! under faults is asked in `robustness`.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap of a test is a failed test"
)]

mod access;
mod action;
mod by_hand;
mod callback;
mod callback_test;
mod chain;
mod cli;
mod config;
mod damper;
mod embed;
mod file_store;
mod inheritance;
mod input;
mod keepalive;
mod keys;
mod limits;
mod liveness;
mod logs;
mod operate;
mod readme;
#[path = "../secured.rs"]
mod secured;
mod serving;
mod slave;
mod watch;
mod whole;
