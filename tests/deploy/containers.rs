//! Containers for tests: podman with a storage of its own below `target/deploy`, and the images of the built programs in it.
//!
//! ```text
//! target/deploy/<what>-<hash>.tar   roots of Debian's packages, kept: each takes half a minute and the network
//! target/deploy/engine/             images, containers, networks: made anew by each run, under a lock that the run holds
//! ```
//!
//! Nothing of this machine's own containers is seen or changed. What a test made goes with its [`Scene`].

use anyhow::ensure;
use kontrol_tests::{house::project, node::program, wait::eventually};
use std::{
    collections::hash_map::DefaultHasher,
    env,
    fs::{self, File},
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

/// A deadline for what happens in containers: podman itself may wait for 20 s, where nothing reaps what lost its parent.
pub(crate) const LONG: Duration = Duration::from_secs(90);

/// What a container is held to: no capability, no way to gain one, nothing to write to but /tmp.
pub(crate) const HARDENED: [&str; 6] = [
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--memory=512m",
    "--pids-limit=200",
];

/// What holds the network of a pod, and an app that only waits.
const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// The engine of this test run, and where its files are.
pub(crate) struct Engine {
    dir: PathBuf,
    /// Held until the process ends.
    _lock: File,
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// The engine, with the images `kontrol-master`, `kontrol-slave` and `kontrol-base` in it. None where there can be none, which
/// is said aloud.
pub(crate) async fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceCell<Result<Engine, String>> = OnceCell::const_new();
    let engine = ENGINE.get_or_init(async || {
        missing(&["podman", "runc", "mmdebstrap"])?;
        let made = tokio::task::spawn_blocking(Engine::make).await;
        Ok(made.unwrap())
    });
    match engine.await {
        Ok(engine) => Some(engine),
        Err(why) => {
            kontrol_tests::skip(why);
            None
        }
    }
}

/// What this machine lacks, of programs and of rights.
pub(crate) fn missing(programs: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("containers are run as root here".to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing: Vec<_> = programs.iter().filter(|name| !has(name)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("there is no {}", missing.join(", no ")))
}

impl Engine {
    fn make() -> Self {
        let target = program("kontrol-master");
        let cache = project().join("target/deploy");
        let dir = cache.join("engine");
        fs::create_dir_all(&dir).unwrap();
        let lock = File::create(cache.join("lock")).unwrap();
        lock.lock().unwrap();
        let engine = Self { dir, _lock: lock };
        engine.configure();
        // What a run left that was killed.
        engine.ran("podman", &["pod", "rm", "--all", "--force", "--time=0"]);
        engine.ran("podman", &["rm", "--all", "--force", "--time=0"]);
        fs::remove_dir_all(&engine.dir).unwrap();
        engine.configure();

        let root = engine.base();
        let mut build = engine.command(project().join("deploy/build-images"));
        build
            .args(["--quiet", "--engine", "podman", "--base"])
            .arg(&root)
            .arg("--binaries")
            .arg(target.parent().unwrap());
        let built = Ran::of(build.output().unwrap());
        assert!(built.ok(), "{built:?}");
        let waits = "FROM localhost/kontrol-base\nUSER 10001:10001\nENTRYPOINT [\"/bin/sleep\", \"1000000\"]\n";
        let built = engine.built(PAUSE, waits);
        assert!(built.ok(), "{built:?}");
        engine
    }

    /// The settings of podman and buildah, beside its storage.
    fn configure(&self) {
        fs::create_dir_all(&self.dir).unwrap();
        let dir = self.dir.display();
        // vfs works on every file system, and where this is a container itself.
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/images\"\nrunroot = \"{dir}/run\"\n"
        );
        // The limits are those that a machine without a service manager can grant. What holds the network of a pod is made of our
        // own base, for no other image can be pulled.
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             infra_image = \"{PAUSE}\"\n\
             tmp_dir = \"{dir}/tmp\"\nstatic_dir = \"{dir}/libpod\"\nvolume_path = \"{dir}/volumes\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{dir}/networks\"\n"
        );
        fs::write(self.dir.join("storage.conf"), storage).unwrap();
        fs::write(self.dir.join("containers.conf"), containers).unwrap();
    }

    /// A command that uses this storage.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            // Of this test's own variables none is for the programs in there.
            .env_remove("KONTROL_BIN_DIR")
            .current_dir(project());
        command
    }

    fn ran(&self, program: &str, args: &[&str]) -> Ran {
        Ran::of(self.command(program).args(args).output().unwrap())
    }

    /// Runs podman to its end.
    pub(crate) async fn podman(&'static self, args: &[&str]) -> Ran {
        let mut command = self.command("podman");
        command.args(args);
        run(command).await
    }

    /// Runs podman, which must succeed; what it wrote to its standard output.
    pub(crate) async fn does(&'static self, args: &[&str]) -> String {
        let ran = self.podman(args).await;
        assert!(ran.ok(), "podman {args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Builds an image from the text of a Containerfile, which copies nothing from here.
    pub(crate) async fn build(&'static self, image: &str, text: &str) {
        let (name, text) = (image.to_owned(), text.to_owned());
        let built = tokio::task::spawn_blocking(move || self.built(&name, &text)).await;
        let built = built.unwrap();
        assert!(built.ok(), "{image}: {built:?}");
    }

    fn built(&self, image: &str, text: &str) -> Ran {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Containerfile"), text).unwrap();
        let context = dir.path().to_str().unwrap();
        self.ran("podman", &["build", "--quiet", "--tag", image, context])
    }

    /// An image of Debian's packages alone, from a root that is kept.
    pub(crate) async fn debian(&'static self, image: &str, packages: &'static [&str], more: &str) {
        let name = image.to_owned();
        let root = tokio::task::spawn_blocking(move || self.root(&name, packages)).await;
        let root = root.unwrap();
        let dir = tempfile::tempdir_in(&self.dir).unwrap();
        fs::hard_link(&root, dir.path().join("root.tar")).unwrap();
        let text = format!("FROM scratch\nADD root.tar /\n{more}");
        fs::write(dir.path().join("Containerfile"), text).unwrap();
        let context = dir.path().to_str().unwrap();
        self.does(&["build", "--quiet", "--tag", image, context])
            .await;
    }

    /// The root that our images stand on.
    pub(crate) fn base(&self) -> PathBuf {
        self.root("base", &[])
    }

    /// A root of Debian's packages, made where it is not there.
    fn root(&self, name: &str, packages: &[&str]) -> PathBuf {
        let script = project().join("deploy/debian-root");
        let mut hasher = DefaultHasher::new();
        fs::read(&script).unwrap().hash(&mut hasher);
        packages.hash(&mut hasher);
        let cache = self.dir.parent().unwrap();
        let file = cache.join(format!("{name}-{:016x}.tar", hasher.finish()));
        if !file.is_file() {
            remove_older(cache, name);
            let made = self.command(script).arg(&file).args(packages).output();
            let made = Ran::of(made.unwrap());
            assert!(made.ok(), "{made:?}");
        }
        file
    }
}

fn remove_older(cache: &Path, name: &str) {
    for entry in fs::read_dir(cache).unwrap().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&format!("{name}-")) && file.ends_with(".tar") {
            fs::remove_file(entry.path()).ok();
        }
    }
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> Ran {
    let ran = tokio::task::spawn_blocking(move || command.output()).await;
    Ran::of(ran.unwrap().unwrap())
}

