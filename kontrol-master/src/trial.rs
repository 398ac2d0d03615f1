//! `kontrol-master callback test`: runs a callback on the user's machine, by the very code of a leader.
//!
//! ```text
//! made up, or --from a tier ──▶ two rosters and a state ──▶ callback::run, twice ──▶ a report on each run, an exit code
//! ```
//!
//! Nothing is stored, and a master is only read. What the callback itself does is done: it finds no master at its
//! KONTROL_ENDPOINT unless the user says so.

mod report;
mod roster;

use crate::ensemble::callback::{Input, Program, Run, Runner, Settings, Validity, changes};
use clap::{Args, Subcommand, value_parser};
use kontrol_cli::{
    MasterUrls,
    show::{Blocking, Choice, CliError, Format, INTERRUPTED, Output, Style},
    tier,
};
use kontrol_core::model::{Digest, Pod, Reason, digest::pods_document};
use kontrol_runtime::{dial::DialArgs, duration};
use report::{Changes, Handed, Heard, Report};
use roster::{MAX_PODS, Scene};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpSocket, sync::watch};
use tokio_util::sync::CancellationToken;

/// The exit code when the reader of the output went away: a shell's, for SIGPIPE.
const READER_LEFT: u8 = 141;

/// What to do with a callback.
#[derive(Debug, Subcommand)]
pub enum CallbackCommand {
    /// Run a callback here, twice, without a master, under the very rules that a leader has
    ///
    /// It gets the environment, files and standard input of a leader's callback, and is held to the same limits: time-out,
    /// exit code, size and form of what it prints, nothing left behind. The first run says that all pods joined, the second
    /// hands on the state that the first one left, and CHANGES tells what has changed.
    ///
    /// Without --from the pods are made up, always the same, at addresses that no host has. The first run finds no state.
    /// For the second one pod has left, one has joined, and one has another payload.
    ///
    /// With --from the pods and the state are those of a tier, which is only read: nothing is stored. The first run finds
    /// the real state, if there is one, and one pod more than there are: `callback-test`, like the last of them, at an
    /// address that no host has. For the second it has left, so that no real pod is ever said to be gone.
    ///
    /// What the callback does is done for real; a variable of your own (DRY_RUN=1 kontrol-master callback test ...) reaches
    /// it. KONTROL_ENDPOINT is an address at which nobody answers, so that it can't act on a tier, but see --real-endpoint.
    /// After a first run that is refused the second is handed all as joined, as by a leader that tries again.
    ///
    /// The exit code is 0 when both runs would be accepted, 1 when one would be refused or no master can be asked, 2 when
    /// it was asked wrongly, 130 after Ctrl-C, which ends the run and all that it started, and 141 when the reader of its
    /// output went away.
    Test(TestArgs),
}

/// Which callback to run, and on what.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The callback: path of an executable, or words as for --callback. Default: none; it or --shell is needed
    #[arg(value_name = "FILE", required_unless_present = "shell", value_parser = Program::exec)]
    file: Option<Program>,

    /// The callback as text for /bin/sh -c, instead. Default: none
    #[arg(long, value_name = "TEXT", conflicts_with = "file", value_parser = Program::shell)]
    shell: Option<Program>,

    /// How many pods to make up, up to 100000
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        conflicts_with = "from",
        value_parser = value_parser!(u32).range(..=i64::from(MAX_PODS))
    )]
    pods: u32,

    /// The pods and the state of the tier of these masters, instead: the first that can answer is read. Default: none
    #[arg(long, value_name = "URL,...", value_parser = masters)]
    from: Option<MasterUrls>,

    /// Let the callback reach the masters of --from as KONTROL_ENDPOINT. What it does there is done. Default: no
    #[arg(long, requires = "from")]
    real_endpoint: bool,

    /// How long each run may take
    #[arg(
        long,
        env = "KONTROL_CALLBACK_TIMEOUT",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = timeout
    )]
    callback_timeout: Duration,

    /// How to show the runs; auto: as text on a terminal, as JSON elsewhere, one document a run
    #[arg(long, env = "KONTROL_OUTPUT", value_enum, default_value = "auto")]
    output: Choice,

    #[command(flatten, next_help_heading = "Dialling the masters of --from")]
    dial: DialArgs,
}

fn masters(text: &str) -> Result<MasterUrls, String> {
    if text.trim().is_empty() {
        return Err("names no master".to_owned());
    }
    text.parse()
}

