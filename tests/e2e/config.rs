//! Configuration of the master: wrong settings are told before anything is bound; flags win over the environment.

use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    node::{Master, command, run},
    pod::PodSpec,
    ports,
    script::Recorder,
    small,
};
use std::{net::TcpListener, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_one_line_that_names_it_and_exit_code_2() {
    let _permit = small().await;
    // Held, so that a master that binds before it checks fails in another way.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    for (flag, value) in [
        ("port", "70000"),
        ("bind", "here"),
        ("store", "mysql://x"),
        ("store", "etcd://"),
        ("ttl", "soon"),
        ("ttl", "0"),
        ("ttl", "-3s"),
        ("damper", "5 parsecs"),
        ("fover", "0s"),
        ("callback", "/nonexistent/callback"),
        ("callback-timeout", "x"),
        ("mode", "boss"),
        ("upstream", "http://"),
        ("safeguard", "101%"),
        ("safeguard", "half"),
        ("safeguard", "-1"),
        ("safeguard-min", "few"),
        ("safeguard-max", "soon"),
    ] {
        let mut master = command("kontrol-master");
        if flag != "port" {
            master.args(["--port", &port]);
        }
        master.arg(format!("--{flag}={value}"));
        let output = run(master).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "--{flag} {value}: {text}");
        assert!(text.contains(flag), "--{flag} {value} is not named: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
    for (variable, value) in [
        ("KONTROL_TTL", "soon"),
        ("KONTROL_PORT", "x"),
        ("KONTROL_ETCD", "a b"),
    ] {
        let mut master = command("kontrol-master");
        master.env(variable, value);
        if variable != "KONTROL_PORT" {
            master.args(["--port", &port]);
        }
        let output = run(master).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{variable}={value}: {text}");
        let flag = variable["KONTROL_".len()..].to_lowercase();
        assert!(
            text.contains(variable) || text.contains(&flag),
            "{variable}={value}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_master_takes_of_a_pod_is_checked_even_when_it_is_none() {
    let _permit = small().await;
    for (flag, value) in [("ip", "10.0.0"), ("podinfo", "/nonexistent/podinfo")] {
        let mut master = command("kontrol-master");
        master.args(["--port=0", &format!("--{flag}={value}")]);
        let output = run(master).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("--{flag}: ")), "{text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
}

/// The last setting is wrong, so that the program tells what it made of those before and ends.
async fn lines_of(program: &str, settings: &[(&str, &str)], wrong: &str) -> String {
    let mut command = command(program);
    command.envs(settings.iter().copied()).arg(wrong);
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_variables_count_as_absent_and_switches_take_1() {
    let _permit = small().await;
    let empty = [
        "PORT",
        "BIND",
        "STORE",
        "ETCD_USER",
        "ETCD_PASSWORD",
        "ETCD_CACERT",
        "ETCD_CERT",
        "ETCD_KEY",
        "TTL",
        "DAMPER",
        "DAMPER_MAX",
        "FOVER",
        "CALLBACK_TIMEOUT",
        "LOG_FORMAT",
        "VERBOSE",
        "INSECURE",
        "IP",
        "PODINFO",
        "OUTPUT",
        "REVISION",
    ]
    .map(|name| (format!("KONTROL_{name}"), ""));
    let empty: Vec<_> = empty
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    let text = lines_of("kontrol-master", &empty, "--mode=boss").await;
    assert!(
        text.starts_with("kontrol-master: --mode: ") && text.lines().count() == 1,
        "{text}"
    );
    let text = lines_of("kontrol-slave", &empty, "--mode=boss").await;
    assert!(
        text.contains("kontrol-slave: --mode: ") && !text.contains("invalid value"),
        "{text}"
    );
    let switches = [
        ("KONTROL_INSECURE", "1"),
        ("KONTROL_VERBOSE", "1"),
        ("KONTROL_BIND", "0.0.0.0"),
    ];
    let text = lines_of("kontrol-master", &switches, "--mode=boss").await;
    assert!(
        text.starts_with("kontrol-master: --mode: ") && text.lines().count() == 1,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_downward_api_folder_names_the_app_of_a_master_too() {
    let _permit = small().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("labels"), "app=\"from-folder\"\n").unwrap();
    let podinfo = folder.path().to_str().unwrap().to_owned();
    let environment = vec![("KONTROL_PODINFO".to_owned(), podinfo)];
    let mut master = Master::new("m", Vec::new(), environment, folder.path());
    master.start().await;
    assert_eq!(master.api().ensemble().await.unwrap().app, "from-folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_one_clear_line_and_exit_code_1() {
    let _permit = small().await;
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let mut master = command("kontrol-master");
    master.args(["--port", &port]);
    let output = run(master).await;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&port) && !text.contains("panicked"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_configures_as_flags_do_and_durations_take_units() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::shell();
    let mut master = command("kontrol-master");
    let port = ports::free().to_string();
    for (name, value) in [
        ("KONTROL_PORT", port.as_str()),
        ("KONTROL_ETCD", etcd.endpoints()[0].as_str()),
        ("NAMESPACE", "prod"),
        ("KONTROL_LABELS", r#"{"app":"from-label","role":"master"}"#),
        ("KONTROL_TTL", "40"),
        ("KONTROL_DAMPER", "1m"),
        ("KONTROL_FOVER", "2500ms"),
        ("KONTROL_CALLBACK", recorder.program().to_str().unwrap()),
    ] {
        master.env(name, value);
    }
    master.args(["--damper", "250ms"]);
    let dir = tempfile::tempdir().unwrap();
    let _process =
        kontrol_tests::process::Process::spawn("master", &mut master, &dir.path().join("log"));
    let api = kontrol_tests::client::Api::new(format!("http://127.0.0.1:{port}"));
    // Who leads tells of its callback once its term has begun.
    let view = kontrol_tests::wait::eventually(SOON, "leader with its callback", async || {
        let view = api.ensemble().await?;
        let configured = view.callback.as_ref().is_some_and(|one| one.configured);
        anyhow::ensure!(view.leader.is_some() && configured, "{view:?}");
        Ok(view)
    })
    .await;
    assert_eq!(
        (view.namespace.as_str(), view.app.as_str()),
        ("prod", "from-label")
    );
    let settings = view.settings.unwrap();
    let millis = |time: Option<prost_types::Duration>| {
        Duration::try_from(time.unwrap()).unwrap().as_millis()
    };
    assert_eq!(millis(settings.ttl), 40_000);
    assert_eq!(millis(settings.damper), 250, "the flag wins");
    assert_eq!(millis(settings.damper_max), 1500, "six times the damper");
    assert_eq!(millis(settings.fover), 2500);
    assert!(etcd.read("/kontrol/prod/from-label/masters/").await.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_starts_without_its_store_and_serves_when_it_comes() {
    let _permit = small().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    etcd.stop().await;
    let mut cluster = Cluster::on(&etcd.store()).patient().build();
    cluster.masters[0].start().await;
    let refused = cluster.api(0).ping(&PodSpec::number(0)).await.unwrap_err();
    assert!(
        matches!(
            refused.code(),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded
        ),
        "{refused}"
    );
    etcd.restart().await;
    cluster.ready().await;
    assert_eq!(
        cluster.api(0).ping(&PodSpec::number(0)).await.unwrap().seq,
        0
    );
}
