//! The settings of a master that serves: flag, then environment, then default. [`ServeArgs`] is what was said,
//! [`Config`] is what it means; all mistakes are told at once. Nothing is bound, opened or contacted here.

mod access;
mod args;
pub mod limits;
mod mistakes;
mod own;
#[cfg(test)]
mod tests;

pub use access::Access;
pub use args::ServeArgs;
pub use limits::Limits;
pub use own::OwnPort;

use crate::{
    cluster::store::{EtcdOptions, EtcdTls, StoreUrl},
    ensemble::callback::Program,
};
use args::{CallbackArgs, EnsembleArgs, EtcdArgs, ListenArgs, ModeArgs, SafeguardArgs, TimeArgs};
use kontrol_core::{
    safeguard::Policy,
    settings::{MIN_LOST, Settings},
};
use kontrol_runtime::{
    command_line::{Mistake, given},
    dial::{Credentials, TOKEN_VARIABLE},
    duration,
    host::{HostPort, Reach, address, reach},
};
use kontrol_slave::{
    action,
    config::{PodArgs, PodConfig},
    identity::{Labels, Podinfo, parse_labels},
    masters::Tier,
};
use mistakes::{Mistakes, name};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

/// Smallest TTL: the liveness clock ticks five times a second.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Smallest leader lease that etcd grants as asked.
const MIN_FOVER: Duration = Duration::from_secs(1);
/// The history is looked through every few seconds.
const MIN_HISTORY: Duration = Duration::from_secs(10);

/// The settings of a master, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port; 0 picks a free one.
    pub port: u16,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Who may come in.
    pub access: Access,
    /// What is shown to other masters, and whom to trust.
    pub credentials: Credentials,
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
    /// How it runs actions as a pod.
    pub actions: action::Settings,
    /// The name given to this master.
    pub id: Option<String>,
    /// The address given for this host.
    pub ip: Option<IpAddr>,
    /// What every request may need to know.
    pub settings: Settings,
    /// How much is too much; what pods and callers say is in `settings` as well.
    pub limits: Limits,
}

impl Config {
    /// Whether everybody who reaches this master from elsewhere may do everything.
    pub fn is_insecure(&self) -> bool {
        !self.bind.to_canonical().is_loopback() && !self.access.files.authenticate()
    }
}

impl ServeArgs {
    /// Checks everything, and tells every mistake. `environment` looks a variable up.
    pub fn check(
        self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let port = self.listen.port(&mut mistakes);
        let access = self.access.check(&mut mistakes);
        let bind = mistakes.one(self.listen.bind(access.files.authenticate()));
        let bind = bind.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let credentials = mistakes.all(self.dial.check(environment(TOKEN_VARIABLE)));
        let mut credentials = credentials.unwrap_or_default();
        // A certificate for servers alone would end every connection to a master that asks for one; a token says enough.
        if let Some((cert, key)) = &access.files.identity
            && !credentials.has_token()
        {
            credentials = credentials.or_identity(cert, key);
        }
        let advertise = mistakes.or_default(self.listen.advertise());
        let mut settings = self.times.settings(&mut mistakes);
        settings.safeguard = self.safeguard.policy(settings.ttl, &mut mistakes);
        let limits = self.limits.check(&mut mistakes);
        settings.limits = limits.said.clone();
        let callback_timeout = mistakes.time(
            "callback-timeout",
            Some(&self.callback.callback_timeout),
            Duration::from_secs(60),
            Duration::from_millis(1),
        );
        let callback = mistakes.or_default(self.callback.program());
        let who = Who::read(&self, &mut mistakes);
        let namespace = environment("NAMESPACE");
        let namespace =
            given(self.ensemble.namespace.as_deref()).or_else(|| given(namespace.as_deref()));
        settings.namespace = mistakes.or_default(name("namespace", namespace));
        let store = mistakes.or_default(self.ensemble.store());
        let etcd = mistakes.or_default(self.etcd.options());
        if let Some(advertise) = &advertise {
            mistakes.one(dialable(bind, advertise, &store));
        }
        mistakes.one(self.modes.check());
        let mixed = self.modes.has("slave");
        let upstream = mistakes.tiers("upstream", self.modes.upstream.as_deref());
        let masters = mistakes.tiers("master", self.modes.master.as_deref());
        let pod = (who.sound && (mixed || upstream.is_some()))
            .then(|| mistakes.all(pod(&self.pod, who.labels, &who.podinfo, &who.app)));
        let actions = mistakes.all(self.actions.check(self.listen.insecure));
        settings.app = who.app;
        match actions {
            Some(actions) if mistakes.0.is_empty() => Ok(Config {
                port,
                bind,
                access,
                credentials,
                advertise,
                store,
                etcd,
                callback,
                callback_timeout,
                mixed: mixed.then_some(masters),
                upstream,
                id: given(self.pod.id.as_deref())
                    .map(str::to_owned)
                    .or(who.podinfo.name),
                ip: who.ip,
                pod: pod.flatten(),
                actions,
                settings,
                limits,
            }),
            _ => Err(mistakes.0),
        }
    }
}

