//! The flags of a master that serves, as they were said: text, so that a variable that is set to nothing can count as
//! one that is not set (compose files and manifests can't leave one out), and so that all mistakes are told at once.

use super::limits::LimitArgs;
use clap::Args;
use kontrol_runtime::{command_line::switch, dial::DialArgs, logging::Format};
use kontrol_slave::config::{ActionArgs, PodArgs};
use std::path::PathBuf;

/// Every flag of a master that serves.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) ensemble: EnsembleArgs,
    #[command(flatten)]
    pub(super) times: TimeArgs,
    #[command(flatten)]
    pub(super) safeguard: SafeguardArgs,
    #[command(flatten)]
    pub(super) callback: CallbackArgs,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    #[command(flatten)]
    pub(super) etcd: EtcdArgs,
    #[command(
        flatten,
        next_help_heading = "Dialling other masters, also as a pod (files are read again at each connection)"
    )]
    pub(super) dial: DialArgs,
    #[command(flatten)]
    pub(super) modes: ModeArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(
        flatten,
        next_help_heading = "This master as a pod, for --mode master,slave and --upstream"
    )]
    pub(super) pod: PodArgs,
    #[command(
        flatten,
        next_help_heading = "Actions on this master as a pod; they take --insecure as well"
    )]
    pub(super) actions: ActionArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listening")]
pub(super) struct ListenArgs {
    /// TCP port of gRPC and HTTP; 0 picks a free one
    #[arg(
        long,
        env = "KONTROL_PORT",
        value_name = "PORT",
        default_value = "8000",
        hide_env_values = true
    )]
    pub(super) port: String,

    /// Address to listen on. Beyond loopback it takes --tokens or --client-ca, or else --insecure
    #[arg(
        long,
        env = "KONTROL_BIND",
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        hide_env_values = true
    )]
    pub(super) bind: String,

    /// Where other masters and slaves reach this master. Default: the address it listens on; of 0.0.0.0, --ip or the
    /// address that leads to the store, else that of the default route, which is followed when it changes. Others are never
    /// told what they can't dial: a master without such an address is not ready
    #[arg(
        long,
        env = "KONTROL_ADVERTISE",
        value_name = "HOST:PORT",
        hide_env_values = true
    )]
    pub(super) advertise: Option<String>,

    /// Serve beyond loopback without --tokens and --client-ca: whoever reaches the port can report pods, replace the state and run
    /// commands on slaves; and on this master, if it is a pod itself, within --actions. Default: no
    #[arg(long, env = "KONTROL_INSECURE", value_parser = switch, hide_env_values = true)]
    pub(super) insecure: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Who may come in (files are read again when they change)")]
pub(super) struct AccessArgs {
    /// Certificate of this master, a PEM file with those that lead to its authority: turns TLS on; goes with --tls-key.
    /// Default: none, in clear text
    #[arg(
        long,
        env = "KONTROL_TLS_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) tls_cert: Option<PathBuf>,

    /// Key of that certificate, a PEM file. Default: none
    #[arg(
        long,
        env = "KONTROL_TLS_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) tls_key: Option<PathBuf>,

    /// Authorities, a PEM file: a client certificate that they signed counts, its CN as the name, its O as the role
    /// (kontrol:slave, kontrol:reader, kontrol:operator, kontrol:peer). Default: none
    #[arg(
        long,
        env = "KONTROL_CLIENT_CA",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) client_ca: Option<PathBuf>,

    /// Certificates that those authorities have revoked, a PEM file of their lists (CRL). Default: none
    #[arg(
        long,
        env = "KONTROL_CLIENT_CRL",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) client_crl: Option<PathBuf>,

    /// Tokens that count, a file with one line each, as `token new` prints it. Default: none
    #[arg(
        long,
        env = "KONTROL_TOKENS",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) tokens: Option<PathBuf>,

    /// Host names that requests over HTTP may use for this master, with commas; `any`: every one. Addresses, names without a
    /// dot, --advertise and the names of --tls-cert always count. Default: none beside those
    #[arg(
        long,
        env = "KONTROL_HOSTS",
        value_name = "NAMES",
        hide_env_values = true
    )]
    pub(super) hosts: Option<String>,

    /// Show /metrics and the reflection of gRPC to everybody, rather than to readers. Default: no
    #[arg(long, env = "KONTROL_OPEN_METRICS", value_parser = switch, hide_env_values = true)]
    pub(super) open_metrics: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ensemble and store")]
