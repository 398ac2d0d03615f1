//! The settings of a master that serves: flag, then environment, then default. [`ServeArgs`] is what was said,
//! [`Config`] is what was checked. Nothing is bound, opened or contacted here.

use crate::{
    callback::Program,
    store::{EtcdOptions, EtcdTls, StoreUrl},
};
use clap::Args;
use kontrol_slave::{
    config::{PodArgs, PodConfig},
    duration,
    identity::{Labels, Mistake, Podinfo, parse_labels},
    logging::Format,
    masters::{self, Tier},
};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// Smallest TTL: the liveness clock ticks five times a second.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Smallest leader lease that etcd grants as asked.
const MIN_FOVER: Duration = Duration::from_secs(1);
/// Longest name of a namespace or app: a DNS name fits.
const MAX_NAME_BYTES: usize = 253;

/// The flags of a master that serves.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// TCP port of gRPC and HTTP; 0 picks a free one
    #[arg(long, env = "KONTROL_PORT", default_value_t = 8000)]
    pub port: u16,

    /// Address to listen on. Beyond loopback this needs --insecure, as long as there is no authentication
    #[arg(long, env = "KONTROL_BIND", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// Where other masters and slaves reach this master, as host:port [default: the address it listens on; of
    /// 0.0.0.0, --ip or the address that leads to the store]
    #[arg(long, env = "KONTROL_ADVERTISE")]
    pub advertise: Option<String>,

    /// Serve beyond loopback without authentication: whoever reaches the port can report pods and change the state
    #[arg(long, env = "KONTROL_INSECURE")]
    pub insecure: bool,

    /// Namespace of the ensemble; also read from NAMESPACE [default: default]
    #[arg(long, env = "KONTROL_NAMESPACE")]
    pub namespace: Option<String>,

    /// App of the ensemble [default: the label `app` of --labels, else `default`]
    #[arg(long, env = "KONTROL_APP")]
    pub app: Option<String>,

    /// Where the roster is kept: `memory:`, `file:DIR`, or `etcd://host:2379,host:2379` [default: memory:]
    #[arg(long, env = "KONTROL_STORE")]
    pub store: Option<String>,

    /// The classic spelling of an etcd store: host[:port],host[:port]
    #[arg(long, env = "KONTROL_ETCD")]
    pub etcd: Option<String>,

    /// User of etcd
    #[arg(long, env = "KONTROL_ETCD_USER")]
    pub etcd_user: Option<String>,

    /// Password of that user; better given in the environment
    #[arg(long, env = "KONTROL_ETCD_PASSWORD", hide_env_values = true)]
    pub etcd_password: Option<String>,

    /// Certificate authority of etcd, a PEM file; turns TLS on
    #[arg(long, env = "KONTROL_ETCD_CACERT")]
    pub etcd_cacert: Option<PathBuf>,

    /// Client certificate for etcd, a PEM file; goes with --etcd-key
    #[arg(long, env = "KONTROL_ETCD_CERT")]
    pub etcd_cert: Option<PathBuf>,

    /// Key of the client certificate for etcd, a PEM file
    #[arg(long, env = "KONTROL_ETCD_KEY")]
    pub etcd_key: Option<PathBuf>,

    /// How long a pod may be silent before it leaves the roster (25, 25s, 500ms, 2m); pods are told to report five
    /// times as often
    #[arg(long, env = "KONTROL_TTL", default_value = "25s", value_parser = duration::parse)]
    pub ttl: Duration,

    /// How long the roster must be unchanged before the callback runs
    #[arg(long, env = "KONTROL_DAMPER", default_value = "10s", value_parser = duration::parse)]
    pub damper: Duration,

    /// How long a roster that keeps changing can put the callback off [default: 6 x --damper]
    #[arg(long, env = "KONTROL_DAMPER_MAX", value_parser = duration::parse)]
    pub damper_max: Option<Duration>,

    /// Lease of the leader: how long the tier can be without one when it dies. etcd counts in whole seconds
    #[arg(long, env = "KONTROL_FOVER", default_value = "5s", value_parser = duration::parse)]
    pub fover: Duration,

    /// The callback: an executable, run on the leader when the roster has changed
    #[arg(long, env = "KONTROL_CALLBACK")]
    pub callback: Option<String>,

    /// The callback as text for /bin/sh -c
    #[arg(long, env = "KONTROL_SHELL_CALLBACK")]
    pub shell_callback: Option<String>,

    /// How long the callback may take
    #[arg(long, env = "KONTROL_CALLBACK_TIMEOUT", default_value = "60s", value_parser = duration::parse)]
    pub callback_timeout: Duration,

    /// What this process is, separated by commas: `master`; `master,slave` also reports itself as a pod; `verbose`
    /// logs more
    #[arg(long, env = "KONTROL_MODE", default_value = "master")]
    pub mode: String,

    /// Masters above, to report this master to (a chain), written as --master of kontrol-slave. Its payload is the
    /// digest, the number of pods, and whether it leads
    #[arg(long, env = "KONTROL_UPSTREAM")]
    pub upstream: Option<String>,

    /// With --mode master,slave: the masters to report to [default: this one]
    #[arg(long, env = "KONTROL_MASTER")]
    pub master: Option<String>,

    /// Who this master is as a pod, for --mode master,slave and --upstream
    #[command(flatten)]
    pub pod: PodArgs,

    /// Log more, for finding out what is wrong
    #[arg(long, env = "KONTROL_VERBOSE")]
    pub verbose: bool,

    /// How log lines look
    #[arg(long, env = "KONTROL_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: Format,
}

