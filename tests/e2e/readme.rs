//! Every command of the README, of the guides for operators and of the cook book of the API, run as it stands: what it shows
//! must happen. A block that no test here runs is a failure.

mod api;
mod backup;
mod operate;
mod secured;

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    house::{House, project},
    pod::key_of,
    process::Process,
    small,
    wait::eventually,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

/// What tells each block with commands or a program from all others.
const INSTALL: &str = "deploy/demo ";
const BY_HAND: &str = "cargo build\n";
const PROXY: &str = "/run/upstreams";
const NUMBERS: &str = "Gives every pod a number";
const CHECKED: &str = "/run/shrink";
const EXEC: &str = "exec --role web -- uptime  ";
const CONFIGURE: &str = "/opt/app/configure";
const ASK: &str = "kontrol-master explain 10.0.0.7";
const CURL: &str = "curl -X PUT localhost:8000/ping";
const OPERATE: &str = "hold 'the database moves'";
const SECURED: &str = "openssl req -x509";
const GRPCURL: &str = "localhost:8000 describe kontrol.v1.PingRequest";
const GRPCURL_SECURED: &str = "grpcurl -cacert ca.pem";
const HTTP: &str = "curl localhost:8000/openapi.json";
const HTTP_SECURED: &str = "curl --cacert ca.pem";
const SHELL_SLAVE: &str = "nonce=$(od ";
const SAVE: &str = "etcdctl snapshot save";
const RESTORE: &str = "etcdctl snapshot restore";
const STATE: &str = "kontrol-master state put -";
const ALL: [&str; 19] = [
    INSTALL,
    BY_HAND,
    PROXY,
    NUMBERS,
    CHECKED,
    EXEC,
    CONFIGURE,
    ASK,
    CURL,
    OPERATE,
    SECURED,
    GRPCURL,
    GRPCURL_SECURED,
    HTTP,
    HTTP_SECURED,
    SHELL_SLAVE,
    SAVE,
    RESTORE,
    STATE,
];

/// What `exec` shows of a pod whose command succeeded.
const DONE: &str = r#""outcome":"OUTCOME_EXITED","exitCode":0"#;

/// What users read, behind it what operators read, and what those read who call a master from elsewhere.
fn readme() -> String {
    [
        "README.md",
        "deploy/README.md",
        "deploy/operating.md",
        "proto/README.md",
    ]
    .map(|name| fs::read_to_string(project().join(name)).unwrap())
    .join("\n")
}

/// The fenced blocks in a language.
fn blocks(languages: &[&str]) -> Vec<String> {
    let text = readme();
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let block: String = lines
            .by_ref()
            .take_while(|line| line.trim() != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        if languages.contains(&language) {
            found.push(block);
        }
    }
    found
}

/// The block that has this in it.
fn block(mark: &str) -> String {
    let mut found = blocks(&["sh", "python"]);
    found.retain(|block| block.contains(mark));
    let [block] = &found[..] else {
        panic!("{} blocks of the READMEs have {mark:?}", found.len());
    };
    block.clone()
}

/// The commands of a block, each a line.
fn lines(mark: &str) -> Vec<String> {
    block(mark).lines().map(str::to_owned).collect()
}

/// The code that begins and ends so, between two backticks.
fn inline(start: &str, end: &str) -> String {
    let text = readme();
    let mut found = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.starts_with(start) && code.ends_with(end));
    found
        .next()
        .unwrap_or_else(|| panic!("the READMEs have no `{start}…{end}`"))
        .replace("\\|", "|")
}

/// A master on port 8000, and two slaves, `web-1` (10.0.0.7) and `db-1`, which run commands.
struct Scene {
    _master: Process,
    web: Process,
    _db: Process,
    house: House,
}

