//! The callback's own token, and that no secret shows anywhere.

use super::{text, token};
use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{Slave, command, run},
    process::descendants,
    small,
    wait::eventually,
};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

const PASSWORD: &str = "the-password-of-etcd";

/// Asks a master by the command line, with this token.
async fn ask(url: &str, token: &str, words: &[&str]) -> Output {
    let mut asks = command("kontrol-master");
    asks.args(words).env("KONTROL_ENDPOINT", url);
    if !token.is_empty() {
        asks.env("KONTROL_TOKEN", token);
    }
    run(asks).await
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callback_comes_in_on_every_master_while_it_runs_and_no_secret_shows() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let secrets: BTreeMap<&str, (String, String)> = [
        ("peer", token("peer", "masters")),
        ("operator", token("operator", "ann")),
        ("reader", token("reader", "rita")),
        ("slave", token("slave", "web-1")),
    ]
    .into();
    let lines: Vec<&str> = secrets.values().map(|(_, line)| line.as_str()).collect();
    let (tokens, own) = (dir.path().join("tokens"), dir.path().join("web-1"));
    write(&tokens, &lines.join("\n"));
    write(&own, &secrets["slave"].0);
    // It shows its token to the test, and to the log, which must not have it; it holds the callback by way of the other
    // master, and waits until the test has seen enough.
    let (callback, seen, go_on) = (
        dir.path().join("callback"),
        dir.path().join("seen"),
        dir.path().join("go-on"),
    );
    let script = format!(
        "#!/bin/sh\nset -e\nenv >&2\nfor url in $(cat {urls}); do kontrol-master state --endpoint $url >&2; done\necho $KONTROL_TOKEN > {seen}.new\nmv {seen}.new {seen}\nuntil [ -e {go_on} ]; do sleep 0.05; done\n",
        urls = dir.path().join("urls").display(),
        seen = seen.display(),
        go_on = go_on.display(),
    );
    fs::write(&callback, script).unwrap();
    fs::set_permissions(&callback, fs::Permissions::from_mode(0o755)).unwrap();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .set("tokens", &text(&tokens))
        .env("KONTROL_VERBOSE", "yes")
        .set("callback", &text(&callback))
        .env("KONTROL_TOKEN", &secrets["peer"].0)
        .env("KONTROL_ETCD_USER", "root")
        .env("KONTROL_ETCD_PASSWORD", PASSWORD)
        .build();
    let urls: Vec<String> = cluster.masters.iter().map(|master| master.url()).collect();
    fs::write(dir.path().join("urls"), urls.join("\n")).unwrap();
    for master in &mut cluster.masters {
        master.start().await;
    }
    cluster.ready().await;
    let slave = Slave::start(
        "web-1",
        &[
            ("master", &urls.join("|")),
            ("insecure", ""),
            ("verbose", ""),
            ("token-file", &text(&own)),
            ("id", "web-1"),
            ("ip", "127.0.0.77"),
            ("labels", r#"{"app":"web","role":"web"}"#),
        ],
        dir.path(),
    );

    // Every master let the callback in, or it would not have come so far.
    let run_token = eventually(SOON, "a callback that was let in by both", async || {
        Ok(fs::read_to_string(&seen)?.trim().to_owned())
    })
    .await;
    assert!(run_token.starts_with("kontrol_"), "{run_token}");
    for url in &urls {
        let output = ask(url, &run_token, &["pods"]).await;
        assert!(output.status.success(), "{url}: {output:?}");
    }
    let mut all: Vec<String> = secrets.values().map(|(token, _)| token.clone()).collect();
    all.extend([run_token.clone(), PASSWORD.to_owned()]);

    // A command sees nothing of them, and neither does whoever looks at its processes.
    let words = [
        "exec",
        "--all",
        "--output",
        "raw",
        "--shell",
        "env; cat /proc/$PPID/environ /proc/$PPID/cmdline",
    ];
    let output = ask(&urls[0], &secrets["operator"].0, &words).await;
    assert!(output.status.success(), "{output:?}");
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut look = |place: &str, content: &[u8]| {
        places.insert(
            place.to_owned(),
            String::from_utf8_lossy(content).into_owned(),
        );
    };
    look("a command", &[output.stdout, output.stderr].concat());
    for (index, url) in urls.iter().enumerate() {
        for path in ["/metrics", "/v1/ensemble", "/v1/actions", "/v1/pods"] {
            let output = with_token(url, path, &secrets["reader"].0).await;
            assert!(output.status.success(), "{path}: {output:?}");
            look(&format!("{path} of master {index}"), &output.stdout);
        }
        let refused = ask(url, "kontrol_no_such_token", &["pods"]).await;
        assert!(!refused.status.success());
        look(&format!("an error of master {index}"), &refused.stderr);
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = fs::read(process.path().join("cmdline")) {
            look(&process.path().display().to_string(), &line);
        }
    }
    for (key, value) in etcd.read("").await {
        look(&format!("the key {key}"), value.as_bytes());
    }
    // The guard of the callback, and the callback: they have the token of the run and no other.
    let own_tokens = &all[..all.len() - 2];
    let mut with_its_own = 0;
    for index in 0..2 {
        let pid = cluster.masters[index].process().pid();
        for (child, _) in descendants(pid) {
            let environ = fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
            let environ = String::from_utf8_lossy(&environ).into_owned();
            with_its_own += usize::from(environ.contains(&run_token));
            for secret in own_tokens.iter().chain([&PASSWORD.to_owned()]) {
                assert!(
                    !environ.contains(secret.as_str()),
                    "process {child} has a secret of the master"
                );
            }
        }
    }
    assert!(with_its_own > 0, "what the callback has could not be read");

    // The run is over, and its token with it.
    fs::write(&go_on, "").unwrap();
    for url in &urls {
        eventually(SOON, "a token that counts no more", async || {
            let output = ask(url, &run_token, &["pods"]).await;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                !output.status.success() && told.contains("UNAUTHENTICATED"),
                "{output:?}"
            );
            Ok(())
        })
        .await;
    }
    let mut look = |place: &str, content: &[u8]| {
        places.insert(
            place.to_owned(),
            String::from_utf8_lossy(content).into_owned(),
        );
    };
    for (index, master) in cluster.masters.iter().enumerate() {
        look(
            &format!("the log of master {index}"),
            master.log().as_bytes(),
        );
    }
    look("the log of the slave", slave.log().as_bytes());
    for (place, content) in &places {
        for secret in &all {
            assert!(
                !content.contains(secret.as_str()),
                "{place} shows a secret: {content}"
            );
        }
    }
    let logs = places["the log of master 0"].clone() + &places["the log of master 1"];
    assert!(
        logs.contains("KONTROL_TOKEN=***"),
        "the callback's own words are masked"
    );
    assert!(logs.contains("principal=\"ann\""), "{logs}");
}

/// What curl gets of a path with a token.
async fn with_token(url: &str, path: &str, token: &str) -> Output {
    let mut curl = std::process::Command::new("curl");
    // By standard input: a list of processes would show the header.
    let config = format!("header = \"Authorization: Bearer {token}\"\nurl = \"{url}{path}\"\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), config).unwrap();
    curl.args(["-fsS", "--config"]).arg(file.path());
    run(curl).await
}