fn timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Tries a callback, shows what came of it, and tells the exit code. `token` ends it.
pub async fn run(command: CallbackCommand, token: CancellationToken) -> ExitCode {
    let CallbackCommand::Test(args) = command;
    let (mut out, mut err) = (Blocking(io::stdout()), Blocking(io::stderr()));
    let mut output = Output::new(args.output, &mut out, &mut err);
    let code = match test(args, &mut output, &token).await {
        Ok(code) => code,
        // Nobody knows then what came of it.
        Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => READER_LEFT,
        Err(error) => {
            if let Some(message) = error.message() {
                output.note(format_args!("error: {message}"));
            }
            error.exit_code()
        }
    };
    code.into()
}

async fn test(
    args: TestArgs,
    output: &mut Output<'_>,
    token: &CancellationToken,
) -> Result<u8, CliError> {
    let Some(program) = args.file.or(args.shell) else {
        return Err(CliError::Usage("give a FILE, or --shell".to_owned()));
    };
    let Some(scene) = token
        .run_until_cancelled(scene(args.from.as_ref(), &args.dial, args.pods))
        .await
    else {
        return Ok(INTERRUPTED);
    };
    let nobody = Nobody::new().map_err(|error| {
        CliError::Failed(format!(
            "can't take an address for KONTROL_ENDPOINT: {error}"
        ))
    })?;
    let endpoint = match args.from {
        Some(urls) if args.real_endpoint => urls.to_string(),
        _ => format!("http://{}", nobody.address),
    };
    let trial = Trial {
        settings: Settings {
            timeout: args.callback_timeout,
            ..Settings::new(program, endpoint)
        },
        scene: scene?,
    };
    trial.run(output, token).await
}

async fn scene(from: Option<&MasterUrls>, dial: &DialArgs, pods: u32) -> Result<Scene, CliError> {
    match from {
        None => Ok(Scene::made_up(pods)),
        Some(urls) => Scene::of(tier(urls, dial, "from").await?).map_err(CliError::Failed),
    }
}

/// An address of this host that refuses every connection, and goes to nobody else, while this is held.
struct Nobody {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl Nobody {
    fn new() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self {
            address: socket.local_addr()?,
            _socket: socket,
        })
    }
}

/// A callback and what it is tried on.
struct Trial {
    settings: Settings,
    scene: Scene,
}

impl Trial {
    async fn run(self, output: &mut Output<'_>, token: &CancellationToken) -> Result<u8, CliError> {
        let Scene {
            first,
            second,
            state,
            epoch,
        } = &self.scene;
        let mut state = state.clone();
        let mut handled: Option<(Digest, &Vec<Arc<Pod>>)> = None;
        let mut accepted = true;
        for (number, pods) in [(1, first), (2, second)] {
            // Nobody has left: the harder case is tried.
            let changes = changes::document(handled.take(), pods, |_| Reason::Lost);
            let input = Input {
                digest: Digest::of(pods.iter()),
                pods: pods_document(pods.iter()),
                state: state.clone(),
                changes,
                epoch: *epoch,
                token: None,
            };
            let digest = input.digest;
            let run = self.one(number, pods.len(), input, output, token).await?;
            if token.is_cancelled() {
                output.note("stopped, with all that the callback started");
                return Ok(INTERRUPTED);
            }
            match run.outcome {
                Ok(left) => {
                    state = left.or(state);
                    handled = Some((digest, pods));
                }
                Err(_) => accepted = false,
            }
        }
        Ok(u8::from(!accepted))
    }

    /// One run, shown unless it was stopped.
    async fn one(
        &self,
        number: u8,
        pods: usize,
        input: Input,
        output: &mut Output<'_>,
        token: &CancellationToken,
    ) -> Result<Run, CliError> {
        let handed = Handed {
            digest: input.digest.to_string(),
            pods,
            changes: Changes::read(&input.changes),
            epoch: input.epoch,
            state: input.state.clone(),
        };
        if output.format() == Format::Table {
            let title = format!("run {number} of 2");
            output.line(output.paint(Style::Bold, &title))?;
            output.line(handed.text())?;
        }
        let heard = Arc::new(Heard::default());
        let settings = Settings {
            listener: Arc::clone(&heard) as _,
            ..self.settings.clone()
        };
        let (_forever, lease) = watch::channel(Validity::Forever);
        let run = settings.run(input, lease, token.clone()).await;
        if token.is_cancelled() {
            return Ok(run);
        }
        let report = Report::new(number, &handed, &run, &heard);
        match output.format() {
            Format::Json => {
                let document = report.json().map_err(|error| {
                    CliError::Failed(format!("cannot show the run as JSON: {error}"))
                })?;
                output.line(document)?;
            }
            Format::Table => {
                output.line(report.text())?;
                let style = if run.outcome.is_ok() {
                    Style::Good
                } else {
                    Style::Bad
                };
                output.line(output.paint(style, &report.verdict()))?;
            }
        }
        Ok(run)
    }
}
