//! `kontrol-master callback test`: a callback tried on the user's machine, by the rules of a leader and without one.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    node::{command, run},
    pod::PodSpec,
    process::{Process, alive},
    small,
    wait::eventually,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

/// Prints what it found, and says so.
const PYTHON: &str = r#"#!/usr/bin/env python3
import json, os, sys
run = json.load(sys.stdin)
assert json.loads(os.environ["PODS"]) == run["pods"] and os.environ["HASH"] == run["hash"]
ids = lambda pods: [pod["id"] for pod in pods]
print("handled", run["hash"], file=sys.stderr)
print(json.dumps({
    "before": run["state"],
    "pods": ids(run["pods"]),
    **{name: ids(run["changes"][name]) for name in ["joined", "changed", "left"]},
}))
"#;

fn install(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("callback");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Tries a callback.
async fn tried(arguments: &[&str]) -> Output {
    let mut test = command("kontrol-master");
    test.args(["callback", "test"]).args(arguments);
    run(test).await
}

/// Tries a callback; the exit code, and the documents of both runs.
async fn documents(arguments: &[&str]) -> (i32, Value, Value) {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    let output = tried(&all).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, second] = &lines[..] else {
        panic!("{output:?}");
    };
    assert_eq!((&first["run"], &second["run"]), (&json!(1), &json!(2)));
    (output.status.code().unwrap(), first.clone(), second.clone())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_run_finds_what_the_first_one_left_and_what_has_changed() {
    let _permit = small().await;
    let dir = TempDir::new().unwrap();
    let callback = install(&dir, PYTHON);
    let (code, first, second) = documents(&[path(&callback), "--pods", "4"]).await;
    assert_eq!(code, 0, "{first} {second}");
    let handed = &first["handed"];
    assert_eq!(handed["pods"], 4);
    assert_eq!(
        handed["joined"],
        json!(["web-0", "web-1", "web-2", "web-3"])
    );
    assert_eq!(
        (&handed["since"], handed.get("state")),
        (&Value::Null, None)
    );
    assert_eq!(first["stored"]["before"], Value::Null);
    assert_eq!(first["stored"]["joined"], handed["joined"]);
    let said = format!("handled {}", handed["digest"].as_str().unwrap());
    assert_eq!(first["stderr"], json!([said]));
    assert_eq!(
        (&first["accepted"], &first["exitCode"]),
        (&json!(true), &json!(0))
    );
    assert!(first["duration"].as_str().unwrap().ends_with('s'));

    let (handed, stored) = (&second["handed"], &second["stored"]);
    assert_eq!(handed["since"], first["handed"]["digest"]);
    assert_eq!(handed["state"], first["stored"]);
    assert_eq!(stored["before"], first["stored"]);
    for (list, ids) in [
        ("joined", json!(["web-4"])),
        ("changed", json!(["web-1"])),
        ("left", json!(["web-0"])),
    ] {
        assert_eq!((&handed[list], &stored[list]), (&ids, &ids), "{list}");
    }
    // The same, whenever it is asked.
    let (_, again, _) = documents(&[path(&callback), "--pods", "4"]).await;
    assert_eq!(again["handed"], first["handed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_callback_is_shown_to_a_person_with_every_digit_of_its_state() {
    let _permit = small().await;
    let script =
        "printf '{\"n\": 1.00, \"before\": %s}' \"${STATE:-null}\"; printf 'one\\ntwo' >&2";
    let output = tried(&["--shell", script, "--output", "table"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for line in [
        "run 1 of 2",
        "  joined    3: web-0, web-1, web-2",
        "  state     none",
        "  said      one",
        "            two",
        r#"  stored    {"n":1.00,"before":null}"#,
        "run 2 of 2",
        "  left      1: web-0",
        r#"  state     {"n":1.00,"before":null}"#,
        r#"  stored    {"n":1.00,"before":{"n":1.00,"before":null}}"#,
        "  verdict   accepted",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_would_refuse_is_refused_with_its_words() {
    let _permit = small().await;
    let shell = async |text: &str, more: &[&str]| {
        let mut arguments = vec!["--shell", text];
        arguments.extend(more);
        documents(&arguments).await
    };
    for (text, exit_code, reason) in [
        ("echo hello", 0, "must write one JSON value"),
        ("echo '{}'; exit 3", 3, "exited with code 3"),
        ("kill -9 $$", 137, "killed by signal 9"),
        ("sleep 100", 143, "did not end within 300ms"),
        ("yes", 143, "more than 4194304 bytes"),
    ] {
        let timeout = if text.starts_with("sleep") {
            "300ms"
        } else {
            "60s"
        };
        let (code, first, second) = shell(text, &["--callback-timeout", timeout]).await;
        assert_eq!(code, 1, "{first}");
        for run in [&first, &second] {
            let refusal = run["refusal"].as_str().unwrap();
            assert!(refusal.contains(reason), "{refusal}");
            assert_eq!((&run["accepted"], run.get("stored")), (&json!(false), None));
            assert_eq!(run["exitCode"], exit_code, "{run}");
        }
        // A leader that tries again hands on what it did before.
        assert_eq!(second["handed"].get("state"), None);
        assert_eq!(second["handed"]["since"], Value::Null);
    }
    // One of both is enough.
    let (code, first, second) = shell("test -z \"$STATE\" && echo 1", &[]).await;
    assert_eq!((code, &first["accepted"]), (1, &json!(true)));
    assert_eq!(second["refusal"], "the callback exited with code 1");
    // Nothing printed keeps the state.
    let (code, first, second) = shell("test -n \"$STATE\" || echo 1", &[]).await;
    assert_eq!((code, second.get("stored")), (0, None), "{second}");
    assert_eq!(second["handed"]["state"], first["stored"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_question_ends_with_code_2_and_one_line() {
    let _permit = small().await;
    for arguments in [
        &[][..],
        &["/no/such/callback"],
        &["/"],
        &["--shell", "true", "true"],
        &["--shell", "true", "--pods", "100001"],
        &["--shell", "true", "--pods", "2", "--from", "localhost"],
        &["--shell", "true", "--from", ""],
        &["--shell", "true", "--real-endpoint"],
        &["--shell", "true", "--callback-timeout", "0"],
    ] {
        let output = tried(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let nobody = format!("127.0.0.1:{}", kontrol_tests::ports::free());
    let output = tried(&["--shell", "true", "--from", &nobody]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--from") && output.stdout.is_empty(),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_tier_it_reads_all_pods_and_the_state_and_changes_nothing() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let (api, url) = (cluster.api(0), cluster.masters[0].url());
    // More than a page of 1 MiB.
    for number in 0..24 {
        let payload = json!({"text": "x".repeat(60_000), "number": number});
        let pod = PodSpec::number(number).payload(payload);
        api.ping(&pod).await.unwrap();
    }
    // Kept digit for digit.
    let put = br#"{"state":{"n":12345678901234567890}}"#.to_vec();
    api.raw("PUT", "/v1/state", "application/json", put)
        .await
        .ok();
    let before = cluster
        .ensemble(0, "all pods", |view| view.pod_count == 24)
        .await;
    let callback = r#"
        printf '{"n":%s,"state":%s}' "$(grep -o '"id":' "$PODS_FILE" | wc -l)" "$STATE"
        kontrol-master state put '"destroyed"' >&2 || exit 0"#;
    let (code, first, second) = documents(&["--shell", callback, "--from", &url]).await;
    assert_eq!(code, 0, "{first} {second}");
    let text = first.to_string();
    assert!(text.contains(r#""pods":25"#), "{text}");
    assert_eq!(first["stored"]["n"], 25);
    assert_eq!(first["handed"]["epoch"], before.epoch);
    // Only the one that was made up has left.
    assert_eq!(second["handed"]["left"], json!(["callback-test"]));
    assert_eq!(second["handed"]["digest"], before.digest.as_str());
    assert_eq!(second["stored"]["n"], 24);
    let output = tried(&["--shell", callback, "--from", &url, "--output", "table"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stored = r#"  stored    {"n":25,"state":{"n":12345678901234567890}}"#;
    assert!(text.lines().any(|line| line == stored), "{text}");
    let refused = text.matches("connection refused").count();
    assert_eq!(refused, 2, "the callback reached somebody: {text}");

    let after = api.ensemble().await.unwrap();
    assert_eq!(after.revision, before.revision, "{after:?}");
    assert_eq!(after.digest, before.digest);
    assert_eq!(
        api.state().await.unwrap().json,
        r#"{"n":12345678901234567890}"#
    );

    // Where the user says so it reaches the tier.
    let (code, ..) = documents(&[
        "--shell",
        "kontrol-master state put '\"wanted\"' >&2",
        "--from",
        &url,
        "--real-endpoint",
    ])
    .await;
    assert_eq!(code, 0);
    assert_eq!(api.state().await.unwrap().json, "\"wanted\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_whatever_ends_it() {
    let _permit = small().await;
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = TempDir::new().unwrap();
        let temp = dir.path().join("tmp");
        fs::create_dir(&temp).unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "trap '' TERM; setsid sleep 1000 & sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait; sleep 1000",
            pids.display()
        );
        let mut test = command("kontrol-master");
        test.args(["callback", "test", "--shell", &script])
            .env("TMPDIR", &temp);
        let mut process = Process::spawn("test", &mut test, &dir.path().join("log"));
        let running: Vec<i32> = eventually(SOON, "running callback", async || {
            let text = fs::read_to_string(&pids)?;
            Ok(text
                .split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect())
        })
        .await;
        assert_eq!(running.len(), 2);
        let started = kontrol_tests::process::descendants(process.pid());
        assert!(started.len() >= 4, "{started:?}");
        process.signal(signal);
        let status = process.ended(SOON).await;
        if signal != Signal::KILL {
            assert_eq!(status.code(), Some(130), "{}", process.log());
            assert!(process.log().contains("stopped"), "{}", process.log());
        }
        eventually(SOON, "end of all that it started", async || {
            let left: Vec<i32> = started
                .iter()
                .map(|(pid, _)| *pid)
                .filter(|pid| alive(*pid))
                .collect();
            ensure!(left.is_empty(), "{left:?} after {signal:?}");
            let files = fs::read_dir(&temp)?.count();
            ensure!(files == 0, "{files} files after {signal:?}");
            Ok(())
        })
        .await;
    }
    // Of a run that ended, too.
    let (code, first, _) = documents(&["--shell", "setsid sleep 1000 & echo $!"]).await;
    assert_eq!(code, 0);
    let pid = i32::try_from(first["stored"].as_i64().unwrap()).unwrap();
    assert!(!alive(pid), "{pid} lives");
    let remark = first["remarks"][0].as_str().unwrap();
    assert!(remark.contains("left processes behind"), "{remark}");
}
