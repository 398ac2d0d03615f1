//! Small clients in other languages, generated from `proto/`: what they are shown to do is what `tests/clients/README.md`
//! says of them.

mod readme;
mod tier;

use anyhow::{Context as _, ensure};
use kontrol_tests::{SOON, heavy, process::Process, skip, wait::eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use tier::{Tier, said};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

/// The exit code of a `build` that lacks something.
const CANNOT: i32 = 77;
/// Longer than any build takes, on a busy machine with nothing cached.
const BUILD: Duration = Duration::from_secs(300);
/// More output than an order's window has room for, and in more pieces.
const LONG: &str = "seq 1 40000; i=40000; until [ $i = 41000 ]; do i=$((i + 1)); echo $i; done; echo err >&2; exit 3";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The client of a language, built. None, said aloud, where its toolchain can't be had.
async fn build(language: &str) -> Option<PathBuf> {
    let script = root().join("tests/clients").join(language).join("build");
    let building = spawn_blocking(move || Command::new(script).output());
    let built = timeout(BUILD, building).await.expect("a build that ends");
    let built = built.unwrap().unwrap();
    let told = String::from_utf8_lossy(&built.stderr).into_owned();
    if built.status.code() == Some(CANNOT) {
        skip(told.lines().last().unwrap_or("no reason was told"));
        return None;
    }
    assert!(built.status.success(), "{language}: {told}");
    let client = root().join("target/clients").join(language).join("client");
    Some(client.canonicalize().unwrap())
}

/// Runs a client to its end.
async fn ends(mut client: Command) -> Output {
    let ran = spawn_blocking(move || client.output());
    timeout(SOON, ran).await.unwrap().unwrap().unwrap()
}

/// The lines of JSON in what a client printed.
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(serde_json::from_str);
    lines.map(|line| line.unwrap()).collect()
}

/// What was said under this name, put together.
fn text(lines: &[Value], name: &str) -> String {
    lines
        .iter()
        .filter_map(|line| line[name].as_str())
        .collect()
}

/// Waits until a pod's last keepalives, so many in a row, were accepted by this master, and its channel is there.
async fn reports_to(client: &Process, url: &str, beats_there: usize) {
    eventually(SOON, &format!("{} at {url}", client.name()), async || {
        let said = said(client);
        let beats: Vec<_> = said.iter().filter(|line| line["beat"].is_u64()).collect();
        let last = &beats[beats.len().checked_sub(beats_there).context("too few")?..];
        ensure!(last.iter().all(|line| line["master"] == url), "{last:?}");
        let channel = said.iter().rfind(|line| line["attached"].is_string());
        let attaches = client.name() == "client-slave";
        ensure!(!attaches || channel.context("no channel")?["attached"] == url);
        Ok(())
    })
    .await;
}

/// The pods that a watch told of, by the rules of the contract: what a snapshot shows stands, each pod joins and leaves in turn.
fn replay(watch: &[Value]) -> Vec<(String, String)> {
    let mut live = BTreeMap::new();
    let mut told = Vec::new();
    let mut revision = 0;
    for line in watch.iter().filter(|line| line["event"].is_string()) {
        let at = line["revision"].as_i64().unwrap();
        assert!(at >= revision, "{line} behind revision {revision}");
        revision = at;
        let id = || line["id"].as_str().unwrap().to_owned();
        match line["event"].as_str().unwrap() {
            "snapshot" => {
                let pods: Vec<_> = line["pods"].as_array().unwrap().iter().collect();
                let known: Vec<_> = live.keys().map(|id: &String| json!(id)).collect();
                assert!(
                    told.is_empty() || pods.iter().all(|pod| known.contains(pod)),
                    "{line}"
                );
                live.extend(
                    pods.iter()
                        .map(|pod| (pod.as_str().unwrap().to_owned(), ())),
                );
            }
            "pod_joined" => {
                assert!(live.insert(id(), ()).is_none(), "twice: {line}");
                told.push((id(), "joined".to_owned()));
            }
            "pod_left" => {
                assert!(live.remove(&id()).is_some(), "never came: {line}");
                told.push((id(), line["reason"].as_str().unwrap().to_owned()));
            }
            _ => {}
        }
    }
    told
}