/// Who this master is, as a pod and by the name of its ensemble.
struct Who {
    labels: Labels,
    podinfo: Podinfo,
    ip: Option<IpAddr>,
    app: String,
    /// Whether there is no mistake in it.
    sound: bool,
}

impl Who {
    fn read(args: &ServeArgs, mistakes: &mut Mistakes) -> Self {
        let before = mistakes.0.len();
        let labels = given(args.pod.labels.as_deref())
            .map_or_else(|| Ok(Labels::new()), |text| parse_labels("labels", text));
        let labels = mistakes.all(labels).unwrap_or_default();
        let podinfo = mistakes.or_default(args.pod.podinfo());
        let ip = args.pod.ip().and_then(|ip| match ip {
            Some(ip) if reach(ip) == Reach::Nobody => {
                let reason = format!("{ip} is no host's own address");
                Err(Mistake::new("ip", reason))
            }
            ip => Ok(ip),
        });
        let ip = mistakes.or_default(ip);
        let label = || labels.get("app").or_else(|| podinfo.labels.get("app"));
        let app = given(args.ensemble.app.as_deref()).or_else(|| label().map(String::as_str));
        let app = mistakes.or_default(name("app", app));
        let sound = mistakes.0.len() == before;
        Self {
            labels,
            podinfo,
            ip,
            app,
            sound,
        }
    }
}

impl TimeArgs {
    /// The times, in settings whose names are still to come.
    fn settings(&self, mistakes: &mut Mistakes) -> Settings {
        let seconds = Duration::from_secs;
        let ttl = mistakes.time("ttl", Some(&self.ttl), seconds(25), MIN_TTL);
        let damper = mistakes.time("damper", Some(&self.damper), seconds(10), Duration::ZERO);
        let damper_max = self.damper_max.as_deref();
        let damper_max = mistakes.time("damper-max", damper_max, damper * 6, damper);
        let fover = mistakes.time("fover", Some(&self.fover), seconds(5), MIN_FOVER);
        let lost = mistakes.time("lost", Some(&self.lost), seconds(3), Duration::ZERO);
        if !lost.is_zero() && lost < MIN_LOST {
            let reason = format!(
                "{} is less than {}, in which a slave can come back: 0 turns it off",
                duration::show(lost),
                duration::show(MIN_LOST)
            );
            mistakes.0.push(Mistake::new("lost", reason));
        }
        let history = mistakes.time("history", Some(&self.history), seconds(3600), MIN_HISTORY);
        Settings {
            namespace: String::new(),
            app: String::new(),
            ttl,
            damper,
            damper_max,
            fover,
            lost,
            history,
            safeguard: Policy::default(),
            limits: kontrol_core::limits::Limits::default(),
        }
    }
}

