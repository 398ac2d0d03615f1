//! The flags of the limits: how much a master takes of others before it says that it is too much.
//!
//! Those of what pods and callers say have a most that slaves and masters share (`kontrol_core::limits`), and can be lowered.

use super::mistakes::Mistakes;
use crate::serve::listener;
use clap::Args;
use kontrol_core::{json, limits, traffic};
use std::time::Duration;

/// Smallest request that can be the largest: every keepalive but one with much to say fits.
const MIN_REQUEST_BYTES: usize = 4096;
/// Smallest time-out: less would end what goes well.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// More than that of anything is a slip of the pen.
const MOST: usize = 1_000_000;
const MOST_PODS: usize = 10_000_000;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits (sizes: 65536, 64KiB, 8MiB)")]
pub(super) struct LimitArgs {
    /// Largest request, over gRPC the message and over HTTP the body; the default is the most. Keepalives have 2 MiB at the
    /// most in any case
    #[arg(
        long,
        env = "KONTROL_MAX_REQUEST",
        value_name = "SIZE",
        default_value = "8MiB",
        hide_env_values = true
    )]
    pub(super) max_request: String,

    /// How deep a payload, a state, and an action's input may nest; the default is the most
    #[arg(
        long,
        env = "KONTROL_MAX_JSON_DEPTH",
        value_name = "LEVELS",
        default_value = "30",
        hide_env_values = true
    )]
    pub(super) max_json_depth: String,

    /// Largest payload of a pod, as canonical JSON; the default is the most
    #[arg(
        long,
        env = "KONTROL_MAX_PAYLOAD",
        value_name = "SIZE",
        default_value = "64KiB",
        hide_env_values = true
    )]
    pub(super) max_payload: String,

    /// Most labels of a pod, and as many annotations; the default is the most
    #[arg(
        long,
        env = "KONTROL_MAX_LABELS",
        value_name = "NUMBER",
        default_value = "64",
        hide_env_values = true
    )]
    pub(super) max_labels: String,

    /// Most pods of the ensemble: those that are in it go on, no other joins
    #[arg(
        long,
        env = "KONTROL_MAX_PODS",
        value_name = "NUMBER",
        default_value = "200000",
        hide_env_values = true
    )]
    pub(super) max_pods: String,

    /// Most actions that this master carries at a time; the default is the most
    #[arg(
        long,
        env = "KONTROL_MAX_DISPATCHES",
        value_name = "NUMBER",
        default_value = "4096",
        hide_env_values = true
    )]
    pub(super) max_dispatches: String,

    /// Most streams that one caller has open: Watch, Dispatch, health and reflection. A caller is a principal, or an
    /// address where nobody is asked who it is
    #[arg(
        long,
        env = "KONTROL_MAX_WATCHERS",
        value_name = "NUMBER",
        default_value = "1000",
        hide_env_values = true
    )]
    pub(super) max_watchers: String,

    /// Most reads and actions that one caller begins in a second. Keepalives, slaves' channels and what masters tell each
    /// other are never counted
    #[arg(
        long,
        env = "KONTROL_MAX_RATE",
        value_name = "NUMBER",
        default_value = "1000",
        hide_env_values = true
    )]
    pub(super) max_rate: String,

    /// Most reads and actions that this master works on at a time, of which one caller has half: keepalives come first
    #[arg(
        long,
        env = "KONTROL_MAX_REQUESTS",
        value_name = "NUMBER",
        default_value = "512",
        hide_env_values = true
    )]
    pub(super) max_requests: String,

    /// Most connections; the next ones wait
    #[arg(
        long,
        env = "KONTROL_MAX_CONNECTIONS",
        value_name = "NUMBER",
        default_value = "15000",
        hide_env_values = true
    )]
    pub(super) max_connections: String,

    /// Most connections from one address; the next ones are closed
    #[arg(
        long,
        env = "KONTROL_MAX_CONNECTIONS_EACH",
        value_name = "NUMBER",
        default_value = "10000",
        hide_env_values = true
    )]
    pub(super) max_connections_each: String,

    /// Most requests and streams at a time on one HTTP/2 connection; the next ones wait
    #[arg(
        long,
        env = "KONTROL_MAX_STREAMS",
        value_name = "NUMBER",
        default_value = "512",
        hide_env_values = true
    )]
    pub(super) max_streams: String,

    /// How long TLS may take to come about
    #[arg(
        long,
        env = "KONTROL_HANDSHAKE_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        hide_env_values = true
    )]
    pub(super) handshake_timeout: String,

    /// How long a connection may take to say its first word, and the head of an HTTP/1.1 request
    #[arg(
        long,
        env = "KONTROL_HEAD_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        hide_env_values = true
    )]
    pub(super) head_timeout: String,

    /// How long a connection may be open without a request
    #[arg(
        long,
        env = "KONTROL_IDLE_TIMEOUT",
        value_name = "TIME",
        default_value = "5m",
        hide_env_values = true
    )]
    pub(super) idle_timeout: String,

    /// How long a peer may take nothing of what it is sent
    #[arg(
        long,
        env = "KONTROL_STALL_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        hide_env_values = true
    )]
    pub(super) stall_timeout: String,
}

