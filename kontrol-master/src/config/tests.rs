use super::*;
use clap::{CommandFactory, Parser};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
}

fn check(words: &[&str]) -> Result<Config, Vec<String>> {
    let cli = Cli::try_parse_from(["m"].iter().chain(words)).unwrap();
    let environment = |name: &str| (name == "NAMESPACE").then(|| "from-env".to_owned());
    let mistakes = |mistakes: Vec<Mistake>| mistakes.iter().map(Mistake::to_string).collect();
    cli.serve.check(environment).map_err(mistakes)
}

#[test]
fn the_defaults_are_the_promised_ones() {
    let config = check(&[]).unwrap();
    let settings = &config.settings;
    assert_eq!(
        (config.port, config.bind.to_string()),
        (8000, "127.0.0.1".to_owned())
    );
    assert_eq!(
        (settings.namespace.as_str(), settings.app.as_str()),
        ("from-env", "default")
    );
    assert_eq!(config.store, StoreUrl::Memory);
    let times = [
        settings.ttl,
        settings.damper,
        settings.damper_max,
        settings.fover,
        config.callback_timeout,
    ];
    assert_eq!(times.map(|time| time.as_secs()), [25, 10, 60, 5, 60]);
    assert!(config.callback.is_none() && config.mixed.is_none() && config.upstream.is_none());
}

#[test]
fn a_setting_that_is_blank_was_not_said() {
    let blank = [
        "--port=",
        "--bind=",
        "--advertise=",
        "--namespace=",
        "--store=",
        "--etcd=",
        "--etcd-user=",
        "--ttl=",
        "--damper-max= ",
        "--callback=",
        "--shell-callback=",
        "--mode=",
        "--upstream=",
        "--master=",
        "--labels=",
        "--id=",
        "--ip=",
    ];
    let config = check(&blank).unwrap();
    assert_eq!((config.port, config.settings.ttl.as_secs()), (8000, 25));
    assert_eq!((config.id, config.upstream.is_none()), (None, true));
}

#[test]
fn the_ensemble_is_named_by_flag_then_label_then_default() {
    let labels = r#"--labels={"app":"shop","role":"x"}"#;
    assert_eq!(check(&[labels]).unwrap().settings.app, "shop");
    assert_eq!(
        check(&[labels, "--app", "web"]).unwrap().settings.app,
        "web"
    );
    assert_eq!(
        check(&["--namespace", "n"]).unwrap().settings.namespace,
        "n"
    );
}

#[test]
fn every_mistake_is_told_at_once_with_its_flag() {
    let mistakes = check(&[
        "--port=70000",
        "--bind=0.0.0.0",
        "--advertise=http://x",
        "--namespace=a/b",
        "--app=ä",
        "--store=s3:",
        "--ttl=0",
        "--damper=soon",
        "--fover=1ms",
        "--callback=/nowhere",
        "--callback-timeout=0",
        "--etcd-cert=c",
        "--mode=slave",
        "--upstream=http://",
        "--labels=[]",
    ])
    .unwrap_err();
    let flags: Vec<_> = mistakes
        .iter()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(
        flags,
        [
            "--port",
            "--bind",
            "--advertise",
            "--ttl",
            "--damper",
            "--fover",
            "--callback-timeout",
            "--callback",
            "--labels",
            "--app",
            "--namespace",
            "--store",
            "--etcd-cert",
            "--mode",
            "--upstream"
        ]
    );
    assert!(mistakes.iter().all(|line| !line.contains('\n')));
}

