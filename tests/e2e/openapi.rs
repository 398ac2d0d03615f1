//! `/openapi.json` against what a master does: schemathesis makes requests from it, good ones and bad ones, and looks at every
//! answer.
//!
//! Not asked is that every request is taken that fits its schema: what is behind a format (a key in base 62, the syntax of
//! selectors, a token of a page, limits that are settings) is told in words. Streams are read as far as their first event, in
//! the form of an EventSource, which schemathesis knows; lines are held to their schema here.

use crate::secured::token;
use kontrol_tests::{
    SOON, cluster::Cluster, heavy, node::Master, pod::PodSpec, skip, small, wait::eventually,
};
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// How long a tool may take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same requests at each run.
const SEED: &str = "7";
/// Streams end behind the first event.
const CONFIG: &str = r#"
[[operations]]
include-operation-id = ["EnsembleService_Watch", "ActionService_Dispatch"]
headers = { Accept = "text/event-stream" }
max-stream-events = 1
"#;
/// Holds lines of JSON to the schemas of a document: its path, then path, method and file for each stream.
const LINES: &str = r#"
import json, sys, jsonschema_rs
document = json.load(open(sys.argv[1]))
for schema in document["components"]["schemas"].values():
    # What is written and not told is found as well.
    if "properties" in schema:
        schema["additionalProperties"] = False
for path, method, file in zip(*[iter(sys.argv[2:])] * 3):
    content = document["paths"][path][method]["responses"]["200"]["content"]
    schema = content["application/x-ndjson"]["schema"] | {"components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    for line in open(file):
        validator.validate(json.loads(line))
"#;

/// A program of the packages that `tests/run` fetches where it can. None, said aloud, where it is not.
fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name));
    let found = found.into_iter().find(|file| file.is_file());
    if found.is_none() {
        skip(&format!("there is no {name}"));
    }
    found
}

async fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{command:?} does not end"))
        .unwrap()
}

/// Lets schemathesis loose on a master, and gives its report. `dir`: for its files.
async fn loose(program: &Path, master: &Master, dir: &Path, more: &[&str], config: &str) -> Value {
    let (settings, report) = (dir.join("schemathesis.toml"), dir.join("report.json"));
    fs::write(&settings, format!("{CONFIG}{config}")).unwrap();
    let mut command = Command::new(program);
    command
        .arg("--config-file")
        .arg(&settings)
        .arg("run")
        .arg(format!("{}/openapi.json", master.url()))
        .args([
            "--checks",
            "all",
            "--exclude-checks",
            "positive_data_acceptance",
        ])
        .args(["--seed", SEED, "--request-timeout", "20", "--no-color"])
        .args(["--continue-on-failure", "--generation-database", "none"])
        .args(["--report", "json", "--report-json-path"])
        .arg(&report)
        .args(more)
        // A proxy of this machine knows no master.
        .env("NO_PROXY", "*")
        .current_dir(dir);
    let ran = run(&mut command).await;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}\n{error}");
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let found = (&report["complete"], &report["failures"], &report["errors"]);
    assert_eq!(found, (&json!(true), &json!([]), &json!([])), "{said}");
    let operations = &report["operations"];
    assert_eq!(operations["tested"], operations["selected"], "{said}");
    report
}

