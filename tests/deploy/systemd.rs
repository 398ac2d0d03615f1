//! The Debian packages and their units: installed, started, watched, upgraded and removed under a real systemd.

use crate::secured::token;
use anyhow::ensure;
use kontrol_runtime::testing::Authority;
use kontrol_tests::{SOON, heavy, house::project, machine::Machine, node, skip, wait::eventually};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Makes both packages of the built programs; none, said aloud, where there is no `cargo deb`.
fn packages(dir: &Path) -> Option<[PathBuf; 2]> {
    let release = dir.join("release");
    fs::create_dir(&release).unwrap();
    let made = ["kontrol-master", "kontrol-slave"].map(|name| {
        // Tests are about what is built already. Without what debuggers read, it is quickly packed.
        let program = release.join(name);
        let strip = Command::new("strip")
            .args(["-o"])
            .arg(&program)
            .arg(node::program(name))
            .status();
        assert!(strip.unwrap().success());
        let ran = Command::new("cargo-deb")
            .args([
                "deb",
                "--no-build",
                "--no-strip",
                "--fast",
                "--package",
                name,
                "--output",
            ])
            .arg(dir.join(format!("{name}.deb")))
            .env("CARGO_TARGET_DIR", dir)
            .current_dir(project())
            .output();
        let Ok(ran) = ran else {
            skip("there is no cargo-deb");
            return None;
        };
        assert!(ran.status.success(), "{ran:?}");
        Some(dir.join(format!("{name}.deb")))
    });
    let [master, slave] = made;
    Some([master?, slave?])
}

/// A tier of one master that asks who calls, and a pod, by the settings and credentials of the packages.
fn settle(machine: &Machine) {
    let authority = Authority::new("ours");
    let (cert, key) = authority.sign(&["localhost"]);
    let (ann, operator) = token("operator", "ann");
    let (web, slave) = token("slave", "web-1");
    let (m1, peer) = token("peer", "m1");
    for (path, text, owner, mode) in [
        ("/etc/kontrol/ca.pem", &authority.pem(), "root:root", "644"),
        ("/etc/kontrol/master.pem", &cert, "root:root", "644"),
        (
            "/etc/kontrol/tokens",
            &[operator, slave, peer].join("\n"),
            "root:kontrol",
            "640",
        ),
        (
            "/etc/kontrol/master.credentials/key.pem",
            &key,
            "root:root",
            "600",
        ),
        (
            "/etc/kontrol/master.credentials/token",
            &m1,
            "root:root",
            "600",
        ),
        (
            "/etc/kontrol/slave.credentials/token",
            &web,
            "root:root",
            "600",
        ),
        ("/root/ann.token", &ann, "root:root", "600"),
    ] {
        machine.write(path, text, owner, mode);
    }
    let credentials =
        |unit: &str, name: &str| format!("/run/credentials/{unit}.service/kontrol_{name}");
    let master = [
        "KONTROL_BIND=0.0.0.0".to_owned(),
        "KONTROL_ADVERTISE=localhost:8000".into(),
        "KONTROL_STORE=file:/var/lib/kontrol/master".into(),
        "KONTROL_SHELL_CALLBACK=jq -c length $PODS_FILE".into(),
        "KONTROL_DAMPER=200ms".into(),
        "KONTROL_TTL=10s".into(),
        "KONTROL_TOKENS=/etc/kontrol/tokens".into(),
        "KONTROL_TLS_CERT=/etc/kontrol/master.pem".into(),
        format!(
            "KONTROL_TLS_KEY={}",
            credentials("kontrol-master", "key.pem")
        ),
        "KONTROL_CA=/etc/kontrol/ca.pem".into(),
        format!(
            "KONTROL_TOKEN_FILE={}",
            credentials("kontrol-master", "token")
        ),
    ];
    let slave = [
        "KONTROL_MASTER=https://localhost".to_owned(),
        "KONTROL_ID=web-1".into(),
        "KONTROL_LABELS={\"app\":\"shop\",\"role\":\"web\"}".into(),
        "KONTROL_CA=/etc/kontrol/ca.pem".into(),
        format!(
            "KONTROL_TOKEN_FILE={}",
            credentials("kontrol-slave", "token")
        ),
    ];
    machine.write(
        "/etc/kontrol/master.env",
        &master.join("\n"),
        "root:root",
        "600",
    );
    machine.write(
        "/etc/kontrol/slave.env",
        &slave.join("\n"),
        "root:root",
        "600",
    );
}

/// A command of the operator's.
fn ask(command: &str) -> String {
    format!(
        "kontrol-master {command} --endpoint https://localhost --ca /etc/kontrol/ca.pem --token-file /root/ann.token"
    )
}

