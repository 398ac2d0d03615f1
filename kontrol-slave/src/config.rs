//! The slave's settings: flag, then environment, then default. PURE: [`Args`] is what was written, [`Config`] is what
//! it means, and all mistakes are told at once. Nothing is contacted here.
//!
//! An empty variable counts as an absent one: compose files and manifests cannot leave a variable out.

mod actions;

pub use actions::ActionArgs;

use crate::{
    action,
    identity::{Given, Podinfo, parse_labels, podinfo},
    masters::{self, Tier},
};
use clap::Parser;
use kontrol_runtime::{
    command_line::{Mistake, given, switch},
    dial::{Credentials, DialArgs},
    host::host_name,
    logging,
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Reports one pod to its masters, until it is told to stop.
///
/// Each flag can be given as a variable instead: --some-flag is KONTROL_SOME_FLAG. Flags win. SIGTERM says goodbye and
/// ends with code 0 within two seconds, or three where commands run; SIGHUP does without the goodbye, for a restart that keeps the
/// pod's place; wrong settings end with code 2 before anything is contacted.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "kontrol-slave",
    version,
    max_term_width = 120,
    args_override_self = true
)]
pub struct Args {
    /// Masters: `host[:port]`, `http://host[:port]`, or `https://host[:port]` for TLS; port 8000 unless given. `,` separates tiers, each of which gets
    /// every keepalive; `|` separates the endpoints of one tier, of which one is in use at a time; a name stands for
    /// all its addresses. Default: the annotation `kontrol/master`, in --annotations or the folder of --podinfo.
    #[arg(
        long,
        env = "KONTROL_MASTER",
        value_name = "ENDPOINTS",
        hide_env_values = true
    )]
    pub master: Option<String>,

    /// The pod.
    #[command(flatten)]
    pub pod: PodArgs,

    /// How actions run.
    #[command(flatten)]
    pub actions: ActionArgs,

    /// Accepts that everybody who reaches the masters can run commands here: without it actions run only over https://,
    /// where a master proves who it is. Default: no.
    #[arg(long, env = "KONTROL_INSECURE", value_parser = switch, hide_env_values = true)]
    pub insecure: bool,

    /// Logs debug lines too. Default: no.
    #[arg(long, env = "KONTROL_VERBOSE", value_parser = switch, hide_env_values = true)]
    pub verbose: bool,

    /// Words with commas between them: `slave` says nothing new, `verbose` is the classic spelling of --verbose.
    #[arg(
        long,
        env = "KONTROL_MODE",
        default_value = "slave",
        value_name = "WORDS",
        hide_env_values = true
    )]
    pub mode: String,

    /// How log lines are written, to standard error.
    #[arg(
        long,
        env = "KONTROL_LOG_FORMAT",
        value_enum,
        default_value = "text",
        hide_env_values = true
    )]
    pub log_format: logging::Format,

    /// What is shown to masters, and whom to trust. Last, for the heading goes on.
    #[command(flatten, next_help_heading = "Dialling masters")]
    pub dial: DialArgs,
}

/// The settings that describe a pod: the slave's, and those of a master that is a pod as well.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PodArgs {
    /// The pod's name. Default: the file `name` in the folder of --podinfo, else the host name.
    #[arg(long, env = "KONTROL_ID", value_name = "NAME", hide_env_values = true)]
    pub id: Option<String>,

    /// The pod's IP address. Default: the address of this host that leads to the master in use; it follows when that
    /// changes, and is never loopback or link-local towards a master on another host.
    #[arg(
        long,
        env = "KONTROL_IP",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    pub ip: Option<String>,

    /// The pod's labels, a JSON object of strings, laid over those in the folder of --podinfo. Together they must hold
    /// `app` and `role`. Default: none.
    #[arg(
        long,
        env = "KONTROL_LABELS",
        value_name = "JSON",
        hide_env_values = true
    )]
    pub labels: Option<String>,

    /// The pod's annotations, a JSON object of strings, laid over those in the folder of --podinfo. Default: none.
    #[arg(
        long,
        env = "KONTROL_ANNOTATIONS",
        value_name = "JSON",
        hide_env_values = true
    )]
    pub annotations: Option<String>,

    /// A JSON file that is the pod's payload, 64 KiB at most as canonical JSON; a change is sent at once. A file that is of
    /// no use is told once, and the last good one goes on being reported: one with an integer that no double holds (beyond
    /// 2^53) as well. Default: none, an empty payload.
    #[arg(
        long,
        env = "KONTROL_PAYLOAD",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub payload: Option<PathBuf>,

    /// A Kubernetes downward-API folder with the files `labels`, `annotations` and `name`; edits are sent at once.
    /// Default: none.
    #[arg(
        long,
        env = "KONTROL_PODINFO",
        value_name = "FOLDER",
        hide_env_values = true
    )]
    pub podinfo: Option<PathBuf>,

    /// The name of the machine that the pod runs on. Default: none.
    #[arg(
        long,
        env = "KONTROL_NODE",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub node: Option<String>,
}