pub(super) struct EnsembleArgs {
    /// Namespace of the ensemble; NAMESPACE is read as well. Default: `default`
    #[arg(
        long,
        env = "KONTROL_NAMESPACE",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub(super) namespace: Option<String>,

    /// App of the ensemble. Default: the label `app` of --labels, else `default`
    #[arg(long, env = "KONTROL_APP", value_name = "NAME", hide_env_values = true)]
    pub(super) app: Option<String>,

    /// Where the roster is kept: `memory:`, `file:DIR`, or `etcd://host:2379,host:2379`. Default: `memory:`
    #[arg(
        long,
        env = "KONTROL_STORE",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(super) store: Option<String>,

    /// The classic spelling of an etcd store: `host[:port],host[:port]`. Default: none
    #[arg(
        long,
        env = "KONTROL_ETCD",
        value_name = "HOSTS",
        hide_env_values = true
    )]
    pub(super) etcd: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access to etcd")]
pub(super) struct EtcdArgs {
    /// User of etcd. Default: none
    #[arg(
        long,
        env = "KONTROL_ETCD_USER",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub(super) etcd_user: Option<String>,

    /// Password of that user; better given as the variable. Default: none
    #[arg(
        long,
        env = "KONTROL_ETCD_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    pub(super) etcd_password: Option<String>,

    /// Certificate authority of etcd, a PEM file: turns TLS on. Default: none, in clear
    #[arg(
        long,
        env = "KONTROL_ETCD_CACERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) etcd_cacert: Option<PathBuf>,

    /// Client certificate for etcd, a PEM file; goes with --etcd-key. Default: none
    #[arg(
        long,
        env = "KONTROL_ETCD_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) etcd_cert: Option<PathBuf>,

    /// Key of that certificate, a PEM file. Default: none
    #[arg(
        long,
        env = "KONTROL_ETCD_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) etcd_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Times (25, 25s, 500ms, 2m)")]
pub(super) struct TimeArgs {
    /// How long a pod may be silent before it leaves the roster; pods are told to report five times as often
    #[arg(
        long,
        env = "KONTROL_TTL",
        value_name = "TIME",
        default_value = "25s",
        hide_env_values = true
    )]
    pub(super) ttl: String,

    /// How long the roster must be unchanged before the callback runs
    #[arg(
        long,
        env = "KONTROL_DAMPER",
        value_name = "TIME",
        default_value = "10s",
        hide_env_values = true
    )]
    pub(super) damper: String,

    /// How long a roster that keeps changing can put the callback off. Default: 6 x --damper
    #[arg(
        long,
        env = "KONTROL_DAMPER_MAX",
        value_name = "TIME",
        hide_env_values = true
    )]
    pub(super) damper_max: Option<String>,

    /// The leader's lease: how long the tier can be without a leader that died. etcd counts whole seconds, from 2
    #[arg(
        long,
        env = "KONTROL_FOVER",
        value_name = "TIME",
        default_value = "5s",
        hide_env_values = true
    )]
    pub(super) fover: String,

    /// How long a pod may take to come back whose slave was attached and whose channel ended without a goodbye, as when
    /// its process dies; 0: its TTL alone decides
    #[arg(
        long,
        env = "KONTROL_LOST",
        value_name = "TIME",
        default_value = "3s",
        hide_env_values = true
    )]
    pub(super) lost: String,

    /// How long the history keeps an action
    #[arg(
        long,
        env = "KONTROL_HISTORY",
        value_name = "TIME",
        default_value = "1h",
        hide_env_values = true
    )]
    pub(super) history: String,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Safeguard against mass removal")]
