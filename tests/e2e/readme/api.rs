//! What the cook book of the API shows, and what the README shows of it: grpcurl, curl and the slave in shell, as they stand.

use super::{
    CURL, GRPCURL, GRPCURL_SECURED, HTTP, HTTP_SECURED, SECURED, SHELL_SLAVE, Scene, block, lines,
};
use anyhow::ensure;
use kontrol_tests::{SOON, house::House, skip, small, wait::eventually};
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, process::Command};

/// The first entry whose words are all in a line.
fn expected<'a>(line: &str, table: &'a [(&str, &str)]) -> &'a str {
    let found = table.iter().find(|(mark, _)| line.contains(mark));
    found
        .unwrap_or_else(|| panic!("what should `{line}` show?"))
        .1
}

/// Whether grpcurl is there; `tests/run` fetches it where it can.
fn has_grpcurl() -> bool {
    let found = Command::new("grpcurl").arg("-version").output().is_ok();
    if !found {
        skip("there is no grpcurl");
    }
    found
}

/// Each command shows what is expected of it; what begins with `-` is of one that fails.
async fn show(house: &House, prefix: &str, lines: &[String], table: &[(&str, &str)]) {
    for line in lines {
        let wanted = expected(line, table);
        let text = format!("{prefix}{line}");
        if let Some(wanted) = wanted.strip_prefix('-') {
            let ran = house.shell(&text).await;
            assert!(
                !ran.status.success() && ran.output.contains(wanted),
                "{line}: {ran:?}"
            );
            continue;
        }
        eventually(SOON, line, async || {
            let ran = house.shell(&text).await;
            // A stream that goes on is ended by its time limit.
            ensure!(
                ran.status.success() || line.contains("-max-time"),
                "{ran:?}"
            );
            ensure!(ran.output.contains(wanted), "{wanted} in {}", ran.output);
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_is_answered_as_shown() {
    let _permit = small().await;
    if !has_grpcurl() {
        return;
    }
    let Some(scene) = Scene::start(None).await else {
        return;
    };
    let table = [
        (" list", "kontrol.v1.OperateService\n"),
        (
            "describe kontrol.v1.KeepaliveService",
            "put:\"/v1/keepalive\"",
        ),
        (
            "describe kontrol.v1.PingRequest",
            "  // The pod's name.\n  string id = 2 ",
        ),
        ("/GetEnsemble", "\"podCount\": 2"),
        ("/ListPods", "\"ip\": \"10.0.0.7\""),
        ("\"payload\":{", "\"key\": \"blXcJ\""),
        ("/PingStream", "\"key\": \"blXcJ\""),
        ("/Watch", "\"snapshot\": {"),
        ("/Dispatch", "\"outcome\": \"OUTCOME_EXITED\""),
        ("# InvalidArgument", "-Message: ip is required"),
        ("# NotFound", "-Code: NotFound"),
        ("/Check", "\"status\": \"SERVING\""),
    ];
    show(&scene.house, "", &lines(GRPCURL), &table).await;
    let stream = lines(GRPCURL);
    let stream = stream.iter().find(|line| line.contains("/PingStream"));
    let answers = scene.house.succeeds(stream.unwrap()).await;
    assert_eq!(answers.matches("\"response\"").count(), 3, "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_answered_as_shown() {
    let _permit = small().await;
    let Some(scene) = Scene::start(None).await else {
        return;
    };
    if has_grpcurl() {
        let last = lines(CURL).pop().unwrap();
        show(&scene.house, "", &[last], &[("describe", "rpc PingStream")]).await;
    }
    let mut shown = lines(HTTP);
    shown.extend(
        lines(CURL)
            .into_iter()
            .filter(|line| line.starts_with("curl ")),
    );
    // The progress of curl goes to standard error.
    let table = [
        ("-X PUT localhost:8000/ping", "\"seq\":"),
        ("/v1/keepalive", "\"key\":\"blXcJ\""),
        ("/v1/ensemble", "\"podCount\":3"),
        ("?role=web", "\"id\":\"web-1\""),
        ("| @tsv'", "2\tcart-1\t10.0.0.9\n"),
        (":explain", "\"live\":true"),
        ("base64 -d", "web-1\n"),
        ("/v1/actions?pageSize", "\"actions\":[{"),
        ("-X PUT localhost:8000/v1/state", "\"revision\":"),
        (":8000/state", "{\"primary\":\"db-1\"}"),
        ("callback:hold", "\"reason\":\"upgrade\""),
        ("callback:resume", "\"hold\":"),
        ("-X DELETE", "\"id\":\"cart-1\""),
        ("/v1/pods/39mysN", "{\"code\":5,\"message\":\""),
        ("localhost:8000/v1/pods", "\"id\":\"db-1\""),
        ("/readyz", ""),
        ("/openapi.json", "\"openapi\":\"3.1"),
    ];
    for line in shown {
        if line.contains("/v1/watch") {
            let (command, _) = line.split_once(" #").unwrap_or((&line, ""));
            scene.until_shown(command, "snapshot").await;
        } else {
            show(&scene.house, "", &[line], &table).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_master_is_asked_as_shown() {
    let _permit = small().await;
    let Some(house) = House::start().await else {
        return;
    };
    let block = block(SECURED);
    let (setup, _) = block.split_once("kontrol-master status").unwrap();
    let eve = "openssl req -x509 -CA ca.pem -CAkey ca.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -days 365 -subj /O=kontrol:reader/CN=eve -addext basicConstraints=critical,CA:FALSE -keyout eve.key -out eve.pem";
    let setup = setup.replacen(
        "kontrol-master --bind",
        &format!("{eve}\nkontrol-master --client-ca ca.pem --bind"),
        1,
    );
    let file = house.dir().join("setup");
    fs::write(&file, setup).unwrap();
    let _tier = house.start_shell("tier", &format!(". {}", file.display()));
    let prefix = "cd /opt/kontrol && ";
    show(
        &house,
        prefix,
        &lines(HTTP_SECURED),
        &[("", "\"id\":\"web-1\"")],
    )
    .await;
    if has_grpcurl() {
        let table = [
            ("# Unauthenticated", "-Unauthenticated"),
            (" list", "kontrol.v1.EnsembleService\n"),
            ("/ListPods", "\"id\": \"web-1\""),
            ("/GetEnsemble", "\"podCount\": 1"),
        ];
        show(&house, prefix, &lines(GRPCURL_SECURED), &table).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_lines_of_shell_are_a_slave() {
    let _permit = small().await;
    let Some(house) = House::start().await else {
        return;
    };
    let program = block(SHELL_SLAVE);
    let code = program.lines().filter(|line| !line.starts_with('#'));
    assert!(code.count() <= 10, "{program}");
    let file = house.dir().join("slave");
    fs::write(&file, program).unwrap();
    let mut masters = ["8000", "8001"].map(|port| {
        // One tier of two would need etcd; that each of two hears of it in turn is the same to a slave.
        house.start_shell(port, &format!("exec kontrol-master --port {port} --ttl 3s"))
    });
    let mut slave = house.start_shell(
        "slave-1",
        &format!(
            "MASTERS='http://127.0.0.1:8000 http://127.0.0.1:8001' ID=web-1 IP=10.0.0.7 exec sh {}",
            file.display()
        ),
    );
    let pods = async |port: &str, wanted: usize| {
        eventually(SOON, &format!("{wanted} pods on {port}"), async || {
            let ran = house
                .shell(&format!("curl -s localhost:{port}/v1/pods"))
                .await;
            let list: Value = serde_json::from_str(&ran.output)?;
            ensure!(list["pods"].as_array().unwrap().len() == wanted, "{list}");
            Ok(list["pods"][0].clone())
        })
        .await
    };
    let pod = pods("8000", 1).await;
    assert_eq!((&pod["id"], &pod["role"]), (&"web-1".into(), &"web".into()));
    // It beats.
    let told = pod["lastHeard"].clone();
    eventually(SOON, "a second keepalive", async || {
        ensure!(pods("8000", 1).await["lastHeard"] != told);
        Ok(())
    })
    .await;
    masters[0].kill();
    pods("8001", 1).await;
    slave.signal(Signal::TERM);
    slave.ended(SOON).await;
    // At once, not for its silence.
    let ran = house
        .shell("kontrol-master explain 10.0.0.7 --endpoint http://localhost:8001 --output json")
        .await;
    assert!(ran.output.contains("DOWN"), "{ran:?}");
    pods("8001", 0).await;
}