/// The settings that describe a pod, checked.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// What the flags say of the pod.
    pub given: Given,
    /// The downward-API folder.
    pub podinfo: Option<PathBuf>,
    /// What the folder said at the start.
    pub found: Podinfo,
    /// The payload file.
    pub payload: Option<PathBuf>,
    /// The name of this host.
    pub host: String,
}

/// The slave's settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The tiers; never empty.
    pub tiers: Vec<Tier>,
    /// The pod.
    pub pod: PodConfig,
    /// What is shown to masters, and whom to trust.
    pub credentials: Credentials,
    /// How actions run.
    pub actions: action::Settings,
    /// Whether debug lines are logged.
    pub verbose: bool,
    /// How log lines are written.
    pub log_format: logging::Format,
}

impl PodArgs {
    /// What the folder of --podinfo says; nothing where there is none.
    pub fn podinfo(&self) -> Result<Podinfo, Mistake> {
        let read = path(&self.podinfo).map(Podinfo::read).transpose();
        read.map(Option::unwrap_or_default)
            .map_err(|error| Mistake::new("podinfo", error))
    }

    /// The address of --ip, if it was given.
    pub fn ip(&self) -> Result<Option<IpAddr>, Mistake> {
        let parse = |text: &str| {
            let wrong = |_| Mistake::new("ip", format!("`{text}` is not an IP address"));
            text.trim().parse().map_err(wrong)
        };
        given(self.ip.as_deref()).map(parse).transpose()
    }

    /// Checks the settings of the pod; reads the downward-API folder if there is one.
    pub fn check(&self) -> Result<PodConfig, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let found = self.podinfo().map_err(|mistake| mistakes.push(mistake));
        let mut labels = |flag, text: &Option<String>| {
            let labels = given(text.as_deref()).map(|text| parse_labels(flag, text));
            labels.transpose().map_err(|more| mistakes.extend(more))
        };
        let (labels, annotations) = (
            labels("labels", &self.labels),
            labels("annotations", &self.annotations),
        );
        // What cannot be read is told once, not again as what it lacks.
        let judge_labels = found.is_ok() && labels.is_ok();
        let ip = self.ip().map_err(|mistake| mistakes.push(mistake));
        let pod = PodConfig {
            given: Given {
                id: given(self.id.as_deref()).map(str::to_owned),
                ip: ip.ok().flatten(),
                labels: labels.ok().flatten().unwrap_or_default(),
                annotations: annotations.ok().flatten().unwrap_or_default(),
                node: given(self.node.as_deref()).unwrap_or_default().to_owned(),
            },
            podinfo: path(&self.podinfo).map(Path::to_owned),
            found: found.unwrap_or_default(),
            payload: path(&self.payload).map(Path::to_owned),
            host: host_name(),
        };
        if let Err(more) = pod.given.identity(&pod.found, &pod.host) {
            mistakes.extend(
                more.into_iter()
                    .filter(|mistake| judge_labels || mistake.flag != "labels"),
            );
        }
        if mistakes.is_empty() {
            Ok(pod)
        } else {
            Err(mistakes)
        }
    }
}