#[test]
fn limits_have_their_defaults_and_what_makes_no_sense_is_told() {
    let limits = check(&[]).unwrap().limits;
    assert_eq!(limits.port, crate::serve::listener::Limits::default());
    assert_eq!(limits.traffic, kontrol_core::traffic::Limits::default());
    assert_eq!(limits.said, kontrol_core::limits::Limits::default());
    assert_eq!(limits.said.request_bytes, kontrol_proto::MAX_MESSAGE_BYTES);
    let config = check(&[
        "--max-request=64KiB",
        "--max-payload=1024",
        "--max-pods=3",
        "--max-rate=",
        "--max-streams=1",
        "--stall-timeout=500ms",
    ]);
    let config = config.unwrap();
    let said = &config.settings.limits;
    assert_eq!(
        (said.request_bytes, said.payload_bytes, said.pods),
        (65_536, 1024, 3)
    );
    assert_eq!(config.limits.traffic.rate, 1000);
    assert_eq!(config.limits.port.streams, 1);
    assert_eq!(config.limits.port.stalled, Duration::from_millis(500));
    for (wrong, said) in [
        ("--max-request=9MiB", "not within 4KiB and 8MiB"),
        ("--max-request=0", "not within 4KiB and 8MiB"),
        ("--max-payload=1MB", "not a unit of size"),
        ("--max-payload=65537", "not within 2 and 64KiB"),
        ("--max-json-depth=31", "not a number from 1 to 30"),
        ("--max-labels=0", "not a number from 1 to 64"),
        ("--max-pods=-1", "not a number from 1"),
        ("--max-dispatches=5000", "not a number from 1 to 4096"),
        ("--max-watchers=many", "not a number from 1"),
        ("--max-rate=0", "not a number from 1"),
        ("--max-requests=1.5", "not a number from 1"),
        ("--max-connections=0", "not a number from 1"),
        ("--max-connections-each=0", "not a number from 1"),
        ("--max-streams=99999999999", "not a number from 1"),
        ("--handshake-timeout=0", "less than 100ms"),
        ("--head-timeout=soon", "not a duration"),
        ("--idle-timeout=1ms", "less than 100ms"),
        ("--stall-timeout=0s", "less than 100ms"),
    ] {
        let mistakes = check(&[wrong]).err();
        let mistakes = mistakes.unwrap_or_else(|| panic!("{wrong} is taken"));
        let flag = wrong.split('=').next().unwrap();
        assert!(
            mistakes.len() == 1
                && mistakes[0].starts_with(&format!("{flag}: "))
                && mistakes[0].contains(said),
            "{mistakes:?}"
        );
    }
}

/// What nobody can dial is never told to others.
#[test]
fn an_address_that_nobody_can_dial_is_refused() {
    for wrong in [
        "0.0.0.0:8000",
        "[::]:8000",
        "[::ffff:0.0.0.0]:8000",
        "224.0.0.1:8000",
        "255.255.255.255:80",
        "[ff02::1]:80",
        "[fe80::1]:80",
        "[fe80::1%eth0]:80",
        "::1:8000",
        "fd00::1:8000",
        "[10.0.0.1]:80",
        "[fd00::1]",
        "[fd00::1]80",
        "10.0.0:80",
        "10.0.0.300:80",
        "010.0.0.1:80",
        "1:80",
        "bad host:80",
        "host/path:80",
        "user@host:80",
        "http://host:80",
        "-:x",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:+80",
        "host:65536",
    ] {
        let flag = format!("--advertise={wrong}");
        let mistakes = check(&[&flag])
            .err()
            .unwrap_or_else(|| panic!("{wrong} is taken"));
        assert!(
            mistakes[0].starts_with("--advertise: ") && mistakes.len() == 1,
            "{mistakes:?}"
        );
    }
    for right in [
        "host:1",
        "m-0.masters.example.org.:8000",
        "10.0.0.1:80",
        "[fd00::1]:80",
        "kontrol_master:8000",
        "127.0.0.1:80",
    ] {
        let flag = format!("--advertise={right}");
        assert_eq!(check(&[&flag]).unwrap().advertise.as_deref(), Some(right));
    }
    let loopback = |bind: &str, store: &str| {
        let flags = [format!("--bind={bind}"), format!("--store={store}")];
        let flags = [
            &flags[0],
            &flags[1],
            "--advertise=127.0.0.1:80",
            "--insecure",
        ];
        check(&flags).is_ok()
    };
    assert!(loopback("127.0.0.1", "etcd://10.0.0.9") && loopback("0.0.0.0", "etcd://127.0.0.1"));
    assert!(
        !loopback("0.0.0.0", "etcd://127.0.0.1,10.0.0.9") && !loopback("::", "etcd://[fd00::1]")
    );
    for ip in ["0.0.0.0", "::", "224.0.0.1"] {
        let flag = format!("--ip={ip}");
        assert!(check(&[&flag]).unwrap_err()[0].starts_with("--ip: "));
    }
}