/// One network with names at a time: the server of names, which is one for all of them, can lose a network that comes while
/// another goes.
static TURN: Semaphore = Semaphore::const_new(1);

/// Waits until no other test has a network. Hold it as long as there is one.
pub(crate) async fn turn() -> SemaphorePermit<'static> {
    TURN.acquire().await.unwrap()
}

/// A network, and containers in it that are called by names of their own there.
pub(crate) struct Scene {
    pub(crate) engine: &'static Engine,
    prefix: String,
    containers: Mutex<Vec<String>>,
    pods: Mutex<Vec<String>>,
    /// Given back when all else is gone.
    _turn: SemaphorePermit<'static>,
}

impl Scene {
    /// A network without anybody in it.
    pub(crate) async fn start(engine: &'static Engine) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let scene = Self {
            engine,
            // The server of names in these networks is one for all engines of this machine.
            prefix: format!("kontrol-test-{}-{number}", std::process::id()),
            containers: Mutex::default(),
            pods: Mutex::default(),
            _turn: turn().await,
        };
        // Not where other engines of this machine begin.
        let (high, low) = (64 + std::process::id() % 128, number % 256);
        let subnet = format!("--subnet=10.{high}.{low}.0/24");
        engine
            .does(&["network", "create", &subnet, &scene.prefix])
            .await;
        scene
    }

    /// What the engine calls a container of this scene, and its network.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Starts a container in the network, where it goes by its name. `args`: flags, the image, and what it is told.
    pub(crate) async fn launch(&self, name: &str, args: &[&str]) {
        let (full, network) = (self.name(name), format!("--network={}", self.prefix));
        let alias = format!("--network-alias={name}");
        let named = ["run", "--detach", "--name", &full, "--hostname", name];
        let mut all = named.to_vec();
        if !args
            .iter()
            .any(|arg| arg.starts_with("--network") || arg.starts_with("--pod"))
        {
            all.extend([network.as_str(), &alias]);
        } else {
            all.truncate(4);
        }
        all.extend(args);
        self.containers.lock().unwrap().push(full.clone());
        self.engine.does(&all).await;
    }

    /// What the engine calls the network of this scene.
    pub(crate) fn network(&self) -> &str {
        &self.prefix
    }

    /// A pod, which the engine keeps as it keeps containers, goes with this scene.
    pub(crate) fn holds_pod(&self, pod: &str) {
        self.pods.lock().unwrap().push(pod.to_owned());
    }

    /// Starts a container of an image that only waits, for commands to be run in it. A container that ends by itself keeps
    /// podman waiting for 20 s, where nothing reaps what lost its parent.
    pub(crate) async fn idle(&self, name: &str, image: &str) {
        let args = ["--entrypoint=/bin/sleep", image, "1000"];
        self.launch(name, &args).await;
    }

    /// Has a container run a command.
    pub(crate) async fn exec(&self, name: &str, command: &[&str]) -> Ran {
        let full = self.name(name);
        let args = [&["exec", full.as_str()], command].concat();
        self.engine.podman(&args).await
    }

    /// Has a container run a command until it succeeds; what it wrote then to its standard output.
    pub(crate) async fn succeeds(&self, name: &str, command: &[&str]) -> String {
        eventually(LONG, &format!("success of {command:?}"), async || {
            let ran = self.exec(name, command).await;
            ensure!(ran.ok(), "{ran:?}");
            Ok(ran.stdout)
        })
        .await
    }

    /// What a container has written.
    pub(crate) async fn log(&self, name: &str) -> String {
        let ran = self.engine.podman(&["logs", &self.name(name)]).await;
        ran.stdout + &ran.stderr
    }

    /// Waits until a container has written something.
    pub(crate) async fn says(&self, name: &str, text: &str) {
        eventually(LONG, &format!("{text:?} from {name}"), async || {
            let log = self.log(name).await;
            ensure!(log.contains(text), "{log}");
            Ok(())
        })
        .await;
    }

    /// A field of what the engine knows of a container.
    pub(crate) async fn inspect(&self, name: &str, format: &str) -> String {
        let full = self.name(name);
        self.engine
            .does(&["container", "inspect", "--format", format, &full])
            .await
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let containers = self.containers.lock().unwrap();
        if thread::panicking() {
            for name in &*containers {
                let log = self.engine.ran("podman", &["logs", "--tail=60", name]);
                eprintln!("--- log of {name} ---\n{}{}", log.stdout, log.stderr);
            }
        }
        for name in &*containers {
            self.engine
                .ran("podman", &["rm", "--force", "--time=0", name]);
        }
        for pod in &*self.pods.lock().unwrap() {
            self.engine
                .ran("podman", &["pod", "rm", "--force", "--time=0", pod]);
        }
        self.engine
            .ran("podman", &["network", "rm", "--force", &self.prefix]);
    }
}