/// How many requests there were.
fn requests(report: &Value) -> u64 {
    report["test_cases"]["generated"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let Some(program) = tool("schemathesis") else {
        return;
    };
    let _permit = heavy().await;
    let cluster = Cluster::on("memory:")
        .patient()
        .set("callback", "/bin/true")
        .start()
        .await;
    let (api, master, dir) = (cluster.api(0), &cluster.masters[0], cluster.dir.path());
    let document = api.http("GET", "/openapi.json", None).await.ok();
    let paths = document["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
    let phases = ["--phases", "coverage,fuzzing,stateful", "-n", "10"];
    let report = loose(&program, master, dir, &phases, "").await;
    // All but the one that it has read already.
    assert_eq!(report["operations"]["tested"], operations - 1, "{report}");
    assert!(requests(&report) > 30 * operations as u64, "{report}");

    // What is there is hard to guess.
    let pod = PodSpec::number(0);
    api.ping(&pod).await.unwrap();
    let key = pod.expected_key();
    let dispatch = json!({"selector": {"keys": [key]}, "command": {"argv": ["true"]}});
    let told = api.http("POST", "/v1/actions", Some(&dispatch)).await;
    let accepted: Value = serde_json::from_str(told.body.lines().next().unwrap()).unwrap();
    let id = accepted["accepted"]["actionId"].as_str().unwrap();
    let known = format!(
        r#"
[parameters]
"path.key" = "{key}"
"path.id" = "{id}"
"#
    );
    let some = [
        "--include-path-regex",
        r"^/v1/(pods|actions)/",
        "--exclude-method",
        "DELETE",
        "--phases",
        "coverage,fuzzing",
        "-n",
        "5",
    ];
    let report = loose(&program, master, dir, &some, &known).await;
    assert_eq!(report["operations"]["tested"], 4, "{report}");
    assert_eq!(
        report["warnings"]["missing_test_data"],
        json!([]),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_gets_in_with_a_token_alone_where_one_is_asked_for() {
    let Some(program) = tool("schemathesis") else {
        return;
    };
    let _permit = heavy().await;
    let dir = tempfile::tempdir().unwrap();
    let (operator, line) = token("operator", "ann");
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, line).unwrap();
    let settings = [
        ("store", "memory:".to_owned()),
        ("tokens", tokens.to_str().unwrap().to_owned()),
    ];
    let settings = settings.map(|(flag, value)| (flag.to_owned(), value));
    let mut master = Master::new("asks", settings.into(), Vec::new(), dir.path());
    master.start().await;
    master.ready().await;
    let header = format!("Authorization: Bearer {operator}");
    let arguments = ["-H", &header, "--phases", "coverage,fuzzing", "-n", "5"];
    let report = loose(&program, &master, dir.path(), &arguments, "").await;
    // Only a slave reports.
    let refused = json!(["PUT /ping", "PUT /v1/keepalive"]);
    assert_eq!(report["warnings"]["missing_auth"], refused, "{report}");
    assert!(!master.log().contains(&operator));
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_read_the_document_and_it_is_valid() {
    let _permit = small().await;
    let dir = tempfile::tempdir().unwrap();
    let (_, line) = token("operator", "ann");
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, line).unwrap();
    let settings = vec![
        ("store".to_owned(), "memory:".to_owned()),
        ("tokens".to_owned(), tokens.to_str().unwrap().to_owned()),
    ];
    let mut master = Master::new("asks", settings, Vec::new(), dir.path());
    master.start().await;
    let api = master.api();
    assert_eq!(api.http("GET", "/v1/pods", None).await.status, 401);
    let served = api.http("GET", "/openapi.json", None).await;
    assert_eq!(
        (served.status, served.kind.as_str()),
        (200, "application/json")
    );
    assert_eq!(served.json()["openapi"], "3.1.0");
    let head = api.http("HEAD", "/openapi.json", None).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(api.http("POST", "/openapi.json", None).await.status, 405);
    let Some(validator) = tool("openapi-spec-validator") else {
        return;
    };
    let file = dir.path().join("openapi.json");
    fs::write(&file, served.body).unwrap();
    let mut command = Command::new(validator);
    let ran = run(command.args(["--schema", "3.1"]).arg(&file)).await;
    assert!(ran.status.success(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_a_stream_is_as_the_document_says() {
    let Some(program) = tool("schemathesis") else {
        return;
    };
    let _permit = small().await;
    let cluster = Cluster::on("memory:")
        .patient()
        .set("callback", "/bin/true")
        .set("damper", "100ms")
        .start()
        .await;
    let (api, dir) = (cluster.api(0), cluster.dir.path());
    let mut watch = api
        .lines("/v1/watch?history=", "application/x-ndjson")
        .await;
    assert_eq!(
        (watch.status, watch.kind.as_str()),
        (200, "application/x-ndjson")
    );
    api.ping(&PodSpec::number(0)).await.unwrap();
    cluster.handled(0, 1).await;
    let dispatch = json!({"selector": {"all": true}, "command": {"shell": "true"}});
    let told = api.http("POST", "/v1/actions", Some(&dispatch)).await;
    assert_eq!(
        (told.status, told.kind.as_str()),
        (200, "application/x-ndjson")
    );
    let hold = json!({"reason": "a test", "duration": "60s"});
    api.http("POST", "/v1/callback:hold", Some(&hold))
        .await
        .ok();
    api.ping(&PodSpec::number(0).beat(9).down()).await.unwrap();
    let mut watched = String::new();
    let mut wanted = vec![
        "snapshot",
        "podJoined",
        "digestChanged",
        "callbackStarted",
        "callbackFinished",
        "actionStarted",
        "actionFinished",
        "holdChanged",
        "podLeft",
    ];
    eventually(SOON, "stream of everything", async || {
        let line = watch.next(SOON).await.unwrap();
        wanted.retain(|event| !line.contains(&format!("\"{event}\":")));
        watched.extend([&line, "\n"]);
        anyhow::ensure!(wanted.is_empty(), "{wanted:?} did not come");
        Ok(())
    })
    .await;
    let document = api.http("GET", "/openapi.json", None).await;
    let file = |name: &str, text: &str| {
        let file = dir.join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let mut command = Command::new(program.with_file_name("python3"));
    command.args(["-c", LINES]);
    command.arg(file("openapi.json", &document.body));
    command
        .args(["/v1/watch", "get"])
        .arg(file("watched", &watched));
    command
        .args(["/v1/actions", "post"])
        .arg(file("told", &told.body));
    let ran = run(&mut command).await;
    assert!(ran.status.success(), "{ran:?}");
    // A field that the document does not tell is noticed.
    command
        .args(["/v1/actions", "post"])
        .arg(file("wrong", "{\"accepted\": {}, \"more\": 1}\n"));
    assert!(!run(&mut command).await.status.success());
}