impl Scene {
    /// The scene, with a program of the README as the master's callback, or none.
    async fn start(callback: Option<&str>) -> Option<Self> {
        let house = House::start().await?;
        let flags = callback.map_or_else(String::new, |program| {
            let path = house.dir().join("callback");
            fs::write(&path, program).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            format!("--callback {}", path.display())
        });
        let text = format!("exec kontrol-master --damper 200ms --ttl 5s {flags}");
        let master = house.start_shell("master", &text);
        let slave = |id: &str, ip: &str, role: &str| {
            let labels = json!({"app": "a", "role": role, "tier": "a"});
            let text = format!(
                "exec kontrol-slave --insecure --master 127.0.0.1 --id {id} --ip {ip} --labels '{labels}'"
            );
            house.start_shell(id, &text)
        };
        let (web, db) = (
            slave("web-1", "10.0.0.7", "web"),
            slave("db-1", "10.0.0.8", "db"),
        );
        house
            .succeeds("test $(kontrol-master exec --all --output raw -- echo x | wc -l) = 2")
            .await;
        Some(Self {
            _master: master,
            web,
            _db: db,
            house,
        })
    }

    /// Installs a program of the user's in `/opt/app`.
    async fn install(&self, name: &str, text: &str) {
        let path = format!("/opt/app/{name}");
        self.house
            .succeeds(&format!(
                "mkdir -p /opt/app && chmod 777 /opt/app && printf '%s\\n' '#!/bin/sh' '{text}' > {path} && chmod 755 {path}"
            ))
            .await;
    }

    /// Starts what goes on until Ctrl-C, waits until it shows something, and ends it so.
    async fn until_shown(&self, text: &str, wanted: &str) {
        let mut process = self.house.start_shell("shown", &format!("exec {text}"));
        eventually(SOON, &format!("{wanted} of `{text}`"), async || {
            ensure!(process.log().contains(wanted), "{}", process.log());
            Ok(())
        })
        .await;
        // Not SIGINT, which a shell may have told these tests, and so curl, to ignore.
        process.signal(Signal::TERM);
        process.ended(SOON).await;
    }
}