/// The limits, checked.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Of connections.
    pub port: listener::Limits,
    /// Of what each caller asks for.
    pub traffic: traffic::Limits,
    /// Of what is said.
    pub said: limits::Limits,
}

impl LimitArgs {
    pub(super) fn check(&self, mistakes: &mut Mistakes) -> Limits {
        let Limits {
            port,
            traffic,
            said,
        } = Limits::default();
        Limits {
            said: self.said(&said, mistakes),
            traffic: traffic::Limits {
                rate: mistakes.number("max-rate", &self.max_rate, traffic.rate, MOST),
                streams: mistakes.number("max-watchers", &self.max_watchers, traffic.streams, MOST),
                requests: mistakes.number(
                    "max-requests",
                    &self.max_requests,
                    traffic.requests,
                    MOST,
                ),
            },
            port: self.port(&port, mistakes),
        }
    }

    fn said(&self, default: &limits::Limits, mistakes: &mut Mistakes) -> limits::Limits {
        limits::Limits {
            request_bytes: mistakes.size(
                "max-request",
                &self.max_request,
                MIN_REQUEST_BYTES,
                limits::MAX_REQUEST_BYTES,
            ),
            json_depth: mistakes.number(
                "max-json-depth",
                &self.max_json_depth,
                default.json_depth,
                json::MAX_DEPTH,
            ),
            payload_bytes: mistakes.size(
                "max-payload",
                &self.max_payload,
                2,
                limits::MAX_PAYLOAD_BYTES,
            ),
            labels: mistakes.number(
                "max-labels",
                &self.max_labels,
                default.labels,
                limits::MAX_LABELS,
            ),
            pods: mistakes.number("max-pods", &self.max_pods, default.pods, MOST_PODS),
            dispatches: mistakes.number(
                "max-dispatches",
                &self.max_dispatches,
                default.dispatches,
                limits::MAX_DISPATCHES,
            ),
        }
    }

    fn port(&self, default: &listener::Limits, mistakes: &mut Mistakes) -> listener::Limits {
        let mut time =
            |flag, text: &str, default| mistakes.time(flag, Some(text), default, MIN_TIMEOUT);
        let (handshake, head, idle, stalled) = (
            time(
                "handshake-timeout",
                &self.handshake_timeout,
                default.handshake,
            ),
            time("head-timeout", &self.head_timeout, default.head),
            time("idle-timeout", &self.idle_timeout, default.idle),
            time("stall-timeout", &self.stall_timeout, default.stalled),
        );
        listener::Limits {
            connections: mistakes.number(
                "max-connections",
                &self.max_connections,
                default.connections,
                MOST,
            ),
            connections_each: mistakes.number(
                "max-connections-each",
                &self.max_connections_each,
                default.connections_each,
                MOST,
            ),
            streams: mistakes.number("max-streams", &self.max_streams, default.streams, MOST),
            handshake,
            head,
            idle,
            stalled,
        }
    }
}