async fn is_lived_through(language: &str) {
    let _permit = heavy().await;
    let Some(client) = build(language).await else {
        return;
    };
    let Some(mut tier) = Tier::start().await else {
        return;
    };
    let mut watch = tier.spawn("watch", &mut tier.client(&client, "watch", "reader"));
    let mut ours = tier.spawn("ours", &mut tier.command(&["watch", "--output", "json"]));
    for watch in [&watch, &ours] {
        eventually(SOON, "a snapshot", async || {
            ensure!(!said(watch).is_empty(), "{}", watch.log());
            Ok(())
        })
        .await;
    }
    let mut pods = Vec::new();
    for (number, what) in ["ping", "stream", "slave"].into_iter().enumerate() {
        pods.push(tier.reports(&client, what, 10 + u8::try_from(number).unwrap()));
        // One after the other, so that the order is known.
        reports_to(&pods[number], &tier.url(0), 1).await;
    }
    for pod in &pods {
        reports_to(pod, &tier.url(0), 2).await;
    }
    let since = Instant::now();
    let roster = tier.pods().await;
    let ids: Vec<&str> = roster.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["client-ping", "client-stream", "client-slave"]);

    let mut list = tier.client(&client, "pods", "reader");
    list.args(["--page-size", "2"]);
    let listed = ends(list).await;
    assert!(listed.status.success(), "{listed:?}");
    let listed = lines(&listed);
    let (last, listed) = listed.split_last().unwrap();
    assert_eq!(last, &json!({"pods": 3, "pages": 2}));
    let pod = |pod: &Value| {
        (
            pod["id"].as_str().unwrap().to_owned(),
            pod["seq"].as_u64().unwrap(),
        )
    };
    assert_eq!(listed.iter().map(pod).collect::<Vec<_>>(), roster);

    runs_actions(&tier, &client).await;

    // The master that all of them talk to dies, the other one is stopped, and then the first one hangs.
    for (number, index) in [(0, 0), (1, 1), (2, 0)] {
        fails(&mut tier, &pods, number, index).await;
    }
    assert_eq!(tier.pods().await, roster, "a pod lost its place");
    runs_actions(&tier, &client).await;

    // A pod that an operator removes says all of itself again, and is another one.
    let evicted = tier.ask(&["evict", "127.0.0.11", "--reason", "test"]).await;
    assert!(evicted.status.success(), "{evicted:?}");
    eventually(SOON, "a pod that is back", async || {
        let last = said(&pods[1]).pop().context("nothing")?;
        ensure!(last["seq"].as_u64() > Some(roster[2].1), "{last}");
        Ok(())
    })
    .await;

    // None left out, either: one is due each interval.
    let due = since.elapsed().div_duration_f64(tier::INTERVAL) - 1.0;
    for pod in &mut pods {
        pod.signal(Signal::TERM);
        let status = pod.ended(SOON).await;
        assert!(status.success(), "{}: {status}", pod.name());
        let said = said(pod);
        let summary = said.iter().rfind(|line| line["sent"].is_u64()).unwrap();
        println!("{language} {} {summary}", pod.name());
        assert_eq!(summary["lost"], 0, "{}: {summary}", pod.name());
        assert_eq!(summary["sent"], summary["accepted"]);
        assert!(summary["sent"].as_f64().unwrap() >= due, "{due} were due");
        let short = summary["beats"].as_u64().unwrap();
        assert_eq!(short > 1, pod.name() != "client-ping", "{summary}");
        let seqs = said.iter().filter_map(|line| line["seq"].as_u64());
        let seqs: BTreeSet<u64> = seqs.collect();
        let evicted = usize::from(pod.name() == "client-stream");
        assert_eq!(seqs.len(), 1 + evicted, "{seqs:?}");
        assert_eq!(summary["again"], evicted);
    }
    told_of_all(&mut watch, &mut ours).await;
}