/// The settings of a master, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port; 0 picks a free one.
    pub port: u16,
    /// Address to listen on.
    pub bind: IpAddr,
    /// `host:port`, if it was given.
    pub advertise: Option<String>,
    /// Where the roster is kept.
    pub store: StoreUrl,
    /// How to speak to etcd.
    pub etcd: EtcdOptions,
    /// The callback.
    pub callback: Option<Program>,
    /// How long the callback may take.
    pub callback_timeout: Duration,
    /// Whether this master reports itself as a pod, and to which masters; none: to itself.
    pub mixed: Option<Option<Vec<Tier>>>,
    /// The masters above.
    pub upstream: Option<Vec<Tier>>,
    /// Who this master is as a pod; absent when it reports itself to nobody.
    pub pod: Option<PodConfig>,
    /// The name given to this master.
    pub id: Option<String>,
    /// The address given for this host.
    pub ip: Option<IpAddr>,
    /// What every request may need to know.
    pub settings: Settings,
}

/// The settings that users are told about.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the ensemble.
    pub namespace: String,
    /// App of the ensemble.
    pub app: String,
    /// How long a pod may be silent.
    pub ttl: Duration,
    /// How long the roster must be unchanged before the callback runs.
    pub damper: Duration,
    /// How long endless change can put the callback off.
    pub damper_max: Duration,
    /// Lease of the leader.
    pub fover: Duration,
}

impl Settings {
    /// How often pods are told to report: a pod may lose four keepalives in a row.
    pub fn interval(&self) -> Duration {
        self.ttl / 5
    }
}

/// Treats a variable that is set to nothing as one that is not set: manifests often do that.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

impl ServeArgs {
    /// Whether debug logs are wanted: by --verbose, or the classic way.
    pub fn wants_verbose(&self) -> bool {
        self.verbose || self.modes().any(|mode| mode == "verbose")
    }

    fn modes(&self) -> impl Iterator<Item = &str> {
        self.mode
            .split(',')
            .map(str::trim)
            .filter(|mode| !mode.is_empty())
    }

