//! Configuration: a real haproxy follows the roster, and whoever asks it meanwhile, without pause, sees no failure.

use crate::guide::{example, installed, run_as_written};
use anyhow::{Context, ensure};
use kontrol_tests::{
    SOON,
    client::exchange,
    cluster::Cluster,
    etcd::Etcd,
    heavy,
    node::Slave,
    pod::{PodSpec, from_proto, key_of},
    ports,
    process::{Process, descendants},
    small,
    wait::eventually,
};
use rustix::process::Signal;
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How many connections ask at once.
const CONNECTIONS: u64 = 16;

/// Long enough for slaves on a busy machine; who is killed here was attached, and is lost sooner.
const TTL: Duration = Duration::from_secs(15);

/// A pod: a web server, and a slave that tells its port.
struct Pod {
    id: String,
    ip: String,
    port: u16,
    server: Process,
    slave: Slave,
}

impl Pod {
    async fn join(number: u8, masters: &str, dir: &Path) -> Self {
        let (id, ip) = (format!("web-{number}"), format!("127.33.0.{number}"));
        let port = ports::free();
        let mut command = Command::new(example("configuration").join("backend"));
        command.args([&ip, &port.to_string(), &id]);
        let log = dir.join(format!("{id}-server.log"));
        let server = Process::spawn(format!("{id}-server"), &mut command, &log);
        eventually(SOON, &format!("answer of {id}"), async || {
            exchange("GET", &format!("http://{ip}:{port}"), "", Vec::new())
                .await
                .with_context(|| server.log())
        })
        .await;
        let payload = dir.join(format!("{id}.json"));
        fs::write(&payload, json!({"port": port}).to_string()).unwrap();
        let settings = [
            ("id", id.as_str()),
            ("ip", &ip),
            ("master", masters),
            ("payload", payload.to_str().unwrap()),
            ("labels", r#"{"app":"shop","role":"web"}"#),
            ("insecure", ""),
        ];
        let slave = Slave::start(&id, &settings, dir);
        Self {
            id,
            ip,
            port,
            server,
            slave,
        }
    }

    /// As the callback writes it.
    fn server_line(&self) -> String {
        format!("{} {}:{}", key_of(&self.ip), self.ip, self.port)
    }

    /// Its machine loses its power.
    fn kill(&mut self) {
        self.server.kill();
        self.slave.kill();
    }
}

/// Two masters, haproxy, and pods in seq order.
struct Scene {
    masters: Cluster,
    haproxy: Process,
    url: String,
    pods: Vec<Pod>,
    joined: u8,
    dir: PathBuf,
}

impl Scene {
    /// The scene, without pods. None, said aloud, where a program is missing.
    async fn start(etcd: &Etcd, dir: &Path) -> Option<Self> {
        let program = installed("haproxy")?;
        let folder = example("configuration");
        let address = format!("127.0.0.1:{}", ports::free());
        let (file, socket) = (dir.join("backends.cfg"), dir.join("haproxy.sock"));
        fs::write(&file, "backend web\n").unwrap();
        let mut command = Command::new(&program);
        command.arg("-W").arg("-S").arg(&socket);
        command.arg("-f").arg(folder.join("haproxy.cfg"));
        command.arg("-f").arg(&file).env("PROXY_ADDRESS", &address);
        let haproxy = Process::spawn("haproxy", &mut command, &dir.join("haproxy.log"));
        let callback = format!(
            "{} --static {} --file {} --socket {} --shrink {}",
            folder.join("callback").display(),
            folder.join("haproxy.cfg").display(),
            file.display(),
            socket.display(),
            dir.join("shrink").display(),
        );
        let path = std::env::var("PATH").unwrap_or_default();
        let masters = Cluster::on(&etcd.store())
            .masters(2)
            .damper(Duration::from_millis(200))
            .ttl(TTL)
            .set("callback", &callback)
            .env("PROXY_ADDRESS", &address)
            .env("PATH", &format!("{path}:/usr/sbin"))
            .start()
            .await;
        Some(Self {
            masters,
            haproxy,
            url: format!("http://{address}/"),
            pods: Vec::new(),
            joined: 0,
            dir: dir.to_owned(),
        })
    }

    /// So many pods more, each with the next number.
    async fn join(&mut self, count: u8) {
        let masters = self.masters.urls().join("|");
        for number in self.joined + 1..=self.joined + count {
            let pod = Pod::join(number, &masters, &self.dir).await;
            // The order of their keepalives is that of their seqs.
            let master = self.masters.running()[0];
            let api = self.masters.api(master);
            eventually(SOON, &format!("{} in the roster", pod.id), async || {
                api.pod(&key_of(&pod.ip)).await.map_err(Into::into)
            })
            .await;
            self.pods.push(pod);
        }
        self.joined += count;
        self.serves().await;
    }

    /// A pod goes as it should: out of the roster, so out of haproxy, and only then its server ends.
    async fn leave(&mut self, index: usize) {
        let mut pod = self.pods.remove(index);
        assert!(pod.slave.stop(SOON).await.success());
        self.serves().await;
        pod.server.signal(Signal::TERM);
        assert!(pod.server.ended(SOON).await.success());
    }

    /// Waits until the callback's state and the file have these pods in seq order, and just these answer.
    async fn serves(&mut self) {
        let master = self.masters.running()[0];
        let api = self.masters.api(master);
        let wanted: Vec<String> = self.pods.iter().map(Pod::server_line).collect();
        eventually(SOON * 2, &format!("state of {wanted:?}"), async || {
            let state = api.state().await?;
            let state = from_proto(state.state.as_ref());
            ensure!(state["servers"] == json!(wanted), "{state}");
            Ok(())
        })
        .await;
        let file = fs::read_to_string(self.dir.join("backends.cfg")).unwrap();
        let lines = file
            .lines()
            .filter_map(|line| line.strip_prefix("    server "));
        let lines: Vec<&str> = lines.map(|line| line.trim_end_matches(" check")).collect();
        assert_eq!(lines, wanted);
        self.answers().await;
    }