/// A master fails, in one of three ways, and the pods go to the other one. A command that runs meanwhile, and a pod that comes
/// and goes, are told of all the same.
async fn fails(tier: &mut Tier, pods: &[Process], number: u8, index: usize) {
    let other = 1 - index;
    let mut runs = tier.across(other, number);
    let folder = tier.cluster.dir.path().to_owned();
    eventually(SOON, "a command that runs", async || {
        let started = folder.join(format!("started-{number}"));
        ensure!(started.exists(), "{}", runs.log());
        Ok(())
    })
    .await;
    let master = &mut tier.cluster.masters[index];
    match number {
        0 => master.kill(),
        1 => assert!(master.stop().await.success()),
        _ => master.pause(),
    }
    tier.pod(other, number, false).await;
    for pod in pods {
        reports_to(pod, &tier.url(other), 1).await;
    }
    tier.pod(other, number, true).await;
    fs::write(folder.join(format!("go-on-{number}")), "").unwrap();
    let status = runs.ended(SOON).await;
    assert_eq!(
        (status.code(), runs.log().as_str()),
        (Some(0), "begin\nend\n")
    );
    if number == 2 {
        tier.cluster.masters[index].resume();
        tier.takes_keepalives(index).await;
    } else {
        tier.launch(index).await;
    }
}

/// Both watches, that of the client and our own, told of everything, once and in order.
async fn told_of_all(watch: &mut Process, ours: &mut Process) {
    let mut expected = Vec::new();
    for id in ["client-ping", "client-stream", "client-slave"] {
        expected.push((id.to_owned(), "joined".to_owned()));
    }
    for id in ["extra-0", "extra-1", "extra-2"] {
        expected.push((id.to_owned(), "joined".to_owned()));
        expected.push((id.to_owned(), "LEAVE_REASON_DOWN".to_owned()));
    }
    expected.push((
        "client-stream".to_owned(),
        "LEAVE_REASON_EVICTED".to_owned(),
    ));
    expected.push(("client-stream".to_owned(), "joined".to_owned()));
    for id in ["client-ping", "client-stream", "client-slave"] {
        expected.push((id.to_owned(), "LEAVE_REASON_DOWN".to_owned()));
    }
    eventually(SOON, "a watch that told of all", async || {
        let told = replay(&said(watch));
        ensure!(told == expected, "{told:?}");
        Ok(())
    })
    .await;
    eventually(SOON, "our own watch", async || {
        let lines = said(ours);
        let left: Vec<_> = lines
            .iter()
            .filter_map(|line| line["podLeft"]["pod"]["id"].as_str())
            .collect();
        ensure!(left.len() == 7, "{left:?}");
        Ok(())
    })
    .await;
    let lines = said(watch);
    let cuts = lines.iter().filter(|line| line["cut"].is_string()).count();
    assert!(cuts >= 2, "the watch was never cut: {lines:?}");
    for process in [watch, ours] {
        process.signal(Signal::TERM);
        process.ended(SOON).await;
    }
}

/// The client's slave runs what the client dispatches, and what our own command line does.
async fn runs_actions(tier: &Tier, client: &Path) {
    let mut exec = tier.client(client, "exec", "operator");
    exec.args(["--id", "client-slave", "--", "sh", "-c", LONG]);
    let ran = ends(exec).await;
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    let said = lines(&ran);
    let long: String = (1..=41_000).map(|n| format!("{n}\n")).collect();
    assert!(text(&said, "stdout") == long, "output is lost");
    assert_eq!(text(&said, "stderr"), "err\n");
    let finished = said.iter().find(|line| line["finished"].is_string());
    let expected = json!({"finished": "client-slave", "outcome": "OUTCOME_EXITED", "exit_code": 3});
    assert_eq!(finished, Some(&expected));
    assert_eq!(said.last(), Some(&json!({"targets": 1, "succeeded": 0})));

    let words = ["exec", "--id", "client-slave", "--output", "raw", "--shell"];
    let ran = tier.ask(&[&words[..], &[LONG]].concat()).await;
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(ran.stdout == long.as_bytes(), "output is lost");
    assert!(ran.stderr.starts_with(b"err\n"), "{ran:?}");

    let words = ["exec", "--id", "client-slave", "--output", "raw"];
    let more = ["--timeout", "300ms", "--input", "{\"a\":1}", "--shell"];
    let shell = "cat; echo $INPUT $KONTROL_ID; sleep 60";
    let ran = tier.ask(&[&words[..], &more[..], &[shell]].concat()).await;
    assert_eq!(ran.status.code(), Some(124), "{ran:?}");
    let output = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(output, "{\"a\":1}\n{\"a\":1} client-slave\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_lives_through_a_fail_over() {
    is_lived_through("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_lives_through_a_fail_over() {
    is_lived_through("go").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_lives_through_a_fail_over() {
    is_lived_through("node").await;
}