impl SafeguardArgs {
    fn policy(&self, ttl: Duration, mistakes: &mut Mistakes) -> Policy {
        let percent = |text: &str| {
            let number = text.strip_suffix('%').unwrap_or(text).trim_end();
            let percent = number.parse().ok().filter(|percent| *percent <= 100);
            percent.ok_or_else(|| format!("{text:?} is not a share from 0% to 100%"))
        };
        let pods = |text: &str| {
            let pods = text.parse().ok().filter(|pods| *pods > 0);
            pods.ok_or_else(|| format!("{text:?} is not a number of pods from 1 on"))
        };
        let max = self.safeguard_max.as_deref();
        Policy {
            percent: mistakes.read("safeguard", Some(&self.safeguard), 50, percent),
            min: mistakes.read("safeguard-min", Some(&self.safeguard_min), 10, pods),
            max: mistakes.time("safeguard-max", max, ttl * 10, ttl),
        }
    }
}

impl ListenArgs {
    fn port(&self, mistakes: &mut Mistakes) -> u16 {
        mistakes.read("port", Some(&self.port), 8000, |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a port from 0 to 65535"))
        })
    }

    fn bind(&self, authenticates: bool) -> Result<IpAddr, Mistake> {
        let text = given(Some(&self.bind)).unwrap_or("127.0.0.1").trim();
        let bind: IpAddr = text
            .parse()
            .map_err(|_| Mistake::new("bind", format!("{text:?} is not an IP address")))?;
        if !bind.to_canonical().is_loopback() && !authenticates && !self.insecure {
            let reason = format!(
                "{bind} can be reached from elsewhere, and nobody is asked who it is: give --tokens or --client-ca (with --tls-cert), or add --insecure if that network is yours alone"
            );
            return Err(Mistake::new("bind", reason));
        }
        Ok(bind)
    }

    fn advertise(&self) -> Result<Option<String>, Mistake> {
        let Some(text) = given(self.advertise.as_deref()).map(str::trim) else {
            return Ok(None);
        };
        let wrong = |reason: &str| Mistake::new("advertise", format!("{text:?} {reason}"));
        let form = || wrong("is not host:port, with an IPv6 address in brackets");
        let HostPort { host, port } = text.parse().map_err(|_| form())?;
        port.ok_or_else(form)?;
        // A name whose last part is a number is an address that went wrong (RFC 1123, 2.1).
        let numeric = |name: &str| {
            let last = name.trim_end_matches('.').rsplit('.').next();
            last.is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
        };
        match host.parse().ok() {
            Some(ip) if reach(ip) == Reach::Nobody => {
                Err(wrong("is no address of a host, so that nobody can dial it"))
            }
            // Without a zone it leads nowhere, and a zone is known to one host only.
            Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                Err(wrong("is a link-local address, which others can't dial"))
            }
            None if numeric(&host) => Err(form()),
            Some(_) | None => Ok(Some(text.to_owned())),
        }
    }
}

impl EnsembleArgs {
    fn store(&self) -> Result<StoreUrl, Mistake> {
        match (given(self.store.as_deref()), given(self.etcd.as_deref())) {
            (Some(_), Some(_)) => {
                let reason = "--store names the store already (KONTROL_STORE and KONTROL_ETCD are two spellings of one setting): give one of them";
                Err(Mistake::new("etcd", reason))
            }
            (Some(url), None) => url.parse().map_err(|error| Mistake::new("store", error)),
            (None, Some(list)) => {
                StoreUrl::classic(list).map_err(|error| Mistake::new("etcd", error))
            }
            (None, None) => Ok(StoreUrl::Memory),
        }
    }
}

