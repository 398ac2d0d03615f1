//! The ten lines of a secured tier, as they stand.

use super::{SECURED, block};
use anyhow::ensure;
use kontrol_tests::{SOON, house::House, small, wait::eventually};
use std::fs;

/// The commands that start something and those before them are run once; those behind are tried until they succeed, as a
/// person would who is faster than the programs.
#[tokio::test(flavor = "multi_thread")]
async fn ten_lines_make_a_secured_tier() {
    let _permit = small().await;
    let Some(house) = House::start().await else {
        return;
    };
    let block = block(SECURED);
    assert!(block.lines().count() <= 10, "{block}");
    let (setup, asks) = block.split_once("kontrol-master status").unwrap();
    let file = house.dir().join("setup");
    fs::write(&file, setup).unwrap();
    let tier = house.start_shell("tier", &format!(". {}", file.display()));
    let ask = |command: &str| {
        let export = setup
            .lines()
            .find(|line| line.starts_with("export "))
            .unwrap();
        format!("cd /opt/kontrol && {export} && {command}")
    };
    for command in format!("kontrol-master status{asks}").lines() {
        let shown = eventually(SOON, command, async || {
            let ran = house.shell(&ask(command)).await;
            ensure!(ran.status.success(), "{}\n{}", ran.output, tier.log());
            Ok(ran.output)
        })
        .await;
        let wanted = if command.contains("status") {
            "localhost"
        } else {
            "uid="
        };
        assert!(
            shown.contains(wanted) || command.contains("status"),
            "{shown}"
        );
    }

    // Nobody else comes in, by whatever face, and the master says who came.
    for stranger in [
        "kontrol-master pods --endpoint https://localhost --ca ca.pem",
        "kontrol-master pods --endpoint https://localhost --ca ca.pem --token-file web-1.token",
        "kontrol-master pods --endpoint https://localhost",
        "kontrol-master pods --endpoint http://localhost",
        "curl -fsS --cacert ca.pem https://localhost:8000/v1/pods",
    ] {
        let ran = house.shell(&format!("cd /opt/kontrol && {stranger}")).await;
        assert!(!ran.status.success(), "{stranger}: {}", ran.output);
    }
    let log = tier.log();
    for line in [
        "principal=\"ann\"",
        "principal=\"web-1\" role=\"slave\"",
        "audit: refused",
    ] {
        assert!(log.contains(line), "{line} in {log}");
    }
    let tokens = house
        .shell("cat /opt/kontrol/*.token | grep ^kontrol_")
        .await
        .output;
    assert_eq!(tokens.lines().count(), 3);
    for token in tokens.lines() {
        assert!(!log.contains(token), "a token is in the log");
    }
}
