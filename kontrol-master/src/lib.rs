//! The master of Kontrol.
//!
//! ```text
//!             keepalives (gRPC, HTTP/JSON)                      store (etcd | file | memory)
//!  slave ──▶ rpc / gateway ──▶ keepalive ── joins, changes ──▶ pods/  seq
//!                                  │                              │ watch
//!                                  │ refreshes                    ▼
//!                                  ▼                            roster ──▶ Watch, ListPods, status
//!                        follower: relay ──▶ leader: term ◀───────┘     (relay/ in the store, where the way is broken)
//!                                              │  deadlines, digest, damper
//!                                              ▼
//!                                           callback ── state + handled digest, fenced ──▶ state
//!
//!  slave ══▶ session ═ switchboard ◀══▶ peers: the switchboards of the other masters
//!                          ║
//!  who asks ◀══ rpc ══ dispatch: rollout ──▶ custody ── history ──▶ actions/
//! ```
//!
//! What always holds:
//!
//! 1. The pure core, the crate `kontrol-core`, never awaits, reads a clock, or names tonic, axum or etcd: time arrives as an
//!    argument, effects leave as return values. Deadlines are monotonic; wall-clock time is for display.
//! 2. Every leader-only write is one transaction with a [`kontrol_core::kv::Fence`]: that an action is taken over as well. Whoever carries
//!    an action writes its record, compared with what it wrote before, whether it leads or not.
//! 3. Leader-only state lives in one term, built on election and dropped on loss. A new term gives every pod a full
//!    TTL before it may expire anything.
//! 4. After an unclear answer of the store, read back and decide; never repeat blindly.
//! 5. Every task is named, supervised and joined; one that ends early stops the process.
//! 6. One domain call for each operation; `rpc` is a thin adapter over it, and `gateway` only transcodes to `rpc`.
//! 7. Every queue is bounded. Every stream ends at shutdown.
//!
//! 8. An action is carried by one master, told in one place what became of it, and has one end for each target; see
//!    [`action`].
//!
//! Dependencies run one way, as `tests/tidy.rs` checks:
//!
//! ```text
//! main ──▶ server ──▶ serve ──▶ action ──▶ ensemble ──▶ cluster ──▶ kontrol-core
//!   ├────▶ health ────────▶ config, the port of the master beside it
//!   ├────▶ trial ─────────────────────────▶ callback, kontrol-cli
//!   └────▶ kontrol-cli ────────────────────────────────────────────────▲
//! ```
//!
//! and everything stands on `kontrol-runtime` and `kontrol-proto`.

pub mod action;
pub mod cluster;
pub mod config;
pub mod ensemble;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod health;
pub mod metrics;
pub mod serve;
pub mod server;
pub mod token;
pub mod trial;