impl EtcdArgs {
    fn options(&self) -> Result<EtcdOptions, Mistake> {
        let text = |text: &Option<String>| given(text.as_deref()).map(str::to_owned);
        let file =
            |path: &Option<std::path::PathBuf>| path.clone().filter(|path| path != Path::new(""));
        let (user, password) = (text(&self.etcd_user), text(&self.etcd_password));
        let (ca, cert, key) = (
            file(&self.etcd_cacert),
            file(&self.etcd_cert),
            file(&self.etcd_key),
        );
        let wrong = |flag, reason: &str| Err(Mistake::new(flag, reason));
        if cert.is_some() != key.is_some() {
            return wrong("etcd-cert", "goes with --etcd-key: give both or none");
        }
        if user.is_some() != password.is_some() {
            let reason = "goes with KONTROL_ETCD_PASSWORD: give both or none";
            return wrong("etcd-user", reason);
        }
        if cert.is_some() && ca.is_none() {
            return wrong("etcd-cert", "goes with --etcd-cacert, which turns TLS on");
        }
        Ok(EtcdOptions {
            user,
            password,
            tls: ca.map(|ca| EtcdTls {
                ca,
                identity: cert.zip(key),
            }),
        })
    }
}

impl CallbackArgs {
    fn program(&self) -> Result<Option<Program>, Mistake> {
        let callback = given(self.callback.as_deref());
        let shell = given(self.shell_callback.as_deref());
        // The Python Kontrol's way to say whether the callback is a text. No command is called so.
        let is_text = shell == Some("TRUE");
        let shell = shell.filter(|text| !["TRUE", "FALSE"].contains(text));
        let wrong = |flag| move |error| Mistake::new(flag, error);
        let program = match (callback, shell) {
            (Some(_), Some(_)) => {
                let reason = "--callback names the callback already: give one of them";
                return Err(Mistake::new("shell-callback", reason));
            }
            (Some(text), None) if is_text => Program::shell(text).map_err(wrong("callback")),
            (Some(path), None) => Program::exec(path).map_err(wrong("callback")),
            (None, Some(text)) => Program::shell(text).map_err(wrong("shell-callback")),
            (None, None) => return Ok(None),
        };
        program.map(Some)
    }
}

impl ModeArgs {
    fn check(&self) -> Result<(), Mistake> {
        for word in self.words() {
            let reason = match word {
                "master" | "slave" | "verbose" => continue,
                "debug" => "`debug` is no mode any more: `master,slave` with --labels is a tier of one, with the store in memory".to_owned(),
                _ => format!("{word:?} is none of master, slave and verbose"),
            };
            return Err(Mistake::new("mode", reason));
        }
        if self.has("slave") && !self.has("master") {
            let reason = "a slave alone is the program kontrol-slave; `master,slave` makes this master a pod as well";
            return Err(Mistake::new("mode", reason));
        }
        Ok(())
    }
}

/// Refuses a loopback address for the others that share a store on another host, where this master listens beyond loopback.
fn dialable(bind: IpAddr, advertise: &str, store: &StoreUrl) -> Result<(), Mistake> {
    let StoreUrl::Etcd(members) = store else {
        return Ok(());
    };
    let reach_of = |text: &str| address(text).map(reach);
    let local = Some(Reach::Host);
    let shared = members.iter().any(|member| reach_of(member) > local);
    if shared && reach(bind) != Reach::Host && reach_of(advertise) == local {
        let reason = format!(
            "{advertise:?} is a loopback address, which the other masters on {store} can't dial"
        );
        return Err(Mistake::new("advertise", reason));
    }
    Ok(())
}

/// Who this master is as a pod: what was said, and the labels that a master has by itself.
fn pod(
    args: &PodArgs,
    mut labels: Labels,
    podinfo: &Podinfo,
    app: &str,
) -> Result<PodConfig, Vec<Mistake>> {
    for (name, value) in [("app", app), ("role", "master")] {
        if !podinfo.labels.contains_key(name) {
            labels.entry(name.to_owned()).or_insert(value.to_owned());
        }
    }
    let labels =
        serde_json::to_string(&labels).map_err(|error| vec![Mistake::new("labels", error)])?;
    let args = PodArgs {
        labels: Some(labels),
        ..args.clone()
    };
    args.check()
}