impl Args {
    /// Checks all settings; reads the downward-API folder if there is one, and what is shown to masters. `token`: the variable
    /// KONTROL_TOKEN.
    pub fn check(&self, token: Option<String>) -> Result<Config, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let credentials = self.dial.check(token);
        let credentials = credentials.map_err(|more| mistakes.extend(more)).ok();
        let pod = self.pod.check().map_err(|more| mistakes.extend(more)).ok();
        let actions = self.actions.check(self.insecure);
        let actions = actions.map_err(|more| mistakes.extend(more)).ok();
        let annotated = pod.as_ref().and_then(|pod| {
            let annotations = [&pod.given.annotations, &pod.found.annotations];
            let named = |name: &&str| annotations.iter().find_map(|map| map.get(*name).cloned());
            [podinfo::MASTERS, podinfo::CLASSIC_MASTERS]
                .iter()
                .find_map(named)
        });
        let masters = given(self.master.as_deref())
            .map(str::to_owned)
            .or(annotated);
        let tiers = match &masters {
            Some(text) => masters::parse(text).unwrap_or_else(|wrong| {
                mistakes.extend(wrong.iter().map(|error| Mistake::new("master", error)));
                Vec::new()
            }),
            // A folder that could not be read may name them; that mistake is told already.
            None if pod.is_none() && self.pod.podinfo.is_some() => Vec::new(),
            None => {
                let reason = "give at least one master, as in host:8000 (or the annotation `kontrol/master`, in --annotations or the folder of --podinfo)";
                mistakes.push(Mistake::new("master", reason));
                Vec::new()
            }
        };
        let mut verbose = self.verbose;
        for word in self.mode.split(',').map(str::trim) {
            match word {
                "verbose" => verbose = true,
                "slave" | "" => {}
                other => {
                    let hint = if other == "master" {
                        ", and a master, a pod as well with `master,slave`, is the program kontrol-master"
                    } else {
                        ""
                    };
                    let reason = format!(
                        "`{other}` is unknown: kontrol-slave knows `slave` and `verbose`{hint}"
                    );
                    mistakes.push(Mistake::new("mode", reason));
                }
            }
        }
        match (pod, actions, credentials) {
            (Some(pod), Some(actions), Some(credentials)) if mistakes.is_empty() => Ok(Config {
                tiers,
                pod,
                credentials,
                actions,
                verbose,
                log_format: self.log_format,
            }),
            _ => Err(mistakes),
        }
    }
}

