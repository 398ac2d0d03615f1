//! What the tests share: settings, rosters, and how to look at processes.

use kontrol_core::model::{Digest, Exact, Pod, Reason, Report, digest::pods_document};
use kontrol_master::ensemble::callback::{
    self, Failure, Input, Program, Run, Settings, Validity, changes,
};
use kontrol_runtime::testing::until;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) fn settings(script: &str) -> Settings {
    Settings {
        guard: env!("CARGO_BIN_EXE_kontrol-master").into(),
        timeout: DEADLINE,
        grace: Duration::from_millis(500),
        ..Settings::new(Program::shell(script).unwrap(), "http://127.0.0.1:8000")
    }
}

pub(crate) fn pods(count: u32) -> Vec<Arc<Pod>> {
    let pod = |n: u32| {
        let report = Report {
            app: "web".into(),
            id: format!("web-{n}"),
            ip: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + n)),
            role: "front".into(),
            nonce: format!("{n:016x}"),
            payload: json!({"text": "quotes ' \" and $HOME, é\n"}),
            down: false,
            beat: 1,
            labels: BTreeMap::from([("app".into(), "web".into())]),
            annotations: BTreeMap::new(),
            node: String::new(),
            by: None,
        };
        Arc::new(Pod::join(report, u64::from(n), 1))
    };
    (0..count).map(pod).collect()
}

pub(crate) fn input(count: u32, state: Option<Value>) -> Input {
    let pods = pods(count);
    Input {
        digest: Digest::of(pods.iter()),
        changes: changes::document(None::<(Digest, [_; 0])>, &pods, |_| Reason::Unknown),
        pods: pods_document(pods.iter()),
        state: state.map(exact),
        epoch: 42,
        token: None,
    }
}

/// A state, as the store keeps it.
pub(crate) fn exact(value: Value) -> Exact {
    Exact::of(&value).unwrap()
}

/// A run in a store without leases, which nobody stops.
pub(crate) async fn run(settings: &Settings, input: Input) -> Run {
    let (_lease, validity) = watch::channel(Validity::Forever);
    callback::run(settings, input, validity, CancellationToken::new()).await
}

pub(crate) async fn outcome(script: &str) -> Result<Option<Value>, Failure> {
    let outcome = run(&settings(script), input(2, None)).await.outcome;
    outcome.map(|state| state.map(|state| state.to_value()))
}

/// The pid that the callback wrote to a file, once it has.
pub(crate) fn pid(file: &Path) -> Option<u32> {
    fs::read_to_string(file)
        .ok()?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// The pid in a file that must be there.
pub(crate) async fn pid_in(file: PathBuf) -> u32 {
    until("the callback runs", || pid(&file).is_some()).await;
    pid(&file).unwrap()
}

/// Runs a script with `$DIR` set to a directory of the test.
pub(crate) fn script(directory: &TempDir, text: &str) -> String {
    format!("DIR={}\n{text}", directory.path().display())
}

/// Sends a signal.
pub(crate) fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("kill");
    kill.args([format!("-{name}"), pid.to_string()]);
    assert!(kill.status().unwrap().success());
}
