//! The images `kontrol-master` and `kontrol-slave`: what is in them, how they start, serve, run commands and stop; and the
//! slave in what others run.

use crate::containers::{Engine, HARDENED, LONG, Ran, Scene, engine, missing, run};
use anyhow::ensure;
use kontrol_runtime::testing::{Authority, write};
use kontrol_tests::{house::project, node, process::Process, wait::eventually};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// The user of the images.
const UID: &str = "10001";
const INSECURE: &str = "--env=KONTROL_INSECURE=yes";
const WHO: &str = "uid=10001(kontrol) gid=10001(kontrol) groups=10001(kontrol)";

/// The flags of a master's container, behind them the image.
fn master<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&HARDENED[..], &[INSECURE], more, &["kontrol-master"]].concat()
}

/// The variables of a slave that reports to `m1` as this pod.
fn slave_variables(id: &str) -> [String; 4] {
    let labels = json!({"app": "a", "role": "web"});
    [
        "--env=KONTROL_MASTER=m1".to_owned(),
        INSECURE.to_owned(),
        format!("--env=KONTROL_ID={id}"),
        format!("--env=KONTROL_LABELS={labels}"),
    ]
}

/// The flags of a slave's container, in front of the image.
fn slave<'a>(variables: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let variables = variables.iter().map(String::as_str);
    HARDENED
        .into_iter()
        .chain(variables)
        .chain(more.iter().copied())
        .collect()
}

/// Runs a command on a pod by way of the master `m1`; what it wrote.
async fn on_pod(scene: &Scene, id: &str, shell: &str) -> String {
    let exec = ["kontrol-master", "exec", "--id", id, "--output", "raw"];
    let command = [&exec[..], &["--shell", shell]].concat();
    scene.succeeds("m1", &command).await.trim_end().to_owned()
}

async fn image(engine: &'static Engine, name: &str) -> Value {
    let text = engine.does(&["image", "inspect", name]).await;
    let [image] = &serde_json::from_str::<Vec<Value>>(&text).unwrap()[..] else {
        panic!("{text}");
    };
    image.clone()
}

