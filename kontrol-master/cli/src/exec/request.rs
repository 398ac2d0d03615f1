//! What the user asks `exec` for: flags in, a dispatch out.
//!
//! The targets and the command come from the command line alone: a callback inherits its master's variables, of which
//! `KONTROL_ID` or `KONTROL_TIMEOUT` mean something else, and must never choose where a command runs.

use super::{
    super::{ClientArgs, EndpointArgs, error::CliError, output::Choice, parse_positive, value},
    ANSWER_TIMEOUT,
};
use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use kontrol_core::{
    model::{PodKey, selector::Selector},
    strict::Numbers,
};
use kontrol_proto::v1::{self, DispatchRequest};
use std::{collections::HashSet, io, time::Duration};

/// What others call --key, which here is that of a pod.
pub(super) const CERT_KEY: &str = "cert-key";

/// Where to run what.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("dial-key", |arg| arg.long(CERT_KEY)))]
pub struct ExecArgs {
    /// Only pods with one of these roles [default: any]
    #[arg(long, value_name = "ROLE,...", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    role: Vec<String>,
    /// Only pods whose labels match, in the syntax of Kubernetes: 'app=web,tier in (a,b),!canary' [default: any]
    #[arg(long, value_parser = parse_selector)]
    selector: Option<Selector>,
    /// Pods by their keys, together with those of --id [default: any]
    #[arg(long, value_name = "KEY,...", value_delimiter = ',')]
    key: Vec<PodKey>,
    /// Pods by their ids, together with those of --key [default: any]
    #[arg(long, value_name = "ID,...", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    id: Vec<String>,
    /// Every pod [default: no]
    #[arg(long, conflicts_with_all = ["role", "selector", "key", "id"])]
    all: bool,
    /// How many pods work on it at a time; 0: all at once
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    concurrency: u32,
    /// Start on no further pod once this many failed; 0: however many
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    max_failures: u32,
    /// How long the command may run on each pod: 5, 5s, 500ms, 2m
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_positive)]
    pub(super) timeout: Duration,
    /// Most bytes of each of standard output and standard error that each pod passes on
    #[arg(long, value_name = "BYTES", default_value_t = 1024 * 1024, value_parser = clap::value_parser!(u64).range(1..))]
    max_output: u64,
    /// A variable for the command; may be repeated [default: none]
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// JSON for the command, in the variable INPUT and on standard input; - reads it from standard input [default: none]
    #[arg(long, value_name = "JSON|-", allow_negative_numbers = true)]
    input: Option<String>,
    /// Print the id of the action and leave it to itself [default: no]
    #[arg(long)]
    pub(super) detach: bool,
    /// Run this text with /bin/sh -c [default: none]
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "argv")]
    shell: Option<String>,
    /// The program to run and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    argv: Vec<String>,
    /// How to show what pods write; auto: table on a terminal, json elsewhere
    #[arg(long, env = "KONTROL_OUTPUT", value_enum, default_value = "auto")]
    pub(super) output: Shown,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// How the user wants an action shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shown {
    #[value(alias = "")]
    Auto,
    /// Lines behind the names of their pods, without control characters
    Table,
    /// Each message of the stream as a line
    Json,
    /// Bytes as they come, of all pods alike
    Raw,
}

impl ExecArgs {
    /// What the other commands have flags for.
    pub(in super::super) fn client(&self) -> ClientArgs {
        ClientArgs {
            endpoint: self.endpoint.clone(),
            timeout: ANSWER_TIMEOUT,
            output: match self.output {
                Shown::Auto => Choice::Auto,
                Shown::Table | Shown::Raw => Choice::Table,
                Shown::Json => Choice::Json,
            },
        }
    }

    /// The dispatch that was asked for; reads the input for it.
    pub(super) fn request(&self, input: &mut dyn io::Read) -> Result<DispatchRequest, CliError> {
        let selector = v1::Selector {
            keys: self.key.iter().map(PodKey::to_string).collect(),
            ids: self.id.clone(),
            roles: self.role.clone(),
            labels: self
                .selector
                .as_ref()
                .map(Selector::to_string)
                .unwrap_or_default(),
            all: self.all,
        };
        if selector == v1::Selector::default() {
            return Err(CliError::Usage(
                "say on which pods: --role, --selector, --key and --id choose some, --all means every one".to_owned(),
            ));
        }
        if self.argv.is_empty() && self.shell.is_none() {
            return Err(CliError::Usage(
                "say what to run: -- COMMAND ARGUMENT..., or --shell TEXT".to_owned(),
            ));
        }
        let mut names = HashSet::new();
        if let Some((twice, _)) = self.env.iter().find(|(name, _)| !names.insert(name)) {
            return Err(CliError::Usage(format!("--env gives {twice} twice")));
        }
        let json = self.input.as_deref();
        let command = v1::Command {
            argv: self.argv.clone(),
            shell: self.shell.clone().unwrap_or_default(),
            env: self.env.iter().cloned().collect(),
            input: None,
            input_json: json
                .map(|json| value::given("the input", json, Numbers::Exact, input))
                .transpose()?
                .unwrap_or_default()
                .into(),
        };
        Ok(DispatchRequest {
            selector: Some(selector),
            command: Some(command),
            timeout: self.timeout.try_into().ok(),
            max_output: self.max_output,
            concurrency: self.concurrency,
            max_failures: self.max_failures,
            detach: self.detach,
        })
    }
}

/// A selector that selects: `--selector "$UNSET"` must not mean every pod.
fn parse_selector(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse().map_err(|error| format!("{error}"))?;
    if selector.is_empty() {
        return Err("selects nothing: use --all for every pod".to_owned());
    }
    Ok(selector)
}

fn parse_variable(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("use NAME=VALUE"),
    }
}
