//! The command line's clients, which ask any master of a tier: `status`, `pods`, `watch`, `explain` and `state` tell what
//! is; `preview`, `run`, `hold`, `resume`, `evict` and `release` operate it; `exec` and `actions` run commands on pods.
//!
//! They only speak `kontrol.v1`, so that they work against every master, near or far, and know nothing but what it
//! tells. Answers go to standard output, as tables for a person or as JSON for a program; everything else goes to
//! standard error. An empty variable counts as an absent one. Exit codes: 0 done, 1 it failed, 2 it was asked wrongly;
//! `exec` has more, and `run --wait` 130 after Ctrl-C. A reader that goes away (`| head`) is no failure, but for what `exec` still runs.

mod actions;
mod endpoint;
mod error;
mod exec;
mod explain;
mod masters;
mod operate;
mod output;
mod pods;
mod state;
mod status;
mod stdio;
mod stop;
mod text;
mod tier;
mod value;
mod watch;

#[cfg(test)]
mod tests;

pub use endpoint::MasterUrls;
pub use tier::{Tier, tier};

/// How an answer is shown, for commands that ask no master.
pub mod show {
    pub use super::{
        error::CliError,
        output::{Choice, Format, Output, Style},
        stdio::Blocking,
        stop::INTERRUPTED,
        text::{clean, clean_line, shorten, span},
    };
}

use clap::{Arg, Args, Subcommand};
use endpoint::DEFAULT_ENDPOINT;
use error::CliError;
use kontrol_runtime::dial::{self, Credentials, DialArgs};
use masters::Masters;
use output::{Choice, Output};
use std::{io, mem, process::ExitCode, time::Duration};
use stdio::Blocking;
use stop::{Heeds, Signals};
use tokio::{runtime::Handle, sync};

/// What to ask a master.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell the ensemble's digest, leader, masters, callback and settings
    Status(ClientArgs),
    /// List the live pods in the order of their seq
    Pods(pods::PodsArgs),
    /// Follow the ensemble: one line for each change, until Ctrl-C
    Watch(watch::WatchArgs),
    /// Explain why a pod is in the roster or not
    Explain(explain::ExplainArgs),
    /// Show the callback's persisted state, or replace it
    State(state::StateArgs),
    /// Show what the next run of the callback would be handed, and what it waits for
    ///
    /// Nothing runs. With --output json it is all there, the input of the callback included; the answer of a large ensemble
    /// takes a while, so that it may need more --timeout.
    Preview(ClientArgs),
    /// Have the callback run now, without waiting for the damper or for the next try
    ///
    /// A run that goes on is not stopped: this one comes behind it. Nothing runs for a digest that was handled already, but
    /// with --again. The exit code is 1 when the callback is held, and with --wait when the run fails.
    ///
    /// Only --endpoint, what is shown to masters, --timeout and --output can be given as variables: a callback inherits those of its master, and a
    /// run that waits for another run, or asks for one again, must be meant.
    Run(operate::run::RunArgs),
    /// Hold the callback: no run starts for a time, or until it is resumed
    ///
    /// Changes gather meanwhile, and one run follows. A run that goes on is not stopped. A hold that stands is replaced.
    ///
    /// Only --endpoint, what is shown to masters, --timeout and --output can be given as variables: how long is said with each hold.
    Hold(operate::hold::HoldArgs),
    /// End the hold of the callback
    Resume(operate::hold::ResumeArgs),
    /// Remove a pod from the roster
    ///
    /// A pod that lives is back with its next keepalive, as a new one: stop its slave first if it is to stay away.
    ///
    /// Only --endpoint, what is shown to masters, --timeout and --output can be given as variables: why is said with each pod.
    Evict(operate::evict::EvictArgs),
    /// End the safeguard: the silent pods that it keeps in the roster leave now
    Release(operate::release::ReleaseArgs),
    /// Run a command on pods and show what becomes of it
    ///
    /// It runs on the pods that --key and --id name, or on all, as far as they meet --role and --selector. Ctrl-C cancels
    /// it; a second one leaves at once.
    ///
    /// The exit code is the highest of all pods: that of the command, 128 + N when signal N ended it, 124 timed out, 126
    /// refused by the pod, 130 cancelled, 255 unreachable or lost, and also when the stream broke, so that the end is not
    /// known here. It is 1 when no master takes it or no pod matches, 2 when it was asked wrongly, 130 after Ctrl-C, and 141 when the reader of its output went away, which cancels it.
    ///
    /// Limits: 512 KiB of command and variables, 1 MiB of input, 7 days of --timeout, 1 GiB of --max-output.
    ///
    /// Only --endpoint, what is shown to masters, and --output can be given as variables: a callback inherits those of its master, which must not
    /// choose where a command runs.
    Exec(exec::ExecArgs),
    /// List the actions of late, show one with its results, or cancel one
    Actions(actions::ActionsArgs),
}

const DEFAULT_TIMEOUT: &str = "5s";

/// Which masters to ask.
#[derive(Debug, Clone, Args)]
#[command(mut_args(everywhere))]
pub struct EndpointArgs {
    /// The master to ask: a URL (https:// for TLS) or `host[:port]`, the port being 8000 unless given. Of several, separated by commas,
    /// the first that can answer does
    #[arg(
        long = "endpoint",
        global = true,
        env = "KONTROL_ENDPOINT",
        value_name = "URL,...",
        default_value = DEFAULT_ENDPOINT
    )]
    urls: MasterUrls,
    #[command(flatten, next_help_heading = "Dialling masters")]
    dial: DialArgs,
}