fn version() -> String {
    let manifest = fs::read_to_string(project().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("\nversion = \"").unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_says_what_it_is_and_runs_as_nobody_in_particular() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    let version = version();
    for (name, port) in [("kontrol-master", true), ("kontrol-slave", false)] {
        let image = image(engine, &format!("{name}:{version}")).await;
        let config = &image["Config"];
        assert_eq!(config["User"], "10001:10001", "{config}");
        assert_eq!(config["StopSignal"], "SIGTERM", "{config}");
        let program = format!("/usr/local/bin/{name}");
        assert_eq!(config["Entrypoint"], json!([program]), "{config}");
        let label = |name: &str| {
            let label = &image["Labels"][format!("org.opencontainers.image.{name}")];
            label.as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(label("title"), name);
        assert_eq!(label("version"), version);
        assert_eq!(label("licenses"), "Apache-2.0");
        assert!(label("description").len() > 20 && label("revision").len() >= 7);
        let listens = config["ExposedPorts"]["8000/tcp"].is_object();
        assert_eq!(listens, port, "{config}");
        let checked = image["Healthcheck"]["Test"].clone();
        let wanted = json!(["CMD", "kontrol-master", "health"]);
        assert_eq!(checked, if port { wanted } else { Value::Null }, "{image}");

        scene.idle(name, name).await;
        let said = scene.succeeds(name, &[name, "--version"]).await;
        assert_eq!(said, format!("{name} {version}\n"));
        // Of a base that is made of packages, what scanners read is there, and so are the authorities.
        let looks = "id; grep -m 1 ^Version: /var/lib/dpkg/status.d/libc6; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt";
        let found = scene.succeeds(name, &["sh", "-c", looks]).await;
        let [who, libc, trusted] = found.lines().collect::<Vec<_>>()[..] else {
            panic!("{found}");
        };
        assert_eq!(who, WHO);
        assert!(libc.starts_with("Version: 2."), "{libc}");
        assert!(trusted.parse::<u32>().unwrap() > 50, "{trusted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_beyond_loopback_asks_who_comes_or_is_told_not_to() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    scene.idle("m1", "kontrol-master").await;
    let refused = scene.exec("m1", &["kontrol-master"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let words = "give --tokens or --client-ca";
    assert!(refused.stderr.contains(words), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_of_containers_that_may_do_nothing_does_all() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    let callback = "--env=KONTROL_SHELL_CALLBACK=id >&2; echo '{\"ran\":1}'";
    let flags = [callback, "--env=KONTROL_DAMPER=100ms"];
    scene.launch("m1", &master(&flags)).await;
    let variables = slave_variables("web-1");
    scene
        .launch("s1", &slave(&variables, &["kontrol-slave"]))
        .await;

    // The callback has run, as the user of the image.
    let state = ["kontrol-master", "state"];
    eventually(LONG, "state of the callback", async || {
        let state = scene.exec("m1", &state).await;
        ensure!(state.stdout.trim() == r#"{"ran":1}"#, "{state:?}");
        Ok(())
    })
    .await;
    scene.says("m1", WHO).await;

    // The engine finds the master healthy; asked by hand, for its timers are those of systemd.
    let name = scene.name("m1");
    engine.does(&["healthcheck", "run", &name]).await;

    // An action runs as that user too, and gains nothing.
    assert_eq!(on_pod(&scene, "web-1", "id").await, WHO);
    let status = on_pod(&scene, "web-1", "cat /proc/self/status").await;
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    let denied = on_pod(&scene, "web-1", "touch /x 2>&1 || echo denied").await;
    assert!(denied.ends_with("denied"), "{denied}");

    reaps_what_is_handed_to_it(&scene).await;
    says_goodbye(&scene).await;

    engine.does(&["stop", "--time=10", &name]).await;
    assert_eq!(scene.inspect("m1", "{{.State.ExitCode}}").await, "0");
    let log = scene.log("m1").await;
    assert!(log.contains("SIGTERM: stopping"), "{log}");
}

/// The slave is process 1: what lost its parent becomes its child, and is gone when it ended.
async fn reaps_what_is_handed_to_it(scene: &Scene) {
    let first = scene.succeeds("s1", &["cat", "/proc/1/comm"]).await;
    assert_eq!(first, "kontrol-slave\n");
    let orphans = "for i in 1 2 3; do (sleep 0.2 & sleep 0.1 &) ; done";
    scene.succeeds("s1", &["sh", "-c", orphans]).await;
    let list = "cat /proc/[0-9]*/stat 2>/dev/null; true";
    eventually(LONG, "end of the orphans", async || {
        let listed = scene.succeeds("s1", &["sh", "-c", list]).await;
        ensure!(!listed.contains("(sleep)"), "{listed}");
        Ok(())
    })
    .await;
}

/// SIGTERM reaches it as process 1: its pod leaves at once, and says so.
async fn says_goodbye(scene: &Scene) {
    let mut watch = scene.engine.command("podman");
    let name = scene.name("m1");
    watch.args(["exec", &name, "kontrol-master", "watch"]);
    let dir = tempfile::tempdir().unwrap();
    let watch = Process::spawn("watch", &mut watch, &dir.path().join("watch"));
    let shows = async |text: &str| {
        eventually(LONG, text, async || {
            ensure!(watch.log().contains(text), "{}", watch.log());
            Ok(())
        })
        .await;
    };
    shows("snapshot").await;
    scene
        .engine
        .does(&["stop", "--time=10", &scene.name("s1")])
        .await;
    assert_eq!(scene.inspect("s1", "{{.State.ExitCode}}").await, "0");
    shows("REASON_DOWN").await;
    assert!(!watch.log().contains("REASON_LOST"), "{}", watch.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_speaks_tls_is_found_healthy_whoever_signed_its_certificate() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    let dir = tempfile::tempdir().unwrap();
    let pair = write(
        dir.path(),
        "m1",
        &Authority::new("ours").sign(&["m1.example"]),
    );
    let mut token = node::command("kontrol-master");
    token.args(["token", "new", "--role", "operator", "--name", "ann"]);
    let token = run(token).await.stdout;
    fs::write(dir.path().join("tokens"), token.lines().last().unwrap()).unwrap();
    for path in [
        dir.path(),
        &pair.cert,
        &pair.key,
        &dir.path().join("tokens"),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let inside = |path: &Path| format!("/keys/{}", path.file_name().unwrap().to_str().unwrap());
    let settings = [
        format!("--volume={}:/keys:ro", dir.path().display()),
        format!("--env=KONTROL_TLS_CERT={}", inside(&pair.cert)),
        format!("--env=KONTROL_TLS_KEY={}", inside(&pair.key)),
        "--env=KONTROL_TOKENS=/keys/tokens".to_owned(),
        "--env=KONTROL_PORT=8443".to_owned(),
    ];
    let settings = settings.iter().map(String::as_str);
    let flags: Vec<_> = HARDENED.into_iter().chain(settings).collect();
    scene
        .launch("m1", &[&flags[..], &["kontrol-master"]].concat())
        .await;
    let name = scene.name("m1");
    let check = async || engine.podman(&["healthcheck", "run", &name]).await;
    eventually(LONG, "healthy master", async || {
        let ran = check().await;
        ensure!(ran.ok(), "{ran:?}");
        Ok(())
    })
    .await;

    // What does not answer is ill; and the command says why.
    let health = ["kontrol-master", "health", "--endpoint", "127.0.0.1:1"];
    let ill = scene.exec("m1", &health).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(ill.stderr.contains("refused"), "{ill:?}");
    let clear = ["kontrol-master", "health", "--endpoint", "127.0.0.1:8443"];
    let clear = scene.exec("m1", &clear).await;
    assert!(clear.stderr.contains("use https://"), "{clear:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slave_is_a_layer_of_somebody_elses_image() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    // Its own user, its own program as process 1, which starts the slave beside what it does.
    let text = r#"FROM localhost/kontrol-base
RUN echo 'app:x:1234:1234::/:/bin/sh' >>/etc/passwd
COPY --from=localhost/kontrol-slave /usr/local/bin/kontrol-slave /usr/local/bin/
USER app
ENTRYPOINT ["/bin/sh", "-c", "kontrol-slave & exec sleep 1000"]
"#;
    engine.build("localhost/somebodys-app", text).await;
    scene.launch("m1", &master(&[])).await;
    let variables = slave_variables("app-1");
    let flags = slave(&variables, &["localhost/somebodys-app"]);
    scene.launch("app", &flags).await;
    let who = on_pod(&scene, "app-1", "id -un; cat /proc/1/comm").await;
    assert_eq!(who, "app\nsleep");
}

/// Whether a program asks for a dynamic linker (PT_INTERP); of 64 bits, little endian.
fn is_dynamic(program: &Path) -> bool {
    let elf = fs::read(program).unwrap();
    let number = |at: usize, len: usize| {
        let bytes = elf[at..at + len].iter().rev();
        bytes.fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(first + index * size, 4) == 3)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slave_runs_where_there_is_nothing_else() {
    let Some(engine) = engine().await else { return };
    if is_dynamic(&node::program("kontrol-slave")) {
        kontrol_tests::skip(
            "the slave under test is linked dynamically: name those of deploy/build-programs as KONTROL_BIN_DIR",
        );
        return;
    }
    let scene = Scene::start(engine).await;
    scene.launch("m1", &master(&[])).await;
    let text = r#"FROM scratch
COPY --from=localhost/kontrol-slave /usr/local/bin/kontrol-slave /
USER 1234
ENTRYPOINT ["/kontrol-slave"]
"#;
    engine.build("localhost/nothing-else", text).await;
    // It finds its master by name.
    let variables = slave_variables("alone");
    let flags = slave(&variables, &["localhost/nothing-else"]);
    scene.launch("alone", &flags).await;
    let exec = ["kontrol-master", "exec", "--id=alone", "--output=raw"];
    let command = [&exec[..], &["--", "/kontrol-slave", "--version"]].concat();
    let said = scene.succeeds("m1", &command).await;
    assert_eq!(said.trim_end(), format!("kontrol-slave {}", version()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slave_is_a_sidecar_and_reports_the_address_of_its_pod() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    scene.launch("m1", &master(&[])).await;
    // A pod as podman has it.
    let pod = scene.name("pod");
    let holder = [
        "pod",
        "create",
        "--name",
        &pod,
        "--network",
        scene.network(),
    ];
    scene.holds_pod(&pod);
    engine.does(&holder).await;
    let within = format!("--pod={pod}");
    let app = [&within, "localhost/kontrol-base", "sleep", "1000"];
    scene.launch("app", &app).await;
    let variables = slave_variables("pod-1");
    let flags = slave(&variables, &[&within, "kontrol-slave"]);
    scene.launch("slave", &flags).await;

    let pods = ["kontrol-master", "pods", "--output", "json"];
    let ip = eventually(LONG, "pod", async || {
        let ran = scene.exec("m1", &pods).await;
        let pods: Value = serde_json::from_str(&ran.stdout)?;
        let ip = pods["pods"][0]["ip"].as_str().map(str::to_owned);
        ip.ok_or_else(|| anyhow::anyhow!("{pods}"))
    })
    .await;
    let addresses = scene.succeeds("app", &["cat", "/proc/net/fib_trie"]).await;
    assert!(
        addresses.contains(&format!("-- {ip}\n")),
        "{ip}: {addresses}"
    );
    assert_eq!(on_pod(&scene, "pod-1", "id -u").await, UID);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_root_starts_runs_commands_as_kontrol_and_can_end_them() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    scene.launch("m1", &master(&[])).await;
    let variables = slave_variables("root-1");
    let root = ["--user=0:0", "--cap-add=SETUID,SETGID,KILL"];
    let flags = slave(&variables, &[&root[..], &["kontrol-slave"]].concat());
    scene.launch("s1", &flags).await;
    assert_eq!(
        on_pod(&scene, "root-1", "id; pwd").await,
        format!("{WHO}\n/home/kontrol")
    );
    let exec = ["kontrol-master", "exec", "--all", "--timeout=300ms"];
    let late = scene
        .exec("m1", &[&exec[..], &["--", "sleep", "1000"]].concat())
        .await;
    assert_eq!(late.code, Some(124), "{late:?}");
    let list = scene
        .succeeds("s1", &["sh", "-c", "cat /proc/[0-9]*/comm"])
        .await;
    assert!(!list.contains("sleep\n"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_could_not_end_its_commands_says_so_at_its_start() {
    let Some(engine) = engine().await else { return };
    let scene = Scene::start(engine).await;
    let variables = slave_variables("root-1");
    let root = ["--user=0:0", "--cap-add=SETUID,SETGID", "kontrol-slave"];
    scene.launch("s1", &slave(&variables, &root)).await;
    scene
        .says("s1", "without the capabilities KILL: grant")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_takes_to_build_is_told() {
    let script = |args: &[&str]| {
        let mut command = Command::new(project().join("deploy/build-images"));
        command.args(args).env("PATH", "/usr/bin:/bin");
        command
    };
    let told = async |args: &[&str]| -> Ran { run(script(args)).await };
    let help = told(&["--help"]).await;
    assert!(help.ok() && help.stdout.starts_with("usage: "), "{help:?}");
    for (args, code, words) in [
        (&["--engine", "kaniko"][..], 2, "docker, podman and buildah"),
        (&["--tags", "x"], 2, "--tags is unknown"),
        (&["--tag"], 2, "--tag takes a value"),
        (&["--packages", "jq"], 2, "goes with --base debootstrap"),
    ] {
        let refused = told(args).await;
        assert_eq!(refused.code, Some(code), "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    // The stage for those without Rust takes the one that is pinned.
    let pinned = fs::read_to_string(project().join("rust-toolchain.toml")).unwrap();
    let (_, rest) = pinned.split_once("channel = \"").unwrap();
    let version = rest.split_once(".0\"").unwrap().0;
    let text = fs::read_to_string(project().join("deploy/Containerfile")).unwrap();
    assert!(text.contains(&format!("/rust:{version}-")), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_builds_the_same() {
    let Some(engine) = engine().await else { return };
    if let Err(why) = missing(&["buildah"]) {
        kontrol_tests::skip(&why);
        return;
    }
    let programs = node::program("kontrol-master");
    let mut build = engine.command(project().join("deploy/build-images"));
    build
        .args(["--quiet", "--engine", "buildah", "--tag", "by-buildah"])
        .args(["--base", "localhost/kontrol-base", "--binaries"])
        .arg(programs.parent().unwrap());
    let built = run(build).await;
    let names = "kontrol-master:by-buildah\nkontrol-slave:by-buildah\n";
    assert!(built.ok() && built.stdout == names, "{built:?}");
    let (theirs, ours) = (
        image(engine, "kontrol-master:by-buildah").await,
        image(engine, "kontrol-master").await,
    );
    for part in ["Config", "Healthcheck"] {
        let without = |image: &Value| {
            let mut part = image[part].clone();
            // Each says who built it.
            part.as_object_mut().map(|part| part.remove("Labels"));
            part
        };
        assert_eq!(without(&theirs), without(&ours));
    }
}
