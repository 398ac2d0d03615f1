//! `kontrol-master`: serves, asks a master that does, or tries a callback.

use clap::{Parser, Subcommand};
use kontrol_cli as cli;
use kontrol_master::{
    config::ServeArgs,
    health::{self, HealthArgs, HealthError},
    server::Server,
    token::{self, TokenCommand},
    trial::{self, CallbackCommand},
};
use kontrol_runtime::{command_line, logging, process, supervise};
use std::process::ExitCode;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

/// What the program calls itself where it says something.
const NAME: &str = "kontrol-master";

/// Keeps the roster of live pods in etcd, elects a leader, and runs your callback there when the roster changes.
///
/// Without a command it serves. With one it asks a master that does; `callback test` and `token new` need none, and `health` asks the one beside it. Each flag can be given as a
/// variable instead, but for most of `exec`, of `callback test`, of `token new`, of `health`, and of what operates a tier: --some-flag is
/// KONTROL_SOME_FLAG. Flags win. A DURATION is 25 (seconds), 25s, 500ms, 2m or 1h. Wrong settings end with
/// code 2 before anything is bound.
#[derive(Debug, Parser)]
#[command(
    name = "kontrol-master",
    version,
    max_term_width = 110,
    args_override_self = true
)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do other than to serve.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Ask(cli::Command),
    /// Try a callback here, before a master runs it
    #[command(subcommand, arg_required_else_help = false)]
    Callback(CallbackCommand),
    /// Tell by the exit code whether the master beside this command is ready: 0, or 1 and why not
    ///
    /// It is for health checks, in the image of the master for instance, and takes neither token nor shell. The master's settings
    /// are read from its variables; where it was given them as flags, give --endpoint.
    Health(HealthArgs),
    /// Make a token, by which a master knows who asks
    #[command(subcommand, arg_required_else_help = false)]
    Token(TokenCommand),
}

fn main() -> ExitCode {
    if let Some(code) = process::helper() {
        return code;
    }
    let code = match process::start_clean() {
        Ok(()) => run(),
        Err(error) => command_line::fail(NAME, &error),
    };
    logging::flush();
    code
}

fn run() -> ExitCode {
    match command_line::parse::<Cli>() {
        Ok(cli) => match cli.command {
            Some(Command::Ask(command)) => ask(command),
            Some(Command::Callback(command)) => try_callback(command),
            Some(Command::Health(args)) => tell_health(&cli.serve, args),
            Some(Command::Token(command)) => make_token(command),
            None => serve(cli.serve),
        },
        Err(error) => command_line::refuse(NAME, &error),
    }
}

fn ask(command: cli::Command) -> ExitCode {
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run(command));
            // Standard input may still be read by a thread that nobody waits for.
            runtime.shutdown_background();
            code
        }
        Err(error) => command_line::fail(NAME, &format_args!("can't start the runtime: {error}")),
    }
}

fn try_callback(command: CallbackCommand) -> ExitCode {
    // As of a master: the callback could read the variables of this program, secrets among them.
    let _ = process::keep_private();
    // Signals have a thread of their own: whoever reads the output may take long, which blocks the one that writes.
    match Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = runtime.block_on(async {
                let token = CancellationToken::new();
                match supervise::signals(token.clone()) {
                    Ok(signals) => drop(tokio::spawn(signals)),
                    Err(error) => return command_line::fail(NAME, &error),
                }
                trial::run(command, token).await
            });
            runtime.shutdown_background();
            code
        }
        Err(error) => command_line::fail(NAME, &format_args!("can't start the runtime: {error}")),
    }
}

fn make_token(command: TokenCommand) -> ExitCode {
    match token::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_usage() => {
            logging::say(format_args!("{NAME}: {error}; see {NAME} token new --help"));
            ExitCode::from(command_line::WRONG_SETTINGS)
        }
        Err(error) => command_line::fail(NAME, &error),
    }
}