    /// Checks everything, and tells every mistake. `environment` looks a variable up.
    pub fn check(
        self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        for checked in [self.check_bind(), self.check_times(), self.check_mode()] {
            mistakes.one(checked);
        }
        let given_labels = given(self.pod.labels.clone());
        let labels =
            given_labels.map_or_else(|| Ok(Labels::new()), |text| parse_labels("labels", &text));
        let labels = mistakes.all(labels);
        let label = |name: &str| labels.as_ref().and_then(|labels| labels.get(name).cloned());
        let app = mistakes.one(name(
            "app",
            given(self.app.clone()).or_else(|| label("app")),
        ));
        let namespace = given(self.namespace.clone()).or_else(|| given(environment("NAMESPACE")));
        let namespace = mistakes.one(name("namespace", namespace));
        let store = mistakes.one(self.store());
        let etcd = mistakes.one(self.etcd_options());
        let callback = mistakes.one(self.program());
        let mixed = self.modes().any(|mode| mode == "slave");
        let upstream =
            given(self.upstream.clone()).map(|text| mistakes.all(tiers("upstream", &text)));
        let masters = given(self.master.clone()).map(|text| mistakes.all(tiers("master", &text)));
        let pod = match labels {
            Some(labels) if mixed || upstream.is_some() => {
                let app = app.clone().unwrap_or_default();
                mistakes.all(self.pod(labels, app))
            }
            Some(_) | None => None,
        };
        let (Some(app), Some(namespace), Some(store), Some(etcd), Some(callback), true) =
            (app, namespace, store, etcd, callback, mistakes.0.is_empty())
        else {
            return Err(mistakes.0);
        };
        let id = given(self.pod.id.clone()).or_else(|| self.podinfo().name);
        Ok(Config {
            port: self.port,
            bind: self.bind,
            advertise: given(self.advertise),
            store,
            etcd,
            callback,
            callback_timeout: self.callback_timeout,
            mixed: mixed.then(|| masters.flatten()),
            upstream: upstream.flatten(),
            id,
            ip: self.pod.ip.as_deref().and_then(|ip| ip.trim().parse().ok()),
            pod,
            settings: Settings {
                namespace,
                app,
                ttl: self.ttl,
                damper: self.damper,
                damper_max: self.damper_max.unwrap_or(self.damper * 6),
                fover: self.fover,
            },
        })
    }

    /// Who this master is as a pod: what was said, and the labels that a master has by itself.
    fn pod(&self, mut labels: Labels, app: String) -> Result<PodConfig, Vec<Mistake>> {
        let folder = self.podinfo().labels;
        for (name, value) in [("app", app), ("role", "master".to_owned())] {
            if !folder.contains_key(name) {
                labels.entry(name.to_owned()).or_insert(value);
            }
        }
        let labels =
            serde_json::to_string(&labels).map_err(|error| vec![Mistake::new("labels", error)])?;
        let args = PodArgs {
            labels: Some(labels),
            ..self.pod.clone()
        };
        args.check()
    }

    /// What the downward-API folder says; nothing when it can't be read, which is told where it matters.
    fn podinfo(&self) -> Podinfo {
        let folder = self.pod.podinfo.as_deref();
        let read = folder.and_then(|folder| Podinfo::read(folder).ok());
        read.unwrap_or_default()
    }

