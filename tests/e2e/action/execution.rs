//! What runs, and how it ends: words, environment, input, time-outs, policy, user, and what is left behind.

use super::alone;
use anyhow::ensure;
use kontrol_proto::v1::{Command, DispatchRequest, Outcome};
use kontrol_tests::{
    SOON,
    action::{Told, all, argv, ids, shell, span},
    cluster::Cluster,
    crew::{self, Crew},
    node::program,
    pod::to_proto,
    process::{Process, alive, descendants},
    skip, small,
    wait::eventually,
};
use serde_json::json;
use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};
use tokio::time::Instant;

fn only(told: &Told) -> (Outcome, i32, i32) {
    let result = told.only();
    (result.outcome(), result.exit_code, result.signal)
}

async fn written(path: &Path) -> Vec<i32> {
    eventually(SOON, "pids", async || {
        let text = fs::read_to_string(path)?;
        let pids: Vec<i32> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(!pids.is_empty());
        Ok(pids)
    })
    .await
}

async fn dead(pids: &[i32]) {
    eventually(SOON, &format!("end of {pids:?}"), async || {
        for pid in pids {
            ensure!(!alive(*pid), "{pid} lives");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_words_and_ends_are_told_as_they_were() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    let told = api
        .run(argv(all(), &["printf", "%s|", "a b", "*", "$HOME"]))
        .await;
    assert_eq!(told.text(), "a b|*|$HOME|");
    for (request, expected, said) in [
        (shell(all(), "exit 0"), (Outcome::Exited, 0, 0), ""),
        (shell(all(), "exit 7"), (Outcome::Exited, 7, 0), ""),
        (shell(all(), "kill -KILL $$"), (Outcome::Exited, 137, 9), ""),
        (
            argv(all(), &["/no/such/program"]),
            (Outcome::Exited, 127, 0),
            "no file",
        ),
        (
            argv(all(), &["no-such-program"]),
            (Outcome::Exited, 127, 0),
            "PATH",
        ),
        (
            argv(all(), &["/etc/passwd"]),
            (Outcome::Exited, 126, 0),
            "may not execute",
        ),
    ] {
        let told = api.run(request.clone()).await;
        assert_eq!(only(&told), expected, "{request:?}: {told:?}");
        let stderr = told.stderr.values().next().cloned().unwrap_or_default();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(stderr.contains(said), "{request:?}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_its_input_and_variables_and_nothing_of_the_slave() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let _crew = Crew::with(&mut cluster, 1, &[("payload", "/dev/null")]).await;
    let api = cluster.api(0);
    let mut request = shell(
        all(),
        "env; echo --; cat; echo; echo --; ls -l /proc/self/fd | grep -c -- '->'; ps -o pgid= -p $$; echo $$",
    );
    let command = request.command.as_mut().unwrap();
    command.env.insert("COLOUR".into(), "red and blue".into());
    command.input = Some(to_proto(&json!({"a": [1, "x"]})));
    let told = api.run(request).await;
    let text = told.text();
    let parts: Vec<&str> = text.split("--\n").collect();
    let [environment, input, rest] = parts[..] else {
        panic!("{text}")
    };
    assert!(
        environment.contains("COLOUR=red and blue\n"),
        "{environment}"
    );
    assert!(
        environment.contains("INPUT={\"a\":[1,\"x\"]}\n"),
        "{environment}"
    );
    let kontrol: Vec<&str> = environment
        .lines()
        .filter_map(|line| line.strip_prefix("KONTROL_")?.split_once('='))
        .map(|(name, _)| name)
        .collect();
    for name in &kontrol {
        assert!(["ACTION", "KEY", "ID"].contains(name), "{environment}");
    }
    assert!(environment.contains(&format!("KONTROL_ACTION={}\n", told.action)));
    assert!(environment.contains(&format!("KONTROL_KEY={}\n", crew::key(0))));
    assert_eq!(input.trim(), r#"{"a":[1,"x"]}"#);
    let rest: Vec<i64> = rest
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect();
    // Its three streams, and the one that ls reads the folder with.
    assert_eq!(rest[0], 4, "{text}");
    assert_eq!(
        rest[1], rest[2],
        "it leads a process group of its own: {text}"
    );

    let told = api.run(shell(all(), "cat; echo end")).await;
    assert_eq!(
        told.text(),
        "end\n",
        "without input there is nothing to read"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_ends_even_what_ignores_sigterm() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    let pids = cluster.dir.path().join("pids");
    for text in ["sleep 600", "trap '' TERM; while :; do sleep 0.1; done"] {
        let mut request = shell(all(), &format!("echo $$ > {}; {text}", pids.display()));
        request.timeout = span(Duration::from_millis(500));
        let start = Instant::now();
        let told = api.run(request).await;
        let result = told.only();
        assert_eq!(result.outcome(), Outcome::TimedOut, "{told:?}");
        assert!(result.error.contains("500ms"), "{told:?}");
        assert!(start.elapsed() >= Duration::from_millis(500));
        dead(&written(&pids).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_command_outlives_it_or_its_slave() {
    let _permit = small().await;
    let (cluster, mut crew) = alone(1).await;
    let api = cluster.api(0);
    let pids = cluster.dir.path().join("pids");
    let daemon = format!(
        "setsid sh -c 'echo $$ >> {}; exec sleep 600' & ",
        pids.display()
    );
    let until = format!("until [ -s {} ]; do sleep 0.02; done; ", pids.display());
    let told = api
        .run(shell(all(), &format!("{daemon}{until}echo started")))
        .await;
    assert_eq!(
        (told.text().as_str(), only(&told)),
        ("started\n", (Outcome::Exited, 0, 0))
    );
    dead(&written(&pids).await).await;

    fs::remove_file(&pids).unwrap();
    let text = format!(
        "{daemon}{until}echo $$ >> {}; trap '' TERM; sleep 600",
        pids.display()
    );
    let mut dispatch = api.dispatch(shell(all(), &text)).await.unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    let running = eventually(SOON, "both pids", async || {
        let running = written(&pids).await;
        ensure!(running.len() == 2);
        Ok(running)
    })
    .await;
    crew.slaves[0].kill();
    dead(&running).await;
    let told = dispatch.finish(SOON).await;
    assert_eq!(told.only().outcome(), Outcome::Lost, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_holds_while_the_slave_is_paused() {
    let _permit = small().await;
    let (cluster, mut crew) = alone(1).await;
    let pids = cluster.dir.path().join("pids");
    let mut request = shell(all(), &format!("echo $$ > {}; sleep 600", pids.display()));
    request.timeout = span(Duration::from_secs(1));
    let mut dispatch = cluster.api(0).dispatch(request).await.unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    let running = written(&pids).await;
    crew.slaves[0]
        .process()
        .signal(rustix::process::Signal::STOP);
    dead(&running).await;
    crew.slaves[0]
        .process()
        .signal(rustix::process::Signal::CONT);
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.only().outcome(), Outcome::TimedOut, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_that_stops_ends_its_commands_tells_of_it_and_says_goodbye() {
    let _permit = small().await;
    let (cluster, mut crew) = alone(2).await;
    let api = cluster.api(0);
    let pids = cluster.dir.path().join("pids");
    let text = format!("echo $$ > {}; trap '' TERM; sleep 600", pids.display());
    let mut dispatch = api.dispatch(shell(ids(&["slave-0"]), &text)).await.unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    let running = written(&pids).await;
    let status = crew.slaves[0].stop(Duration::from_secs(4)).await;
    assert!(status.success(), "{status:?}");
    dead(&running).await;
    let told = dispatch.finish(SOON).await;
    let result = told.only();
    assert_eq!(result.outcome(), Outcome::Cancelled, "{told:?}");
    assert!(result.error.contains("the slave stops"), "{told:?}");
    eventually(SOON, "goodbye", async || {
        ensure!(api.pods().await?.pods.len() == 1);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_allow_is_refused_with_the_reason() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let file = cluster.dir.path().join("allowed");
    fs::write(&file, "# for everybody\necho hello *\n").unwrap();
    let masters = cluster.masters[0].address();
    let path = file.to_str().unwrap().to_owned();
    let mut slaves = vec![
        crew::launch(&cluster, 0, &masters, &[("actions", &path)]),
        crew::launch(&cluster, 1, &masters, &[("actions", "none")]),
    ];
    crew::attached(&mut cluster, 2).await;
    let api = cluster.api(0);
    let told = api.run(argv(all(), &["echo", "hello", "world"])).await;
    assert_eq!(told.finished[&crew::key(0)].outcome(), Outcome::Exited);
    let refused = &told.finished[&crew::key(1)];
    assert_eq!(
        (refused.outcome(), refused.exit_code),
        (Outcome::Refused, -1)
    );
    assert!(refused.error.contains("--actions none"), "{refused:?}");
    let told = api.run(argv(ids(&["slave-0"]), &["echo", "goodbye"])).await;
    assert_eq!(told.only().outcome(), Outcome::Refused);
    assert!(told.only().error.contains(&path), "{told:?}");
    assert!(told.started.is_empty());
    fs::write(&file, "echo goodbye\n").unwrap();
    let told = api.run(argv(ids(&["slave-0"]), &["echo", "goodbye"])).await;
    assert_eq!(told.text(), "goodbye\n", "an edit counts at once");
    slaves.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_insecure_a_slave_and_a_mixed_master_refuse_everything_and_say_why() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:")
        .patient()
        .set("mode", "master,slave")
        .set("labels", r#"{"app":"web","role":"m"}"#)
        .set("ip", "127.0.0.77")
        .start()
        .await;
    let (master, ip) = (cluster.masters[0].address(), crew::ip(0));
    let _slave = kontrol_tests::node::Slave::start(
        "plain",
        &[
            ("master", &master),
            ("id", "plain"),
            ("ip", &ip),
            ("labels", r#"{"app":"web","role":"x"}"#),
        ],
        cluster.dir.path(),
    );
    crew::attached(&mut cluster, 2).await;
    let told = cluster.api(0).run(argv(all(), &["true"])).await;
    assert_eq!(told.count(Outcome::Refused), 2, "{told:?}");
    for result in told.finished.values() {
        assert!(result.error.contains("--insecure"), "{result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_a_pod_runs_actions_too() {
    let _permit = small().await;
    let mut cluster = Cluster::on("memory:")
        .patient()
        .set("mode", "master,slave")
        .set("ip", "127.0.0.77")
        .env("KONTROL_INSECURE", "1")
        .start()
        .await;
    crew::attached(&mut cluster, 1).await;
    let told = cluster.api(0).run(shell(all(), "echo $KONTROL_ID")).await;
    assert_eq!(told.text(), "master-0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_a_slave_that_root_started_run_as_another_user() {
    let _permit = small().await;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        skip("only root can run commands as another user");
        return;
    }
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let _crew = Crew::with(&mut cluster, 1, &[("user", "nobody")]).await;
    let text = "id -un; id -G; pwd; echo $USER; grep NoNewPrivs /proc/self/status; kill -0 $PPID 2>&1 || echo out of reach";
    let told = cluster.api(0).run(shell(all(), text)).await;
    let text = told.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "nobody", "{told:?}");
    assert!(!lines[1].split(' ').any(|group| group == "0"), "{text}");
    assert_eq!(lines[3], "nobody");
    assert_eq!(lines[4], "NoNewPrivs:\t1");
    assert!(text.ends_with("out of reach\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_refused_before_anything_runs() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    let dispatch = async |change: fn(&mut Command)| {
        let mut request = DispatchRequest {
            selector: Some(all()),
            command: Some(Command::default()),
            ..DispatchRequest::default()
        };
        change(request.command.as_mut().unwrap());
        api.dispatch(request).await.unwrap_err()
    };
    for (status, field) in [
        (dispatch(|_| {}).await, "command"),
        (
            dispatch(|command| command.argv = vec![String::new()]).await,
            "command.argv",
        ),
        (
            dispatch(|command| {
                command.argv = vec!["a".into()];
                command.shell = "b".into();
            })
            .await,
            "command",
        ),
        (
            dispatch(|command| {
                command.shell = "b".into();
                command.env.insert("A=B".into(), String::new());
            })
            .await,
            "command.env",
        ),
    ] {
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    assert!(api.history().await.unwrap().is_empty());
}

/// Runs something in the process namespace of a container whose process 1 this is.
fn inside(pid: i32, text: &str) -> String {
    let target = pid.to_string();
    let output = std::process::Command::new("nsenter")
        .args([
            "--target", &target, "--pid", "--mount", "--", "sh", "-c", text,
        ])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_process_1_a_slave_reaps_orphans_and_its_commands_are_told_as_ever() {
    let _permit = small().await;
    let isolated = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let probe = std::process::Command::new("unshare")
        .args(isolated)
        .arg("true")
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip("unshare is not permitted here");
        return;
    }
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let mut command = std::process::Command::new("unshare");
    command
        .args(isolated)
        .arg(program("kontrol-slave"))
        .args(["--master", &cluster.masters[0].address(), "--id", "one"])
        .args([
            "--ip",
            &crew::ip(0),
            "--labels",
            r#"{"app":"web","role":"x"}"#,
            "--insecure",
        ]);
    let log = cluster.dir.path().join("one.log");
    let process = Process::spawn("one", &mut command, &log);
    crew::attached(&mut cluster, 1).await;
    let children = descendants(process.pid());
    let (slave, _) = children.into_iter().next().unwrap();
    assert_eq!(inside(slave, "cat /proc/1/comm").trim(), "kontrol-slave");
    let zombies = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z 1 '";
    for _ in 0..20 {
        inside(slave, "sleep 0.01 &");
        let told = cluster
            .api(0)
            .run(shell(all(), "sleep 0.01 & exit 9"))
            .await;
        assert_eq!(only(&told), (Outcome::Exited, 9, 0));
    }
    eventually(SOON, "reaped orphans", async || {
        let left = inside(slave, zombies);
        ensure!(left.trim() == "0", "{left} zombies");
        Ok(())
    })
    .await;
}
