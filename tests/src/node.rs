//! The built programs as processes: masters that serve, slaves that report, and single commands.

use crate::{
    SOON,
    client::{Api, exchange},
    ports,
    process::Process,
    wait::eventually,
};
use anyhow::ensure;
use rustix::process::Signal;
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::OnceLock,
    time::Duration,
};

/// How often a master is started anew on another port when its port was taken.
const ATTEMPTS: usize = 3;

/// Where a built program is: in `KONTROL_BIN_DIR` as it stands, else where cargo puts it, built anew if need be.
pub fn program(name: &str) -> PathBuf {
    // What can't be built is not tried again by each test.
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = env::var_os("KONTROL_BIN_DIR").map(PathBuf::from);
    let dir = dir.map_or_else(|| BUILT.get_or_init(|| build(&["--bins"])).clone(), Ok);
    let dir = dir.unwrap_or_else(|error| panic!("the programs can't be built:\n{error}"));
    let path = dir.join(name);
    assert!(path.is_file(), "{} does not exist", path.display());
    path
}

/// Where a built example is.
pub fn example(name: &str) -> PathBuf {
    let dir = build(&["--example", name]);
    let dir = dir.unwrap_or_else(|error| panic!("the example {name} can't be built:\n{error}"));
    dir.join("examples").join(name)
}

/// Has cargo build these, of the profile and in the folder of this test: a test of one crate does not build what the others
/// make, and would else run what was built some time ago.
fn build(targets: &[&str]) -> Result<PathBuf, String> {
    let test = env::current_exe().unwrap();
    // target/<profile>/deps/<test>
    let dir = test.ancestors().nth(2).unwrap();
    let profile = match dir.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        name => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--workspace", "--locked", "--quiet"])
        .args(targets)
        .args(["--profile", profile, "--target-dir"])
        .arg(dir.parent().unwrap())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for (name, _) in env::vars_os() {
        // What cargo says to this test of its package. Build scripts look at it, and would run again each time.
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let built = command.output().unwrap();
    if built.status.success() {
        Ok(dir.to_owned())
    } else {
        Err(String::from_utf8_lossy(&built.stderr).into_owned())
    }
}

/// Whose programs are run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Programs {
    /// Those that were built of what is tested.
    #[default]
    Built,
    /// Those of this folder.
    In(PathBuf),
}

impl Programs {
    /// Those of the last release, where `tests/run` has built them. None, said aloud, where it could not.
    pub fn released() -> Option<Self> {
        let folder = env::var_os("KONTROL_RELEASED").map(PathBuf::from);
        if folder.is_none() {
            crate::skip("KONTROL_RELEASED names no folder with the programs of the last release");
        }
        folder.map(Self::In)
    }

    /// A command of one of them that inherits nothing from the environment of the test but its `PATH`.
    pub fn command(&self, name: &str) -> Command {
        match self {
            Self::Built => command(name),
            Self::In(folder) => alone(&folder.join(name)),
        }
    }
}

/// A command of a built program that inherits nothing from the environment of the test but its `PATH`.
pub fn command(name: &str) -> Command {
    alone(&program(name))
}

/// The same of any program.
pub fn alone(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("RUST_BACKTRACE", "1");
    command
}

/// Runs a command of a built program to its end.
pub async fn run(mut command: Command) -> Output {
    let text = format!("{command:?}");
    let run = tokio::task::spawn_blocking(move || command.output());
    tokio::time::timeout(SOON, run)
        .await
        .unwrap_or_else(|_| panic!("{text} did not end within {SOON:?}"))
        .unwrap()
        .unwrap()
}

/// A master as a process. It keeps its id, port and folder over any number of starts.
#[derive(Debug)]
pub struct Master {
    id: String,
    port: u16,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    /// What its next start runs.
    pub programs: Programs,
    process: Option<Process>,
    /// Earlier starts: what they left behind is killed with the test, not before, so that it can be looked at.
    retired: Vec<Process>,
}