pub(super) struct SafeguardArgs {
    /// Share of the roster that silence may remove within one TTL, in percent: when it would be more, nobody is removed for
    /// silence until pods come back, an operator says so (`release`), or --safeguard-max is over; 0: there is no safeguard
    #[arg(
        long,
        env = "KONTROL_SAFEGUARD",
        value_name = "PERCENT",
        default_value = "50%",
        hide_env_values = true
    )]
    pub(super) safeguard: String,

    /// From how many pods on
    #[arg(
        long,
        env = "KONTROL_SAFEGUARD_MIN",
        value_name = "PODS",
        default_value = "10",
        hide_env_values = true
    )]
    pub(super) safeguard_min: String,

    /// How long removals stay frozen at the most. Default: 10 x --ttl
    #[arg(
        long,
        env = "KONTROL_SAFEGUARD_MAX",
        value_name = "TIME",
        hide_env_values = true
    )]
    pub(super) safeguard_max: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Callback")]
pub(super) struct CallbackArgs {
    /// The callback, an executable (with arguments if need be), run on the leader when the roster has changed. Default:
    /// none
    #[arg(
        long,
        env = "KONTROL_CALLBACK",
        value_name = "PROGRAM",
        hide_env_values = true
    )]
    pub(super) callback: Option<String>,

    /// The callback as text for /bin/sh -c, instead (or the classic TRUE: --callback is such a text). Default: none
    #[arg(
        long,
        env = "KONTROL_SHELL_CALLBACK",
        value_name = "TEXT",
        hide_env_values = true
    )]
    pub(super) shell_callback: Option<String>,

    /// How long the callback may take
    #[arg(
        long,
        env = "KONTROL_CALLBACK_TIMEOUT",
        value_name = "TIME",
        default_value = "60s",
        hide_env_values = true
    )]
    pub(super) callback_timeout: String,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Topology")]
pub(super) struct ModeArgs {
    /// What this process is, with commas: `master`; `master,slave` is also a pod of its own tier; `verbose` is --verbose
    #[arg(
        long,
        env = "KONTROL_MODE",
        value_name = "WORDS",
        default_value = "master",
        hide_env_values = true
    )]
    pub(super) mode: String,

    /// Masters above, to report this master to (a chain), written as --master of kontrol-slave. The payload is its
    /// digest, its number of pods, and whether it leads. Default: none
    #[arg(
        long,
        env = "KONTROL_UPSTREAM",
        value_name = "ENDPOINTS",
        hide_env_values = true
    )]
    pub(super) upstream: Option<String>,

    /// With --mode master,slave, the masters to report to. Default: this one
    #[arg(
        long,
        env = "KONTROL_MASTER",
        value_name = "ENDPOINTS",
        hide_env_values = true
    )]
    pub(super) master: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LogArgs {
    /// Log debug lines too. Default: no
    #[arg(long, env = "KONTROL_VERBOSE", value_parser = switch, hide_env_values = true)]
    pub(super) verbose: bool,

    /// How log lines look
    #[arg(
        long,
        env = "KONTROL_LOG_FORMAT",
        value_enum,
        default_value_t,
        hide_env_values = true
    )]
    pub(super) log_format: Format,
}

impl ServeArgs {
    /// How log lines look.
    pub fn log_format(&self) -> Format {
        self.log.log_format
    }

    /// Whether debug lines are wanted: by --verbose, or the classic way.
    pub fn verbose(&self) -> bool {
        self.log.verbose || self.modes.has("verbose")
    }
}

impl ModeArgs {
    /// The words of --mode.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let words = self.mode.split(',').map(str::trim);
        words.filter(|word| !word.is_empty())
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.words().any(|other| other == word)
    }
}
