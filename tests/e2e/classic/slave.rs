//! A slave as it was in Python: one `PUT /ping` on a connection of its own each three quarters of a TTL.

use anyhow::ensure;
use kontrol_proto::v1::LeaveReason;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    etcd::Etcd,
    pod::{from_proto, key_of},
    process::Process,
    script::Recorder,
    skip, small,
    wait::{eventually, throughout},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, time::Duration};
use tokio::time::Instant;

/// The standard library alone. It asks the masters in turn, as the service in front of them has it, gives each a second,
/// and tries again sooner where that failed. A payload that changed is told at once.
const SLAVE: &str = r#"
import http.client, itertools, json, os, signal, sys, time
ttl, ip, payload, *masters = sys.argv[1:]
alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
number, key = 0, ""
for part in ip.split("."):
    number = number * 256 + int(part)
while number:
    number, digit = divmod(number, 62)
    key = alphabet[digit] + key
pod = {"app": "web", "id": "classic", "ip": ip, "key": key, "nonce": os.urandom(8).hex(), "payload": "", "role": "worker"}
going = []
signal.signal(signal.SIGTERM, lambda *_: going.append(1))
tier, due, seen = itertools.cycle(masters), 0, 0
while True:
    try:
        changed = os.stat(payload).st_mtime_ns
        if changed != seen:
            with open(payload) as file:
                pod["payload"], seen, due = json.load(file), changed, 0
    except (OSError, ValueError):
        pass
    last = bool(going)
    if last:
        pod["down"] = True
    if last or time.monotonic() >= due:
        master = next(tier)
        try:
            connection = http.client.HTTPConnection(master, timeout=1)
            connection.request("PUT", "/ping", json.dumps(pod, sort_keys=True), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            print(answer.status, answer.read().decode(), flush=True)
            connection.close()
            due = time.monotonic() + (0.75 * float(ttl) if answer.status == 200 else 0.25)
        except OSError as error:
            print(error, flush=True)
            if last:
                continue
    if last:
        break
    time.sleep(0.1)
"#;

struct Classic {
    process: Process,
}

impl Classic {
    fn start(name: &str, cluster: &Cluster, payload: &Path) -> Self {
        let ttl = cluster.spec.ttl.as_secs_f64().to_string();
        let mut command = Command::new("python3");
        command.args(["-c", SLAVE, &ttl, IP]).arg(payload);
        command.args(cluster.masters.iter().map(|master| master.address()));
        let log = cluster.dir.path().join(name);
        Self {
            process: Process::spawn(name, &mut command, &log),
        }
    }

    /// How many of its keepalives were taken.
    fn taken(&self) -> usize {
        let log = self.process.log();
        log.lines().filter(|line| line.starts_with("200 ")).count()
    }
}

const IP: &str = "172.16.123.1";

#[tokio::test(flavor = "multi_thread")]
async fn it_lives_dies_comes_back_says_something_and_goes() {
    let _permit = small().await;
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3 is not installed");
    }
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::shell();
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .damper(Duration::from_millis(200))
        .callback(&recorder);
    let mut cluster = cluster.start().await;
    let (ttl, key) = (cluster.spec.ttl, key_of(IP));
    assert_eq!(key, "39mysN");
    let payload = cluster.dir.path().join("payload.json");
    // Whoever answers: the other one may be the one that is killed.
    let leader = cluster.leader().await;
    let api = cluster.api(leader);
    let mut watch = api.watch(0).await.unwrap();

    let mut slave = Classic::start("first", &cluster, &payload);
    let first = eventually(SOON, "the pod", async || Ok(api.pod(&key).await?)).await;
    assert_eq!((first.seq, first.id.as_str()), (0, "classic"));
    assert_eq!(from_proto(first.payload.as_ref()), json!(""));
    cluster.handled(leader, 1).await;
    throughout(ttl * 3, "the pod", async || {
        ensure!(api.pod(&key).await?.seq == 0);
        Ok(())
    })
    .await;
    // Some four of them: no more than three quarters of a TTL allow, and none was refused.
    let taken = slave.taken();
    assert!((3..=6).contains(&taken), "{}", slave.process.log());
    assert_eq!(
        slave.process.log().lines().count(),
        taken,
        "{}",
        slave.process.log()
    );

    // Each second keepalive finds one master gone, and tries the other.
    cluster.masters[1 - leader].kill();
    throughout(ttl * 3, "the pod beside a dead master", async || {
        ensure!(api.pod(&key).await?.seq == 0);
        Ok(())
    })
    .await;
    cluster.restart(1 - leader).await;
    assert_eq!(watch.departed(), Vec::<String>::new());

    // A restart: another nonce, the same seq, and a run of the callback.
    slave.process.kill();
    let mut slave = Classic::start("second", &cluster, &payload);
    let second = eventually(SOON, "another nonce", async || {
        let pod = api.pod(&key).await?;
        ensure!(pod.nonce != first.nonce);
        Ok(pod)
    })
    .await;
    assert_eq!(second.seq, 0);
    let view = cluster.handled(leader, 1).await;
    assert!(recorder.runs().iter().any(|run| run.hash == view.digest));

    // A file that appears, and one that changes, are told at once.
    for load in [1, 2] {
        fs::write(&payload, json!({"load": load}).to_string()).unwrap();
        eventually(SOON, "the payload", async || {
            let pod = api.pod(&key).await?;
            let told = from_proto(pod.payload.as_ref());
            ensure!(told == json!({"load": load}), "{told}");
            Ok(())
        })
        .await;
    }

    // A silent death.
    let killed = Instant::now();
    slave.process.kill();
    let (left, reason) = watch.left(SOON, &key).await;
    assert_eq!(reason, LeaveReason::Expired);
    assert!(left - killed < ttl + Duration::from_secs(1) + SLACK);
    cluster.handled(leader, 0).await;

    // Who comes back is new, and who says goodbye goes at once.
    let mut slave = Classic::start("third", &cluster, &payload);
    let third = eventually(SOON, "the pod", async || Ok(api.pod(&key).await?)).await;
    assert_eq!(third.seq, 1);
    let stopped = Instant::now();
    slave.process.signal(Signal::TERM);
    assert!(slave.process.ended(SOON).await.success());
    let (left, reason) = watch.left(SOON, &key).await;
    assert_eq!(reason, LeaveReason::Down);
    assert!(left - stopped < ttl, "{:?}", left - stopped);
    let answer: Value = {
        let log = slave.process.log();
        let line = log.lines().next().unwrap();
        serde_json::from_str(line.strip_prefix("200 ").unwrap()).unwrap()
    };
    assert_eq!((&answer["key"], &answer["seq"]), (&json!(key), &json!(1)));
}