impl EndpointArgs {
    /// What is shown to masters, and whom to trust. `token`: the variable KONTROL_TOKEN.
    fn credentials(&self, token: Option<String>) -> Result<Credentials, CliError> {
        credentials(&self.dial, token)
    }
}

/// What is said of dialling may stand behind any word of a command, as --endpoint may.
fn everywhere(arg: Arg) -> Arg {
    let dials = arg.get_id().as_str().starts_with("dial-");
    if dials { arg.global(true) } else { arg }
}

fn credentials(dial: &DialArgs, token: Option<String>) -> Result<Credentials, CliError> {
    dial.check(token).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        CliError::Usage(lines.join("; "))
    })
}

/// Which masters to ask, and how to show what they answer.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// How long each master may take to answer: 5, 5s, 500ms, 2m
    #[arg(long, global = true, env = "KONTROL_TIMEOUT", value_name = "DURATION", default_value = DEFAULT_TIMEOUT, value_parser = parse_timeout)]
    timeout: Duration,
    /// How to show the answer; auto: as a table on a terminal, as JSON elsewhere
    #[arg(
        long,
        global = true,
        env = "KONTROL_OUTPUT",
        value_enum,
        default_value = "auto"
    )]
    output: Choice,
    // Last, for its heading goes on.
    #[command(flatten)]
    endpoint: EndpointArgs,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let text = if text.is_empty() {
        DEFAULT_TIMEOUT
    } else {
        text
    };
    parse_positive(text)
}

fn parse_positive(text: &str) -> Result<Duration, String> {
    match kontrol_runtime::duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

impl Command {
    fn client(&self) -> ClientArgs {
        match self {
            Self::Status(client) => client.clone(),
            Self::Pods(args) => args.client.clone(),
            Self::Watch(args) => args.client.clone(),
            Self::Explain(args) => args.client.clone(),
            Self::State(args) => args.client.clone(),
            Self::Preview(client) => client.clone(),
            Self::Run(args) => args.client.clone(),
            Self::Hold(args) => args.client.clone(),
            Self::Resume(args) => args.client.clone(),
            Self::Evict(args) => args.client.clone(),
            Self::Release(args) => args.client.clone(),
            Self::Exec(args) => args.client(),
            Self::Actions(args) => args.client.clone(),
        }
    }
}

/// Does what was asked, says on standard error why it can't, and tells the exit code.
///
/// Whoever reads the answer may take long (`| less`), which blocks the thread that writes. So that is not the thread
/// that keeps the connection alive: a master ends a connection that is silent. A user who asks for an end meanwhile gets one,
/// too: leaving, which cancels what runs.
pub async fn run(command: Command) -> ExitCode {
    let runtime = Handle::current();
    let (heeds, heeded) = sync::watch::channel(Heeds::default());
    let mut done = tokio::task::spawn_blocking(move || {
        let mut out = Blocking(io::stdout());
        let mut err = Blocking(io::stderr());
        let mut output = Output::new(command.client().output, &mut out, &mut err);
        let mut signals = Signals::default();
        let mut stop = async || {
            heeds.send_if_modified(|heeds| !mem::replace(&mut heeds.listens, true));
            signals.next().await;
            heeds.send_modify(|heeds| heeds.times += 1);
        };
        let mut input = Blocking(io::stdin());
        runtime.block_on(finish(&command, &mut output, &mut input, &mut stop))
    });
    tokio::select! {
        biased;
        done = &mut done => match done {
            Ok(code) => code.into(),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        },
        () = stop::unheeded(heeded) => stop::INTERRUPTED.into(),
    }
}

/// Does what was asked and says why it can't; tells the exit code.
async fn finish(
    command: &Command,
    output: &mut Output<'_>,
    input: &mut dyn io::Read,
    stop: &mut impl AsyncFnMut(),
) -> u8 {
    match execute(command, output, input, stop).await {
        Ok(code) => code,
        Err(error) => {
            if let Some(message) = error.message() {
                output.note(format_args!("error: {message}"));
            }
            error.exit_code()
        }
    }
}

/// Tells the exit code. `stop` is done when the user asks for an end, each time anew: it ends what has none of its own.
async fn execute(
    command: &Command,
    output: &mut Output<'_>,
    input: &mut dyn io::Read,
    stop: &mut impl AsyncFnMut(),
) -> Result<u8, CliError> {
    let client = command.client();
    let credentials = client.endpoint.credentials(dial::token_variable());
    let credentials = credentials.map_err(|error| match (command, error) {
        (Command::Exec(_), CliError::Usage(line)) => CliError::Usage(exec::renamed(&line)),
        (_, error) => error,
    })?;
    if let Some(line) = credentials.remark() {
        output.note(format_args!("warning: {line}"));
    }
    let masters = Masters::new(&client.endpoint.urls, credentials, client.timeout);
    match command {
        Command::Status(_) => status::run(&masters, output).await,
        Command::Pods(args) => pods::run(&masters, args, output).await,
        Command::Watch(args) => watch::run(&masters, args, output, stop).await,
        Command::Explain(args) => explain::run(&masters, args, output).await,
        Command::State(args) => state::run(&masters, args, input, output).await,
        Command::Preview(_) => operate::preview::run(&masters, output).await,
        Command::Run(args) => return operate::run::run(&masters, args, output, stop).await,
        Command::Hold(args) => operate::hold::hold(&masters, args, output).await,
        Command::Resume(args) => operate::hold::resume(&masters, args, output).await,
        Command::Evict(args) => operate::evict::run(&masters, args, output).await,
        Command::Release(args) => operate::release::run(&masters, args, output).await,
        Command::Exec(args) => return exec::run(&masters, args, input, output, stop).await,
        Command::Actions(args) => actions::run(&masters, args, output).await,
    }?;
    Ok(0)
}