fn tell_health(serve: &ServeArgs, args: HealthArgs) -> ExitCode {
    let told = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(health::run(serve, args)),
        Err(error) => {
            return command_line::fail(NAME, &format_args!("can't start the runtime: {error}"));
        }
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(HealthError::Settings(mistakes)) => command_line::refuse_settings(NAME, &mistakes),
        Err(error @ HealthError::NotReady(..)) => command_line::fail(NAME, &error),
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    process::raise_open_files();
    let (format, verbose) = (args.log_format(), args.verbose());
    let config = match args.check(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(mistakes) => return command_line::refuse_settings(NAME, &mistakes),
    };
    if let Err(error) = logging::init(format, verbose) {
        return command_line::fail(NAME, &error);
    }
    if let Err(error) = process::keep_private() {
        tracing::warn!("commands could read the variables of this program: {error}");
    }
    if std::env::args().any(|word| word.starts_with("--etcd-password")) {
        tracing::warn!(
            "a list of processes shows the password of --etcd-password: give it as KONTROL_ETCD_PASSWORD"
        );
    }
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return command_line::fail(NAME, &format_args!("can't start the runtime: {error}"));
        }
    };
    let served = runtime.block_on(async {
        let token = CancellationToken::new();
        let signals = supervise::signals(token.clone())?;
        let server = Server::bind(config).await?;
        tokio::select! {
            served = server.run(token) => served,
            never = signals => match never {},
        }
    });
    // What may block for good (a file system that hangs) must not hold up the end.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => command_line::fail(NAME, &format_args!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, CommandFactory};
    use std::ffi::OsStr;

    /// Flags that have no variable. A callback inherits the variables of its master.
    ///
    /// `exec`: `KONTROL_ID` or `KONTROL_TIMEOUT` of that would send its commands to other pods, or end them at another time,
    /// than it says. `run`, `hold`, `evict`: what was set once would go on with each of them. A callback that asks for a run
    /// would do so again and again, or wait for one that comes behind itself; and a reason would be told of what has another.
    /// `new`: whose token is made is said each time.
    /// `health`: what clients are told to ask is not the master beside it.
    /// `test`: which callback is tried, and which tier it reads or acts on, is said where it is run.
    fn without_variable(command: &str) -> &'static [&'static str] {
        match command {
            "exec" => &[
                "role",
                "selector",
                "key",
                "id",
                "all",
                "concurrency",
                "max-failures",
                "timeout",
                "max-output",
                "env",
                "input",
                "detach",
                "shell",
            ],
            "test" => &["shell", "pods", "from", "real-endpoint"],
            "run" => &["again", "reason", "wait"],
            "hold" => &["for"],
            "evict" => &["reason"],
            "new" => &["role", "name", "valid"],
            "health" => &["endpoint", "timeout"],
            _ => &[],
        }
    }

    /// Whether Kubernetes puts a variable of that name into every pod that is beside a Service of ours. The one that has the
    /// name of a setting tells an URL, which counts as none.
    fn is_service_variable(name: &str) -> bool {
        ["KONTROL", "KONTROL_MASTER", "KONTROL_SLAVE"]
            .iter()
            .any(|service| {
                let rest = name.strip_prefix(service).unwrap_or_default();
                rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_")
            })
    }

    fn check(command: &Command) {
        for arg in command.get_arguments() {
            let Some(flag) = arg
                .get_long()
                .filter(|flag| !["help", "version"].contains(flag))
            else {
                continue;
            };
            // There --key is that of a pod.
            let name = if flag == "cert-key" { "key" } else { flag };
            let variable = format!("KONTROL_{}", name.to_uppercase().replace('-', "_"));
            let without = without_variable(command.get_name()).contains(&flag);
            assert_eq!(
                arg.get_env().and_then(OsStr::to_str),
                (!without).then_some(variable.as_str()),
                "{flag}"
            );
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.to_lowercase().contains("default:") || !arg.get_default_values().is_empty(),
                "{flag} tells no default: {help}"
            );
            let link = is_service_variable(&variable);
            assert!(!link || flag == "port", "{flag} is set by Kubernetes");
        }
        command.get_subcommands().for_each(check);
    }

    #[test]
    fn each_flag_has_its_variable_and_tells_its_default() {
        Cli::command().debug_assert();
        check(&Cli::command());
    }
}