impl Master {
    /// A master that is not started yet. Settings are flags without their dashes, with their values.
    pub fn new(
        id: &str,
        settings: Vec<(String, String)>,
        environment: Vec<(String, String)>,
        dir: &Path,
    ) -> Self {
        Self {
            id: id.to_owned(),
            port: ports::free(),
            settings,
            environment,
            log: dir.join(format!("{id}.log")),
            programs: Programs::Built,
            process: None,
            retired: Vec::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its one port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` of it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// A client of it.
    pub fn api(&self) -> Api {
        Api::new(self.url())
    }

    /// Sets a flag, without its dashes, for the next start, in place of what it was set to.
    pub fn set(&mut self, flag: &str, value: &str) {
        self.settings.retain(|(name, _)| name != flag);
        self.settings.push((flag.into(), value.into()));
    }

    /// Starts it, and lets it come up by itself.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.id);
        // They share one log, which is to be shown once.
        self.retired = self.retired.drain(..).map(Process::quiet).collect();
        let mut command = self.programs.command("kontrol-master");
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--advertise", &self.address(), "--id", &self.id]);
        for (flag, value) in &self.settings {
            command.arg(format!("--{flag}")).arg(value);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn(&self.id, &mut command, &self.log));
    }

    /// Starts it and waits until it listens; with another port when this one was taken meanwhile.
    pub async fn start(&mut self) {
        for _ in 0..ATTEMPTS {
            self.launch();
            if self.listening().await {
                return;
            }
            self.process = None;
            self.port = ports::free();
        }
        panic!("found no free port for {} in {ATTEMPTS} attempts", self.id);
    }

    /// Waits until it listens. False when it ended because its port was taken.
    async fn listening(&mut self) -> bool {
        let url = format!("{}/healthz", self.url());
        let id = self.id.clone();
        let process = self.process.as_mut().unwrap();
        eventually(SOON, &format!("{id} that listens"), async || {
            if let Some(status) = process.status() {
                let log = process.log();
                if log.to_lowercase().contains("in use") {
                    return Ok(false);
                }
                panic!("{id} ended at once ({status}):\n{log}");
            }
            let answer = exchange("GET", &url, "", Vec::new()).await?;
            ensure!(answer.status == 200, "/healthz answers {}", answer.status);
            Ok(true)
        })
        .await
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let url = format!("{}/readyz", self.url());
        eventually(SOON, &format!("{} that is ready", self.id), async || {
            let answer = exchange("GET", &url, "", Vec::new()).await?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
            Ok(())
        })
        .await;
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.status().is_none())
    }

    /// Its process. Panics when it was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process
            .as_mut()
            .unwrap_or_else(|| panic!("{} does not run", self.id))
    }

    /// Everything that it logged, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it (SIGKILL). What it had started is left alone until the end of the test.
    pub fn kill(&mut self) {
        self.process().kill();
        self.retire();
    }

    /// Stops it as an operator would (SIGTERM), and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process().signal(Signal::TERM);
        let status = self.process().ended(SOON).await;
        self.retire();
        status
    }

    fn retire(&mut self) {
        self.retired.extend(self.process.take());
    }

    /// Pauses it (SIGSTOP).
    pub fn pause(&mut self) {
        self.process().signal(Signal::STOP);
    }

    /// Lets it go on after a pause.
    pub fn resume(&mut self) {
        self.process().signal(Signal::CONT);
    }
}

/// A slave as a process.
#[derive(Debug)]
pub struct Slave {
    process: Process,
}

impl Slave {
    /// Starts one. Settings are flags without their dashes, with their values.
    pub fn start(name: &str, settings: &[(&str, &str)], dir: &Path) -> Self {
        Self::of(&Programs::Built, name, settings, dir)
    }

    /// The same, of these programs.
    pub fn of(programs: &Programs, name: &str, settings: &[(&str, &str)], dir: &Path) -> Self {
        let mut command = programs.command("kontrol-slave");
        for (flag, value) in settings {
            command.arg(format!("--{flag}"));
            // A switch has no value.
            command.args(Some(value).filter(|value| !value.is_empty()));
        }
        let log = dir.join(format!("{name}.log"));
        Self {
            process: Process::spawn(name, &mut command, &log),
        }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything that it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it as an operator would (SIGTERM), and waits for its end.
    pub async fn stop(&mut self, within: Duration) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.ended(within).await
    }
}