    /// Waits until just these pods answer.
    async fn answers(&self) {
        let ids: BTreeSet<String> = self.pods.iter().map(|pod| pod.id.clone()).collect();
        eventually(SOON, &format!("answers of {ids:?}"), async || {
            let mut answers = BTreeSet::new();
            // One after the other: others ask in between, so that some may be missed for once.
            for _ in 0..ids.len() * 4 {
                let answer = exchange("GET", &self.url, "", Vec::new()).await?;
                ensure!(answer.status == 200, "{answer:?}");
                answers.insert(answer.body.trim().to_owned());
            }
            ensure!(answers == ids, "{answers:?}");
            Ok(())
        })
        .await;
    }
}

/// What asks without pause.
struct Wrk {
    process: Process,
}

/// What it told at its end.
#[derive(Debug)]
struct Told {
    requests: u64,
    failed: u64,
}

impl Wrk {
    fn start(program: &Path, url: &str, log: &Path) -> Self {
        let mut command = Command::new(program);
        // Until it is told to end.
        command.args(["-t", "1", "-d", "10m", "-c", &CONNECTIONS.to_string(), url]);
        Self {
            process: Process::spawn("wrk", &mut command, log),
        }
    }

    async fn end(mut self) -> Told {
        self.process.signal(Signal::INT);
        assert!(self.process.ended(SOON).await.success());
        let log = self.process.log();
        println!("{log}");
        let lines = || log.lines().map(str::trim);
        let requests = lines().find_map(|line| line.split_once(" requests in "));
        let requests = requests.unwrap().0.parse().unwrap();
        // "Socket errors: connect 0, read 0, write 0, timeout 0", and "Non-2xx or 3xx responses: 0"; neither where all is well.
        let failures = lines().filter(|line| {
            line.starts_with("Socket errors:") || line.starts_with("Non-2xx or 3xx responses:")
        });
        let numbers = failures.flat_map(|line| line.split([' ', ',']));
        let failed = numbers.filter_map(|word| word.parse::<u64>().ok()).sum();
        Told { requests, failed }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_follows_the_roster_and_no_request_fails() {
    let _permit = heavy().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(wrk) = installed("wrk") else { return };
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let Some(mut scene) = Scene::start(&etcd, dir.path()).await else {
        return;
    };
    scene.join(4).await;

    // What a pod says of itself can't get into the file; and what does not concern haproxy costs no reload.
    let reloads = |scene: &Scene| scene.haproxy.log().matches("Reloading").count();
    let before = reloads(&scene);
    let strange = PodSpec::number(0).payload(json!({"port": "80\nbackend other"}));
    let strange = PodSpec {
        role: "web".into(),
        ..strange
    };
    let api = scene.masters.api(0);
    for (pod, pods) in [(strange.clone(), 5), (strange.down(), 4)] {
        api.ping(&pod).await.unwrap();
        scene.masters.handled(0, pods).await;
        scene.serves().await;
    }
    assert_eq!(reloads(&scene), before);

    // Joins and goodbyes, and in the middle of them the leader dies.
    let asking = Wrk::start(&wrk, &scene.url, &dir.path().join("wrk-1.log"));
    scene.join(1).await;
    scene.leave(0).await;
    let leader = scene.masters.leader().await;
    scene.masters.masters[leader].kill();
    scene.join(1).await;
    scene.leave(1).await;
    let told = asking.end().await;
    assert!(told.requests > 100 && told.failed == 0, "{told:?}");

    // A death: what was sent to it and not answered goes to another server. Only an answer that had begun can't be repeated.
    let asking = Wrk::start(&wrk, &scene.url, &dir.path().join("wrk-2.log"));
    scene.pods[1].kill();
    scene.pods.remove(1);
    scene.serves().await;
    let told = asking.end().await;
    assert!(told.requests > 100, "{told:?}");
    assert!(told.failed <= CONNECTIONS, "{told:?}");
    // Workers that were replaced end with their last connection.
    let haproxy = &scene.haproxy;
    eventually(SOON, "one worker of haproxy", async || {
        let workers = descendants(haproxy.pid());
        ensure!(workers.len() == 1, "{workers:?}");
        Ok(())
    })
    .await;

    // The slaves of most fall silent. That is refused, so that all go on, until somebody agrees.
    let master = scene.masters.running()[0];
    let api = scene.masters.api(master);
    // The callback finds them all gone at once.
    api.hold("a test", SOON * 3).await.unwrap();
    for pod in &mut scene.pods[1..] {
        pod.slave.kill();
    }
    scene
        .masters
        .ensemble(master, "roster of one", |view| view.pod_count == 1)
        .await;
    api.resume("a test").await.unwrap();
    scene
        .masters
        .ensemble(master, "refusal", |view| {
            let status = view.callback.as_ref();
            view.pod_count == 1 && status.is_some_and(|status| status.failures > 0)
        })
        .await;
    scene.answers().await;
    fs::write(dir.path().join("shrink"), "").unwrap();
    api.run_callback(false).await.unwrap();
    let silent = scene.pods.split_off(1);
    scene.serves().await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_no_request_fails() {
    let _permit = small().await;
    if let Some(wrote) = run_as_written("configuration").await {
        assert!(wrote.contains("Everything was seen."), "{wrote}");
    }
}
