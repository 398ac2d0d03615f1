//! The command line's clients: `status`, `pods`, `watch`, `state`, `explain` and `actions` ask any master of a tier.
//!
//! They only speak `kontrol.v1`, so that they work against every master, near or far, and know nothing but what it
//! tells. Answers go to standard output, as tables for a person or as JSON for a program; everything else goes to
//! standard error. An empty variable counts as an absent one. Exit codes: 0 done, 1 it failed, 2 it was asked wrongly.
//! A reader that goes away (`| head`) is no failure.

mod actions;
mod endpoint;
mod error;
mod explain;
mod masters;
mod output;
mod pods;
mod state;
mod status;
mod stop;
mod text;
mod value;
mod watch;

#[cfg(test)]
mod tests;

use clap::{Args, Subcommand};
use endpoint::{DEFAULT_ENDPOINT, MasterUrls};
use error::CliError;
use masters::Masters;
use output::{Choice, Output};
use std::{io, process::ExitCode, time::Duration};
use stop::Signals;

/// What to ask a master.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell the ensemble's digest, leader, masters, callback and settings
    Status(ClientArgs),
    /// List the live pods in the order of their seq
    Pods(pods::PodsArgs),
    /// Follow the ensemble: one line for each change, until Ctrl-C
    Watch(watch::WatchArgs),
    /// Show the callback's persisted state, or replace it
    State(state::StateArgs),
    /// Explain why a pod is in the roster or not
    Explain(explain::ExplainArgs),
    /// List the actions of late, show one with its results, or cancel one
    Actions(actions::ActionsArgs),
}

const DEFAULT_TIMEOUT: &str = "5s";

/// Which masters to ask, and how to show what they answer.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// The master to ask: a URL or `host[:port]`, the port being 8000 unless given. Of several, separated by commas,
    /// the first that can answer does
    #[arg(
        long,
        global = true,
        env = "KONTROL_ENDPOINT",
        value_name = "URL,...",
        default_value = DEFAULT_ENDPOINT
    )]
    endpoint: MasterUrls,
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
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let text = if text.is_empty() {
        DEFAULT_TIMEOUT
    } else {
        text
    };
    match kontrol_slave::duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

impl Command {
    fn client(&self) -> &ClientArgs {
        match self {
            Self::Status(client) => client,
            Self::Pods(args) => &args.client,
            Self::Watch(args) => &args.client,
            Self::State(args) => &args.client,
            Self::Explain(args) => &args.client,
            Self::Actions(args) => &args.client,
        }
    }
}

/// Does what was asked, says on standard error why it can't, and tells the exit code.
pub async fn run(command: Command) -> ExitCode {
    let client = command.client();
    let mut out = io::stdout();
    let mut err = io::stderr();
    let mut output = Output::new(client.output, &mut out, &mut err);
    let mut signals = Signals::default();
    let mut stop = async || signals.next().await;
    let code = finish(&command, &mut output, &mut io::stdin(), &mut stop).await;
    ExitCode::from(code)
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
    let masters = Masters::new(&client.endpoint, client.timeout);
    match command {
        Command::Status(_) => status::run(&masters, output).await,
        Command::Pods(args) => pods::run(&masters, args, output).await,
        Command::Watch(args) => watch::run(&masters, args, output, stop).await,
        Command::State(args) => state::run(&masters, args, input, output).await,
        Command::Explain(args) => explain::run(&masters, args, output).await,
        Command::Actions(args) => actions::run(&masters, args, output).await,
    }?;
    Ok(0)
}