#[test]
fn two_spellings_of_one_setting_are_refused_and_the_classic_one_is_read() {
    assert_eq!(
        check(&["--etcd=h1,h2:23"]).unwrap().store.to_string(),
        "etcd://h1:2379,h2:23"
    );
    assert!(check(&["--etcd=h1", "--store=memory:"]).unwrap_err()[0].starts_with("--etcd: "));
    assert!(
        check(&["--callback=/bin/true", "--shell-callback=true"]).unwrap_err()[0]
            .starts_with("--shell-callback: ")
    );
    assert!(
        check(&["--damper=10s", "--damper-max=5s"]).unwrap_err()[0].starts_with("--damper-max: ")
    );
}

#[test]
fn the_classic_switch_makes_a_text_of_the_callback_or_nothing() {
    let argv = |words: &[&str]| {
        let program = check(words).unwrap().callback;
        program.map(|program| program.to_string())
    };
    let text = "--callback=cat | wc";
    assert_eq!(
        argv(&[text, "--shell-callback=TRUE"]),
        Some("cat | wc".into())
    );
    let path = "--callback=/bin/true";
    assert_eq!(
        argv(&[path, "--shell-callback=FALSE"]),
        Some("/bin/true".into())
    );
    assert_eq!(argv(&["--shell-callback=FALSE"]), None);
    assert_eq!(argv(&["--shell-callback=TRUE"]), None);
    assert!(check(&["--mode=debug"]).unwrap_err()[0].contains("no mode any more"));
}

#[test]
fn a_master_that_is_a_pod_has_labels_of_its_own() {
    let config = check(&["--mode=master,slave", "--app=web", "--ip=127.0.0.9"]).unwrap();
    let pod = config.pod.unwrap();
    assert_eq!(
        (
            pod.given.labels["app"].as_str(),
            pod.given.labels["role"].as_str()
        ),
        ("web", "master")
    );
    assert!(check(&["--upstream=h"]).unwrap().upstream.is_some());
}

/// The tables of the operator's guide are true: each flag with its variable, and nothing else.
#[test]
fn the_readme_tells_every_flag() {
    let readme = include_str!("../../../deploy/README.md");
    let command = Cli::command();
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else {
            continue;
        };
        let variable = format!("KONTROL_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(
            arg.get_env().and_then(|name| name.to_str()),
            Some(variable.as_str())
        );
        assert!(
            readme.contains(&format!("`--{flag}`")),
            "deploy/README.md lacks --{flag}"
        );
        let help = arg.get_help().unwrap().to_string();
        let is_switch = !arg.get_action().takes_values();
        assert!(
            is_switch || help.contains("Default: ") || !arg.get_default_values().is_empty(),
            "--{flag}: {help}"
        );
    }
    let (_, own) = readme.split_once("\n### kontrol-master\n").unwrap();
    let (own, _) = own.split_once("\n### kontrol-slave\n").unwrap();
    for row in own.lines().filter(|line| line.starts_with("| `--")) {
        let cell = row.split('|').nth(1).unwrap();
        for flag in cell.split('`').filter_map(|code| code.strip_prefix("--")) {
            let is_there = command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(flag));
            assert!(is_there, "deploy/README.md tells of --{flag}");
        }
    }
}
