//! What a service says of itself before its slave starts, and what is wrong with it.

use super::Slave;
use crate::{
    action::{
        self,
        handler::{ActionOutput, ActionReply, ActionRequest, Handler},
    },
    agent::{Agent, AgentConfig, Credentials},
    identity::{Given, Identity, Podinfo},
    masters::{self, Endpoint, Tier},
    payload,
};
use kontrol_runtime::{command_line::Mistake, dial::DialArgs, host::host_name};
use serde_json::Value;
use std::{fmt, net::IpAddr, path::PathBuf};
use tokio::{runtime::Handle, sync::watch};

/// Most calls at once: half of the threads for blocking work that a runtime has by default. The looks at names and files, for
/// keepalives, need some too.
const MOST_AT_ONCE: usize = 256;

/// Collects what a slave is to report, and how. [`start`](Self::start) checks it, all at once. Nothing is read from the
/// environment.
#[derive(Clone)]
#[must_use = "nothing runs before it is started"]
pub struct SlaveBuilder {
    masters: String,
    given: Given,
    payload: Value,
    dial: DialArgs,
    token: Option<String>,
    handler: Option<Handler>,
    insecure: bool,
    max_actions: usize,
}

impl fmt::Debug for SlaveBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is not shown.
        f.debug_struct("SlaveBuilder")
            .field("masters", &self.masters)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

/// Why a slave did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// These settings are wrong: all that are.
    #[error("{}", Lines(.0))]
    Settings(Vec<WrongSetting>),
    /// The caller is not in a tokio runtime, in which the slave could run.
    #[error(
        "a slave starts only within a tokio runtime: call it from async code, or hold Runtime::enter"
    )]
    NoRuntime,
}

/// A setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct WrongSetting {
    /// The method of [`SlaveBuilder`] that puts it right; `builder` for the masters.
    pub setting: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// One behind the other.