#[test]
fn each_block_is_run_by_one_of_these_tests() {
    for block in blocks(&["sh", "python", "bash", "shell", "console", ""]) {
        let marks = ALL.iter().filter(|mark| block.contains(**mark)).count();
        assert_eq!(marks, 1, "no test runs this block of the READMEs:\n{block}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_commands_do_what_they_say() {
    let _permit = small().await;
    let lines = lines(INSTALL);
    let [demo, tests] = &lines[..] else {
        panic!("{lines:?}");
    };
    // What runs this test can't be run by it.
    assert!(tests.starts_with("tests/run "), "{tests}");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", demo]).current_dir(project());
    let mut process = Process::spawn("demo", &mut command, &dir.path().join("log"));
    // It builds where there is something to build.
    let status = process.ended(Duration::from_secs(600)).await;
    assert!(status.success(), "{}", process.log());
    assert!(process.log().contains("Everything was seen"));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_the_loop_is_seen() {
    let _permit = small().await;
    let Some(house) = House::start().await else {
        return;
    };
    let mut background = Vec::new();
    let mut shown = Vec::new();
    for line in lines(BY_HAND) {
        if line.starts_with("cargo ") {
            // Not in the house: it may need what is in this machine's own `/opt`.
            let mut command = Command::new("sh");
            command.args(["-c", &line]).current_dir(project());
            let mut build = Process::spawn("build", &mut command, &house.dir().join("build"));
            let status = build.ended(Duration::from_secs(600)).await;
            assert!(status.success(), "{}", build.log());
        } else if line.ends_with(" &") {
            background.push(house.start_shell(&format!("job-{}", background.len()), &line));
        } else if line.contains(" watch") {
            let watch = house.start_shell("watch", &format!("exec {line}"));
            eventually(SOON, "snapshot", async || {
                ensure!(watch.log().contains("snapshot"), "{}", watch.log());
                Ok(())
            })
            .await;
        } else {
            shown.push(house.succeeds(&line).await);
        }
    }
    let [pods, uptime] = &shown[..] else {
        panic!("{shown:?}");
    };
    let _: Value = serde_json::from_str(pods).unwrap();
    assert!(uptime.contains(DONE), "{uptime}");
    let pods = house.succeeds("target/debug/kontrol-master pods").await;
    assert!(pods.contains(r#""role":"web""#), "{pods}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callback_in_shell_writes_the_addresses() {
    let _permit = small().await;
    let Some(scene) = Scene::start(Some(&block(PROXY))).await else {
        return;
    };
    let wanted = "test \"$(sort /run/upstreams | tr '\\n' ' ')\" = '10.0.0.7 10.0.0.8 '";
    scene.house.succeeds(wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callback_in_python_numbers_the_pods() {
    let _permit = small().await;
    let Some(mut scene) = Scene::start(Some(&block(NUMBERS))).await else {
        return;
    };
    let keys = [key_of("10.0.0.7"), key_of("10.0.0.8")];
    let numbers = async |wanted: [&str; 2]| {
        eventually(SOON, "numbers of both pods", async || {
            let ran = scene.house.shell("kontrol-master state").await;
            let state: Value = serde_json::from_str(&ran.output)?;
            let numbers = &state["numbers"];
            let both: Vec<String> = keys.iter().map(|key| numbers[key].to_string()).collect();
            ensure!(both == wanted || both == [wanted[1], wanted[0]], "{state}");
            Ok(())
        })
        .await;
    };
    numbers(["1", "2"]).await;
    scene.web.kill();
    scene
        .house
        .succeeds("test $(kontrol-master pods | grep -o '\"seq\":' | wc -l) = 1")
        .await;
    numbers(["1", "2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_checks_refuses_an_almost_empty_roster_until_somebody_agrees() {
    let _permit = small().await;
    let Some(house) = House::start().await else {
        return;
    };
    let path = house.dir().join("callback");
    fs::write(&path, block(CHECKED)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    // As it is written above the block: of three pods one leaves and one joins.
    let test =
        inline("kontrol-master callback test FILE", "").replace("FILE", path.to_str().unwrap());
    house.succeeds(&test).await;
    let with = |left: usize, pods: usize| {
        let list = |count| Value::from(vec![json!({}); count]);
        let changes = json!({"left": list(left)});
        fs::write(house.dir().join("changes"), changes.to_string()).unwrap();
        fs::write(house.dir().join("pods"), list(pods).to_string()).unwrap();
        let dir = house.dir().display();
        format!(
            "CHANGES_FILE={dir}/changes PODS_FILE={dir}/pods {}",
            path.display()
        )
    };
    let refused = house.shell(&with(9, 1)).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(refused.output, "9 left, 1 are there: refused\n");
    house.succeeds(&with(1, 9)).await;
    house.succeeds(&with(5, 5)).await;
    house.succeeds("touch /run/shrink").await;
    house.succeeds(&with(9, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_are_run_as_shown() {
    let _permit = small().await;
    let Some(scene) = Scene::start(None).await else {
        return;
    };
    scene
        .install("upgrade", "echo \"upgraded $1 $KONTROL_ID\"")
        .await;
    let mut shown = Vec::new();
    for line in lines(EXEC) {
        shown.push(scene.house.succeeds(&line).await);
    }
    let [uptime, upgrade, df, actions, curl] = &shown[..] else {
        panic!("{shown:?}");
    };
    assert!(uptime.contains(DONE), "{uptime}");
    assert_eq!(upgrade.matches(DONE).count(), 2, "{upgrade}");
    assert!(df.contains("db-1") && df.contains("summary"), "{df}");
    assert!(curl.contains(DONE), "{curl}");
    let list: Value = serde_json::from_str(actions).unwrap();
    let id = list["actions"][0]["id"].as_str().unwrap();
    // Named in the comment behind `actions`.
    let of_one = scene
        .house
        .succeeds(&format!("kontrol-master actions show {id}"))
        .await;
    assert!(of_one.contains(id), "{of_one}");
    scene
        .house
        .succeeds(&format!("kontrol-master actions cancel {id}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_an_action_over_http_is_read_byte_by_byte() {
    let _permit = small().await;
    let Some(scene) = Scene::start(None).await else {
        return;
    };
    // Of every kind: pieces without and with the end of a line, characters cut in the middle, bytes that are none.
    let command =
        r#"printf ab; sleep 0.2; printf 'cd\\n'; yes é | head -c 200001; printf '\\377\\000'"#;
    let body = json!({"selector": {"ids": ["web-1"]}, "command": {"shell": command}});
    let body = body.to_string().replace('\'', r"'\''");
    let recipe = inline("jq ", "base64 -d");
    let text = format!("curl -sN localhost:8000/v1/actions -d '{body}' | {recipe}");
    let ran = scene
        .house
        .shell(&format!(
            "{{ {text}; }} > {}/got",
            scene.house.dir().display()
        ))
        .await;
    assert!(ran.status.success(), "{ran:?}");
    let got = fs::read(scene.house.dir().join("got")).unwrap();
    let expected = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        got == expected.stdout,
        "{} bytes of {}",
        got.len(),
        expected.stdout.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_dispatches_an_action_by_command_line_and_by_curl() {
    let _permit = small().await;
    let as_shown = block(CONFIGURE);
    let (before, curl) = as_shown.split_once("# or: ").unwrap();
    let (before, _) = before.trim_end().rsplit_once('\n').unwrap();
    let by_curl = format!("{before}\n{curl}");
    for program in [&as_shown, &by_curl] {
        let Some(scene) = Scene::start(Some(program)).await else {
            return;
        };
        scene
            .install("configure", "cat > /opt/app/of-$KONTROL_ID")
            .await;
        scene
            .install("reload", "echo reloaded > /opt/app/of-$KONTROL_ID")
            .await;
        // The pods joined before the programs were there; now one more joins.
        let joined = "kontrol-slave --insecure --master 127.0.0.1 --id web-2 --ip 10.0.0.9";
        let labels = json!({"app": "a", "role": "web"});
        let _slave = scene
            .house
            .start_shell("web-2", &format!("exec {joined} --labels '{labels}'"));
        let got = eventually(SOON, "file of the pod that joined", async || {
            let ran = scene.house.shell("cat /opt/app/of-web-2").await;
            ensure!(ran.status.success() && !ran.output.is_empty(), "{ran:?}");
            Ok(ran.output)
        })
        .await;
        if program.contains("--input -") {
            let pods: Value = serde_json::from_str(&got).unwrap();
            assert_eq!(pods[2], json!({"id": "web-2", "ip": "10.0.0.9"}), "{pods}");
        } else {
            assert_eq!(got, "reloaded\n");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_answers_what_it_is_asked_as_shown() {
    let _permit = small().await;
    let Some(scene) = Scene::start(Some("#!/bin/sh\n")).await else {
        return;
    };
    for line in lines(ASK) {
        if line.contains(" watch ") {
            scene.until_shown(&line, "snapshot").await;
            continue;
        }
        let output = scene.house.succeeds(&line).await;
        let said: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let right = match line.split(' ').nth(1).unwrap() {
            "status" => said["podCount"] == 2,
            "pods" => {
                said["pods"][0]["id"] == "web-1" && said["pods"].as_array().unwrap().len() == 1
            }
            "state" => said == Value::Null,
            "explain" => said["live"] == true,
            "preview" => said["input"]["pods"].as_array().unwrap().len() == 2,
            // The run itself, behind what was asked for.
            "run" => said["exitCode"] == 0,
            "hold" | "resume" => said["hold"]["reason"] == "etcd moves",
            "evict" => said["pod"]["id"] == "web-1",
            "release" => said["revision"].is_number() && said["safeguard"] == Value::Null,
            other => panic!("what should {other} tell?"),
        };
        assert!(right, "{line}: {output}");
    }
    // Named in the comment behind `state`.
    scene
        .house
        .succeeds("kontrol-master state put '{\"a\":1}'")
        .await;
    scene
        .house
        .succeeds("kontrol-master state | kontrol-master state put -")
        .await;
    let state = scene.house.succeeds("kontrol-master state").await;
    assert_eq!(state.trim(), r#"{"a":1}"#);
}
