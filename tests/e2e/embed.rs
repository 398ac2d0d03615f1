//! A Rust service that reports itself: the library in this process, and the example as a process of its own, against real
//! masters.

use anyhow::ensure;
use kontrol_proto::v1::{LeaveReason, Outcome};
use kontrol_slave::{ActionCommand, Refused, Slave};
use kontrol_tests::{
    SLACK, SOON,
    action::{argv, ids, shell, span},
    cluster::Cluster,
    node::{alone, command, example, run},
    pod::{from_proto, key_of},
    process::Process,
    small,
    wait::eventually,
};
use rustix::process::Signal;
use serde_json::json;
use std::{future::pending, process::Output, time::Duration};
use tokio::time::Instant;

/// One master without etcd.
async fn master() -> Cluster {
    Cluster::on("memory:").start().await
}

/// What an operator gets from the pods of this name.
async fn exec(cluster: &Cluster, id: &str, arguments: &[&str]) -> Output {
    let mut command = command("kontrol-master");
    command
        .env("KONTROL_ENDPOINT", cluster.masters[0].url())
        .args(["exec", "--output", "raw", "--id", id])
        .args(arguments);
    run(command).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A service that answers: `sell N`, of which it has some; `wait`, until it is to end; `hang`, whatever is said.
fn start(cluster: &Cluster, id: &str, ip: [u8; 4]) -> Slave {
    let builder = Slave::builder(cluster.masters[0].url());
    let builder = builder.app("shop").role("web").id(id).ip(ip.into());
    let builder = builder.label("zone", "b").insecure(true);
    let builder = builder.handler(async |request, mut output| {
        let ActionCommand::Argv(words) = request.command else {
            return Err(Refused::new("no shell here"));
        };
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["sell", number] => {
                output.stdout.print(format!("sold {number}\n")).await;
                output.stderr.print(format!("{:?}\n", request.input)).await;
                Ok(3)
            }
            ["wait"] => {
                output.stdout.print("waits\n").await;
                request.cancellation.cancelled().await;
                output.stdout.print("ends\n").await;
                Ok(4)
            }
            ["hang"] => pending().await,
            ["panic"] => panic!("on purpose"),
            _ => Ok(2),
        }
    });
    builder.start().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_on_the_roster_with_its_payload_and_leaves_at_once() {
    let _permit = small().await;
    let cluster = master().await;
    let (api, key) = (cluster.api(0), key_of("127.6.0.1"));
    let mut watch = api.watch(0).await.unwrap();
    let slave = start(&cluster, "shop-1", [127, 6, 0, 1]);
    slave.ready().await.unwrap();
    // What a master has counted is on the roster.
    let pod = api.pod(&key).await.unwrap();
    assert_eq!(
        (pod.id.as_str(), pod.app.as_str(), pod.role.as_str()),
        ("shop-1", "shop", "web")
    );
    assert_eq!(
        (pod.labels["zone"].as_str(), pod.nonce.as_str()),
        ("b", slave.nonce())
    );
    let status = &slave.status()[0];
    assert_eq!((&status.key, status.seq), (&key, Some(pod.seq)));
    slave.set_payload(json!({"load": 0.4})).unwrap();
    eventually(SOON, "the payload", async || {
        let payload = from_proto(api.pod(&key).await?.payload.as_ref());
        ensure!(payload == json!({"load": 0.4}), "{payload}");
        Ok(())
    })
    .await;
    let start_of_end = Instant::now();
    slave.stop().await;
    let (left, reason) = watch.left(SOON, &key).await;
    assert_eq!(reason, LeaveReason::Down);
    assert!(left - start_of_end < SLACK);

    // One that is dropped says goodbye as well.
    let slave = start(&cluster, "shop-1", [127, 6, 0, 1]);
    slave.ready().await.unwrap();
    drop(slave);
    assert_eq!(watch.left(SOON, &key).await.1, LeaveReason::Down);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_answers_an_operator_and_ends_when_it_is_told_to() {
    let _permit = small().await;
    let cluster = master().await;
    let slave = start(&cluster, "shop-2", [127, 6, 0, 2]);
    slave.ready().await.unwrap();
    let api = cluster.api(0);
    eventually(SOON, "the channel for actions", async || {
        let told = api.run(argv(ids(&["shop-2"]), &["other"])).await;
        ensure!(told.only().outcome() == Outcome::Exited, "{told:?}");
        Ok(())
    })
    .await;

    let output = exec(
        &cluster,
        "shop-2",
        &["--input", "{\"a\": 1}", "--", "sell", "5"],
    )
    .await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), "sold 5\n");
    assert!(text(&output.stderr).contains("Some(Object {\"a\": Number(1)})"));
    let output = exec(&cluster, "shop-2", &["--timeout", "300ms", "--", "wait"]).await;
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert_eq!(text(&output.stdout), "waits\nends\n");

    let told = api.run(shell(ids(&["shop-2"]), "true")).await;
    assert_eq!(told.only().outcome(), Outcome::Refused);
    assert_eq!(told.only().error, "no shell here");
    let told = api.run(argv(ids(&["shop-2"]), &["panic"])).await;
    assert_eq!(
        (told.only().outcome(), told.only().exit_code),
        (Outcome::Exited, 101)
    );
    let mut hang = argv(ids(&["shop-2"]), &["hang"]);
    hang.timeout = span(Duration::from_millis(200));
    let told = api.run(hang).await;
    assert_eq!(told.only().outcome(), Outcome::TimedOut);

    let mut dispatch = api
        .dispatch(argv(ids(&["shop-2"]), &["wait"]))
        .await
        .unwrap();
    let key = key_of("127.6.0.2");
    let waits = |told: &kontrol_tests::action::Told| {
        told.stdout.get(&key).is_some_and(|out| !out.is_empty())
    };
    dispatch.until(SOON, "it waits", waits).await;
    let id = dispatch.told.action.clone();
    assert!(!api.cancel(&id).await.unwrap(), "it had not ended");
    let told = dispatch.finish(SOON).await;
    assert_eq!(
        (told.only().outcome(), told.only().exit_code),
        (Outcome::Cancelled, 4)
    );
    assert_eq!(told.text(), "waits\nends\n");
    slave.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_does_what_its_text_says() {
    let _permit = small().await;
    let cluster = master().await;
    let (api, path) = (cluster.api(0), example("service"));
    let mut watch = api.watch(0).await.unwrap();
    let start = async |name: &str, nonce: &str| {
        let mut command = alone(&path);
        command.arg(cluster.masters[0].url());
        let log = cluster.dir.path().join(format!("{name}.log"));
        let process = Process::spawn(name, &mut command, &log);
        let id = eventually(SOON, "the service is reported and answers", async || {
            let pods = api.pods().await?.pods;
            ensure!(pods.len() == 1 && pods[0].nonce != nonce, "{pods:?}");
            ensure!(from_proto(pods[0].payload.as_ref()) == json!({"load": 0.4}));
            let told = api.run(argv(ids(&[&pods[0].id]), &["greet", "me"])).await;
            ensure!(told.only().outcome() == Outcome::Exited, "{told:?}");
            Ok(pods[0].clone())
        })
        .await;
        (process, id)
    };
    let (mut process, pod) = start("first", "").await;
    let key = key_of("127.0.0.1");
    let output = exec(&cluster, &pod.id, &["--", "greet", "you"]).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), "hello you\n".into())
    );
    let output = exec(&cluster, &pod.id, &["--timeout", "300ms", "--", "tick"]).await;
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(text(&output.stdout).starts_with("tick\n"));
    process.signal(Signal::TERM);
    assert!(process.ended(SOON).await.success());
    assert_eq!(watch.left(SOON, &key).await.1, LeaveReason::Down);

    let (mut process, _) = start("second", &pod.nonce).await;
    process.kill();
    // It was attached.
    assert_eq!(watch.left(SOON, &key).await.1, LeaveReason::Lost);
}