struct Lines<'a>(&'a [WrongSetting]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(WrongSetting::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

impl From<Mistake> for WrongSetting {
    fn from(mistake: Mistake) -> Self {
        Self {
            setting: match mistake.flag {
                "labels" => "label",
                "annotations" => "annotation",
                "cert" | "key" => "certificate",
                "token-file" => "token_file",
                flag => flag,
            },
            reason: mistake.reason,
        }
    }
}

fn wrong(setting: &'static str, reason: impl fmt::Display) -> WrongSetting {
    // In one line that ends somewhere.
    Mistake::new(setting, reason).into()
}

impl SlaveBuilder {
    pub(super) fn new(masters: String) -> Self {
        Self {
            masters,
            given: Given::default(),
            payload: Value::String(String::new()),
            dial: DialArgs::default(),
            token: None,
            handler: None,
            insecure: false,
            max_actions: action::DEFAULT_AT_ONCE,
        }
    }

    /// The application that the pod belongs to. Required; it is the label `app`.
    pub fn app(self, app: impl Into<String>) -> Self {
        self.label("app", app)
    }

    /// What the pod does in it. Required; it is the label `role`.
    pub fn role(self, role: impl Into<String>) -> Self {
        self.label("role", role)
    }

    /// The pod's name. Default: the host name. Where several pods are on one host, each has a name and an address of its own.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.given.id = Some(id.into());
        self
    }

    /// The pod's address, of which its key is made: to masters, two pods with one address are the same pod. Default: the address
    /// of this host that leads to the master in use, which is followed when it changes.
    pub fn ip(mut self, ip: IpAddr) -> Self {
        self.given.ip = Some(ip);
        self
    }

    /// A label, by which pods are selected. At most 64 of them, with values of 253 bytes.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.given.labels.insert(name.into(), value.into());
        self
    }

    /// An annotation: text about the pod, which is not part of the digest.
    pub fn annotation(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.given.annotations.insert(name.into(), value.into());
        self
    }

    /// The name of the machine that the pod runs on. Default: none.
    pub fn node(mut self, node: impl Into<String>) -> Self {
        self.given.node = node.into();
        self
    }

    /// The payload of the first keepalive, see [`Slave::set_payload`]. Default: none (`""`).
    pub fn payload(mut self, payload: Value) -> Self {
        self.payload = payload;
        self
    }

    /// The file with the authorities that a master's certificate may be signed by, in PEM, for `https://`. Default: those that
    /// this system trusts.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.dial.ca = Some(file.into());
        self
    }

    /// The files with the client certificate to show to masters over `https://`, with its chain, and with its key, in PEM. They
    /// are read again for every connection. Default: none.
    pub fn certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.dial.cert = Some(cert.into());
        self.dial.key = Some(key.into());
        self
    }

    /// The token to show to masters. Default: none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A file whose first line is the token to show to masters. It is read again for every connection, so that a token can be
    /// replaced. Default: none.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.dial.token_file = Some(file.into());
        self
    }

    /// Carries actions out by this code. Default: actions are refused. No command is ever run: that takes a guard, which only
    /// the programs of Kontrol have.
    ///
    /// The code is called once at most for each action, on a thread of its own beside those of the runtime, so that it may
    /// block, as files and `std` do. It is within the runtime all the same: what starts or blocks on one (`block_on`, the
    /// `blocking_` methods of tokio, clients that bring their own) panics there, and belongs into `spawn_blocking`. The action ends with what it returns, an exit code or [`Refused`](crate::Refused). Several are called at once,
    /// see [`max_actions`](Self::max_actions). When the action times out or is cancelled, or the slave stops,
    /// [`ActionRequest::cancellation`] is cancelled; code that has not returned two seconds later (a quarter of a second when the
    /// slave stops) is dropped where it awaits. Code that blocks can't be ended: its action ends without it, and it counts
    /// among those at once until it returns, which the end of the runtime waits for as well. A panic ends the action with exit code 101, where panics unwind.
    ///
    /// It is only asked by masters that prove who they are (`https://`), unless [`insecure`](Self::insecure) says otherwise.
    ///
    /// ```
    /// use kontrol_slave::{ActionCommand, Refused, Slave};
    ///
    /// let builder = Slave::builder("https://masters:8000").handler(async |request, mut output| {
    ///     match &request.command {
    ///         ActionCommand::Argv(words) if *words == ["cache", "clear"] => {
    ///             output.stdout.print("cleared\n").await;
    ///             Ok(0)
    ///         }
    ///         _ => Err(Refused::new("this service knows only: cache clear")),
    ///     }
    /// });
    /// # drop(builder);
    /// ```
    pub fn handler<F, A>(mut self, code: F) -> Self
    where
        F: Fn(ActionRequest, ActionOutput) -> A + Send + Sync + 'static,
        A: Future<Output = ActionReply> + Send + 'static,
    {
        self.handler = Some(Handler::new(code));
        self
    }

    /// Accepts that everybody who reaches the masters can have the handler act, over `http://` too. Default: no.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// How many actions are carried out at once, from 1 to 256; up to 4096 more wait. Each takes one of the runtime's threads for
    /// blocking work, of which keepalives need some as well. Default: 16.
    pub fn max_actions(mut self, number: usize) -> Self {
        self.max_actions = number;
        self
    }

    /// Starts the slave in the tokio runtime of the caller, whose time and IO must be enabled. It returns at once: masters that
    /// can't be reached yet are tried until they can, see [`Slave::ready`]. The files that were given are read here, which
    /// blocks.
    ///
    /// # Errors
    ///
    /// Wrong settings, all at once; or that there is no runtime.
    pub fn start(self) -> Result<Slave, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let (tiers, identity, credentials) = self.check().map_err(StartError::Settings)?;
        let proves = tiers.iter().flat_map(Tier::endpoints).any(Endpoint::is_tls);
        if self.handler.is_some() && !self.insecure && !proves {
            tracing::warn!(
                "every action is refused, for no master proves who it is: give https:// URLs, or insecure(true) if everybody who reaches the masters may act here"
            );
        }
        if let Some(line) = credentials.remark() {
            tracing::warn!("{line}");
        }
        let actions = self.handler.map(|handler| action::Settings {
            trusted: self.insecure,
            at_once: self.max_actions,
            handler: Some(handler),
            ..action::Settings::default()
        });
        let (sender, payload) = watch::channel(self.payload);
        let agent = Agent::new(AgentConfig {
            // It never changes.
            identity: watch::channel(identity).1,
            payload,
            tiers,
            credentials,
            actions,
        });
        Ok(Slave::run(&runtime, agent, sender))
    }

    fn check(&self) -> Result<(Vec<Tier>, Identity, Credentials), Vec<WrongSetting>> {
        let mut mistakes: Vec<WrongSetting> = Vec::new();
        let tiers = masters::parse(&self.masters).unwrap_or_else(|errors| {
            mistakes.extend(errors.iter().map(|error| wrong("builder", error)));
            Vec::new()
        });
        let mut given = self.given.clone();
        for name in ["app", "role"] {
            let value = given.labels.entry(name.to_owned()).or_default();
            if value.is_empty() {
                mistakes.push(wrong(name, "is required"));
                // What is told is not told again.
                name.clone_into(value);
            }
        }
        let identity = given.identity(&Podinfo::default(), &host_name());
        let identity = identity.map_err(|more| mistakes.extend(more.into_iter().map(Into::into)));
        if let Err(error) = payload::check(&self.payload) {
            mistakes.push(wrong("payload", error));
        }
        let credentials = self.dial.check(None);
        let credentials =
            credentials.map_err(|more| mistakes.extend(more.into_iter().map(Into::into)));
        let credentials = match (&self.token, credentials) {
            (Some(_), _) if self.dial.token_file.is_some() => {
                mistakes.push(wrong(
                    "token",
                    "goes without token_file: give one of the two",
                ));
                Err(())
            }
            (Some(token), credentials) => {
                let with = credentials.unwrap_or_default().with_token(token);
                with.map_err(|error| mistakes.push(wrong("token", error)))
            }
            (None, credentials) => credentials,
        };
        if !(1..=MOST_AT_ONCE).contains(&self.max_actions) {
            let reason = format!("must be a number from 1 to {MOST_AT_ONCE}");
            mistakes.push(wrong("max_actions", reason));
        }
        match (identity, credentials) {
            (Ok(identity), Ok(credentials)) if mistakes.is_empty() => {
                Ok((tiers, identity, credentials))
            }
            _ => Err(mistakes),
        }
    }
}