fn path(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn args() -> Args {
        Args {
            master: Some("m1|m2,m3".into()),
            pod: PodArgs {
                labels: Some(r#"{"app":"web","role":"front"}"#.into()),
                ..PodArgs::default()
            },
            actions: ActionArgs::default(),
            dial: DialArgs::default(),
            insecure: false,
            verbose: false,
            mode: "slave".into(),
            log_format: logging::Format::Text,
        }
    }

    fn lines(args: &Args) -> Vec<String> {
        let mistakes = args.check(None).unwrap_err();
        mistakes.iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn each_flag_has_its_variable_and_its_help() {
        let command = Args::command();
        command.clone().debug_assert();
        for arg in command
            .get_arguments()
            .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            let flag = arg.get_long().unwrap();
            let variable = format!("KONTROL_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().unwrap().to_str(), Some(variable.as_str()));
            assert!(!is_service_variable(&variable), "{flag}");
            let help = arg.get_help().unwrap().to_string();
            assert!(
                help.contains("Default") || !arg.get_default_values().is_empty(),
                "{flag}: {help}"
            );
        }
    }

    /// The table of the operator's guide is true: each flag, and nothing else.
    #[test]
    fn the_readme_tells_every_flag() {
        let readme = include_str!("../../deploy/README.md");
        let (_, own) = readme.split_once("\n### kontrol-slave\n").unwrap();
        let (own, _) = own.split_once("\n## ").unwrap();
        let rows = own.lines().filter(|line| line.starts_with("| `--"));
        let cells = rows.map(|row| row.split('|').nth(1).unwrap());
        let mut told: Vec<&str> = cells
            .flat_map(|cell| cell.split('`').filter_map(|code| code.strip_prefix("--")))
            .collect();
        let command = Args::command();
        let mut flags: Vec<&str> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .filter(|flag| !matches!(*flag, "help" | "version"))
            .collect();
        told.sort_unstable();
        flags.sort_unstable();
        assert_eq!(told, flags);
    }

    /// Whether Kubernetes puts a variable of that name into every pod that is beside a Service of ours.
    fn is_service_variable(name: &str) -> bool {
        ["KONTROL", "KONTROL_MASTER", "KONTROL_SLAVE"]
            .iter()
            .any(|service| {
                let rest = name.strip_prefix(service).unwrap_or_default();
                rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_")
            })
    }

    #[test]
    fn good_settings_pass_and_empty_ones_are_absent() {
        let config = args().check(None).unwrap();
        assert_eq!(config.tiers.len(), 2);
        assert_eq!(config.pod.given.ip, None);
        let mut empty = args();
        empty.pod.id = Some(String::new());
        empty.pod.ip = Some(" ".into());
        empty.pod.payload = Some(PathBuf::new());
        let config = empty.check(None).unwrap();
        assert_eq!((config.pod.given.id, config.pod.payload), (None, None));
    }

    #[test]
    fn the_classic_mode_makes_it_verbose() {
        let mut args = args();
        args.mode = "slave,verbose".into();
        assert!(args.check(None).unwrap().verbose);
        for (mode, told) in [
            ("boss", "knows `slave` and `verbose`"),
            (
                "slave,master",
                "with `master,slave`, is the program kontrol-master",
            ),
        ] {
            args.mode = mode.into();
            let lines = lines(&args);
            assert!(lines.len() == 1 && lines[0].ends_with(told), "{lines:?}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mut args = args();
        args.master = Some("ftp://m,m:0".into());
        args.pod.ip = Some("10.0.0".into());
        args.pod.labels = Some("{}".into());
        args.pod.annotations = Some("[1]".into());
        args.pod.podinfo = None;
        let lines = lines(&args);
        assert_eq!(lines.len(), 6, "{lines:?}");
        for flag in ["--master: ", "--ip: ", "--labels: ", "--annotations: "] {
            assert!(
                lines.iter().any(|line| line.starts_with(flag)),
                "{flag} in {lines:?}"
            );
        }
    }

    #[test]
    fn a_switch_is_on_or_off_and_nothing_else() {
        for (text, value) in [
            ("1", Some(true)),
            ("Yes", Some(true)),
            ("true", Some(true)),
            ("on", Some(true)),
            ("0 ", Some(false)),
            ("no", Some(false)),
            ("OFF", Some(false)),
            (" ", Some(false)),
            ("none", None),
            ("null", None),
            ("00", None),
            ("disabled", None),
        ] {
            assert_eq!(switch(text).ok(), value, "{text:?}");
        }
    }

    #[test]
    fn labels_that_are_no_json_are_told_once() {
        let mut args = args();
        args.pod.labels = Some("app=web".into());
        let lines = lines(&args);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("--labels: not valid JSON"));
    }

    #[test]
    fn the_annotation_names_the_masters_when_no_flag_does() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("annotations"),
            "kontrol/master=\"far:81\"\n",
        )
        .unwrap();
        let mut args = args();
        args.master = None;
        assert!(lines(&args)[0].starts_with("--master: give at least one master"));
        args.pod.podinfo = Some(folder.path().to_owned());
        assert_eq!(args.check(None).unwrap().tiers[0].to_string(), "far:81");
        let classic = r#"{"kontrol.unity3d.com/master":"near"}"#;
        args.pod.annotations = Some(classic.into());
        assert_eq!(args.check(None).unwrap().tiers[0].to_string(), "far:81");
        args.pod.podinfo = None;
        assert_eq!(args.check(None).unwrap().tiers[0].to_string(), "near:8000");
        args.pod.annotations = None;
        args.pod.podinfo = Some(folder.path().join("nowhere"));
        assert_eq!(lines(&args).len(), 1);
    }
}