fn property(machine: &Machine, unit: &str, name: &str) -> String {
    machine
        .succeeds(&format!("systemctl show --property={name} --value {unit}"))
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_installed_started_watched_upgraded_and_removed() {
    let _permit = heavy().await;
    let dir = tempfile::tempdir().unwrap();
    let Some(packages) = packages(dir.path()) else {
        return;
    };
    let Some(machine) = Machine::boot().await else {
        return;
    };
    for package in &packages {
        let name = package.file_name().unwrap().to_str().unwrap();
        machine.copy(package, &format!("/root/{name}"));
    }
    let install = "dpkg --install /root/kontrol-master.deb /root/kontrol-slave.deb";
    machine.succeeds(install);
    assert_eq!(machine.succeeds("id -u kontrol").trim(), "10001");
    for unit in ["kontrol-master", "kontrol-slave"] {
        assert_eq!(
            property(&machine, unit, "ActiveState"),
            "inactive",
            "{unit} wants settings first"
        );
        machine.succeeds(&format!("systemd-analyze verify {unit}.service"));
    }

    settle(&machine);
    // Both are started once they say that they are ready.
    machine.succeeds("systemctl enable --now kontrol-master kontrol-slave");
    machine
        .until(&format!("{} | grep web-1", ask("pods")))
        .await;
    assert!(
        property(&machine, "kontrol-master", "StatusText").starts_with("serving gRPC and HTTP on ")
    );
    machine.until("systemctl show --property=StatusText kontrol-slave | grep 'attached to https://localhost:8000, seq 0'").await;
    // The callback runs within what the unit allows, and so do commands.
    machine
        .until(&format!("{} | grep -x 1", ask("state")))
        .await;
    let ran = machine
        .until(&format!(
            "{} -- sh -c 'id -un; pwd; echo $NOTIFY_SOCKET; touch kept'",
            ask("exec --all --output raw")
        ))
        .await;
    assert_eq!(ran, "kontrol\n/var/lib/kontrol/slave\n\n");
    machine.succeeds("test -f /var/lib/kontrol/slave/kept");
    for unit in ["kontrol-master", "kontrol-slave"] {
        let judged = machine.succeeds(&format!(
            "systemd-analyze security --no-pager {unit} | tail -n 1"
        ));
        let level: f32 = judged
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap();
        eprintln!("{}", judged.trim());
        assert!(level < 2.0, "{judged}");
    }

    // A master that stands still is started anew, and goes on with what it kept.
    machine.succeeds("mkdir -p /run/systemd/system/kontrol-master.service.d && printf '[Service]\nWatchdogSec=2\n' > /run/systemd/system/kontrol-master.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart kontrol-master");
    machine.succeeds("kill -STOP $(systemctl show --property=MainPID --value kontrol-master)");
    machine
        .until("test $(systemctl show --property=NRestarts --value kontrol-master) -ge 1")
        .await;
    let pods = machine
        .until(&format!("{} | grep web-1", ask("pods")))
        .await;
    assert!(pods.contains("\"seq\":0,"), "{pods}");

    // An upgrade goes on with the new programs.
    let before = property(&machine, "kontrol-slave", "MainPID");
    machine.succeeds(install);
    assert_ne!(property(&machine, "kontrol-slave", "MainPID"), before);
    machine
        .until(&format!("{} | grep '\"lastHeard\"'", ask("pods")))
        .await;

    // In its place: the pod did not leave.
    let pods = machine.succeeds(&ask("pods"));
    assert!(pods.contains("\"seq\":0,"), "{pods}");

    // The pod says goodbye.
    machine
        .until("systemctl show --property=StatusText kontrol-slave | grep 'attached to'")
        .await;
    machine.succeeds("systemctl stop kontrol-slave");
    let said = machine.succeeds(&ask("explain 127.0.0.1 --output json"));
    assert!(said.contains("DOWN"), "{said}");

    // Wrong settings are told, and not tried again.
    machine.succeeds("(echo; echo KONTROL_LABELS=x) >> /etc/kontrol/slave.env");
    assert!(
        !machine
            .run("systemctl start kontrol-slave")
            .status
            .success()
    );
    eventually(SOON, "the end of a slave with wrong settings", async || {
        ensure!(property(&machine, "kontrol-slave", "ActiveState") == "failed");
        Ok(())
    })
    .await;
    assert_eq!(property(&machine, "kontrol-slave", "ExecMainStatus"), "2");
    let log = machine.succeeds("journalctl --no-pager --unit kontrol-slave --lines 20");
    assert!(log.contains("--labels"), "{log}");

    machine.succeeds("dpkg --remove kontrol-slave && dpkg --purge kontrol-master");
    assert_eq!(
        property(&machine, "kontrol-master", "ActiveState"),
        "inactive"
    );
    machine.succeeds("test ! -e /usr/bin/kontrol-master && test ! -e /var/lib/kontrol/master && test ! -e /etc/kontrol/master.env");
    machine.succeeds("test -e /etc/kontrol/slave.env && dpkg --purge kontrol-slave && test ! -e /var/lib/kontrol");
}