    fn check_bind(&self) -> Result<(), Mistake> {
        if !self.bind.to_canonical().is_loopback() && !self.insecure {
            let reason = format!(
                "{} can be reached from elsewhere, and this version has no authentication: add --insecure if that network is yours alone",
                self.bind
            );
            return Err(Mistake::new("bind", reason));
        }
        if let Some(advertise) = &self.advertise
            && !advertise.trim().is_empty()
            && (advertise.contains("://")
                || !advertise.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
                }))
        {
            return Err(Mistake::new(
                "advertise",
                format!("{advertise:?} is not host:port"),
            ));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Mistake> {
        let show = duration::show;
        if self.ttl < MIN_TTL {
            return Err(Mistake::new(
                "ttl",
                format!("{} is less than {}", show(self.ttl), show(MIN_TTL)),
            ));
        }
        if self.fover < MIN_FOVER {
            return Err(Mistake::new(
                "fover",
                format!("{} is less than {}", show(self.fover), show(MIN_FOVER)),
            ));
        }
        if let Some(max) = self.damper_max
            && max < self.damper
        {
            let reason = format!("{} is less than --damper, {}", show(max), show(self.damper));
            return Err(Mistake::new("damper-max", reason));
        }
        if self.callback_timeout.is_zero() {
            return Err(Mistake::new(
                "callback-timeout",
                "no callback ends in no time",
            ));
        }
        Ok(())
    }

    fn check_mode(&self) -> Result<(), Mistake> {
        let modes: Vec<_> = self.modes().collect();
        for mode in &modes {
            if !["master", "slave", "verbose"].contains(mode) {
                let reason = format!("{mode:?} is none of master, slave and verbose");
                return Err(Mistake::new("mode", reason));
            }
        }
        if modes.contains(&"slave") && !modes.contains(&"master") {
            let reason = "a slave alone is the program kontrol-slave; `master,slave` makes this master a pod as well";
            return Err(Mistake::new("mode", reason));
        }
        Ok(())
    }

    fn store(&self) -> Result<StoreUrl, Mistake> {
        match (given(self.store.clone()), given(self.etcd.clone())) {
            (Some(_), Some(_)) => {
                let reason = "--store names the store already (KONTROL_STORE and KONTROL_ETCD are two spellings of one setting): give one of them";
                Err(Mistake::new("etcd", reason))
            }
            (Some(url), None) => url.parse().map_err(|error| Mistake::new("store", error)),
            (None, Some(list)) => {
                StoreUrl::classic(&list).map_err(|error| Mistake::new("etcd", error))
            }
            (None, None) => Ok(StoreUrl::Memory),
        }
    }

    fn etcd_options(&self) -> Result<EtcdOptions, Mistake> {
        if self.etcd_cert.is_some() != self.etcd_key.is_some() {
            return Err(Mistake::new(
                "etcd-cert",
                "goes with --etcd-key: give both or none",
            ));
        }
        if self.etcd_user.is_some() != self.etcd_password.is_some() {
            return Err(Mistake::new(
                "etcd-user",
                "goes with KONTROL_ETCD_PASSWORD: give both or none",
            ));
        }
        if self.etcd_cert.is_some() && self.etcd_cacert.is_none() {
            return Err(Mistake::new(
                "etcd-cert",
                "goes with --etcd-cacert, which turns TLS on",
            ));
        }
        Ok(EtcdOptions {
            user: self.etcd_user.clone(),
            password: self.etcd_password.clone(),
            tls: self.etcd_cacert.clone().map(|ca| EtcdTls {
                ca,
                identity: self.etcd_cert.clone().zip(self.etcd_key.clone()),
            }),
        })
    }

    fn program(&self) -> Result<Option<Program>, Mistake> {
        match (
            given(self.callback.clone()),
            given(self.shell_callback.clone()),
        ) {
            (Some(_), Some(_)) => Err(Mistake::new(
                "shell-callback",
                "--callback names the callback already: give one of them",
            )),
            (Some(path), None) => Program::exec(&path)
                .map(Some)
                .map_err(|error| Mistake::new("callback", error)),
            (None, Some(text)) => Program::shell(&text)
                .map(Some)
                .map_err(|error| Mistake::new("shell-callback", error)),
            (None, None) => Ok(None),
        }
    }
}

/// The mistakes so far.
#[derive(Default)]
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn one<T>(&mut self, result: Result<T, Mistake>) -> Option<T> {
        result.map_err(|mistake| self.0.push(mistake)).ok()
    }

    fn all<T>(&mut self, result: Result<T, Vec<Mistake>>) -> Option<T> {
        result.map_err(|mistakes| self.0.extend(mistakes)).ok()
    }
}

fn tiers(flag: &'static str, text: &str) -> Result<Vec<Tier>, Vec<Mistake>> {
    masters::parse(text).map_err(|errors| {
        let mistakes = errors.into_iter().map(|error| Mistake::new(flag, error));
        mistakes.collect()
    })
}

/// A part of the ensemble's name: it becomes part of every key in the store.
fn name(flag: &'static str, text: Option<String>) -> Result<String, Mistake> {
    let text = text.unwrap_or_else(|| "default".to_owned());
    let fits = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits || text.is_empty() || text.len() > MAX_NAME_BYTES {
        let reason =
            format!("{text:?} must be 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.`");
        return Err(Mistake::new(flag, reason));
    }
    Ok(text)
}
